from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from recsys import dataset
from recsys.contracts import artifact
from recsys.contracts.errors import ArtifactError
from recsys.contracts.protocol import Protocol
from recsys.dataset import Histories
from recsys.model.checkpoint import START_FILE, Checkpoint
from recsys.model.decoder import SequenceModel
from recsys.training import train
from recsys.training.config import Recipe
from recsys.training.loop import Trainer
from recsys.training.start import Start, mismatch
from recsys.training.validation import Judge
from tests.conftest import NUM_ITEMS, cyclic_histories, write_features


def later_features(place: Path, num_new_items: int = 0) -> Path:
    """The ring one moment later, and items that only the newest events know."""
    histories = cyclic_histories()
    for number in range(1, num_new_items + 1):
        for user in list(histories)[:10]:
            histories[user] = [*histories[user][:4], NUM_ITEMS + number, *histories[user][4:]]
    write_features(place, histories, NUM_ITEMS + num_new_items, split_ms=11)
    return place


def test_known_items_keep_their_rows_and_new_ones_stand_amid_their_neighbours(
    ring_checkpoint: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    data = dataset.load(later_features(tmp_path / "f", num_new_items=1), Protocol.TIME)
    model = SequenceModel(tiny_recipe.model, len(data.vocabulary), tiny_recipe.window.size)
    start = Start.open(ring_checkpoint, tiny_recipe)
    fit = Histories(["u"], np.array([0, 3]), np.array([4, NUM_ITEMS + 1, 6], dtype=np.int32), np.arange(3))
    start.put_into(model, fit, data.vocabulary)
    old, new = start.weights["embedding.weight"], model.embedding.weight.detach()
    torch.testing.assert_close(new[: NUM_ITEMS + 1], old)
    torch.testing.assert_close(new[NUM_ITEMS + 1], (old[4] + old[6]) / 2)  # both one event away
    assert all(torch.equal(p, start.weights[n]) for n, p in model.named_parameters() if n != "embedding.weight")


def test_a_setting_that_a_checkpoint_of_before_does_not_have_is_its_default(
    ring_checkpoint: Path, tiny_recipe: Recipe
) -> None:
    manifest = artifact.read_manifest(ring_checkpoint)
    model = {name: value for name, value in manifest.config["model"].items() if name != "transformers"}
    before = manifest.model_copy(update={"config": {**manifest.config, "model": model}})
    assert mismatch(before, tiny_recipe) is None
    other = tiny_recipe.model_copy(
        update={"model": tiny_recipe.model.model_copy(update={"transformers": {"attention_bias": True}})}
    )
    assert "made with model.transformers = {}, the recipe has {'attention_bias': True}" in str(mismatch(before, other))


def test_a_started_run_is_validated_before_its_first_step_and_stops_sooner(
    ring_checkpoint: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    features = later_features(tmp_path / "f")
    manifest = train.run(tiny_recipe, features, tmp_path / "c", protocol=Protocol.TIME, start=ring_checkpoint)
    before = artifact.read_manifest(ring_checkpoint)
    assert manifest.parents["start"] == before.digest
    assert manifest.metrics["validation_ndcg@10"] > 0.95  # of a model that knew the ring already
    assert manifest.metrics["num_rounds"] < before.metrics["num_rounds"]
    assert manifest.metrics["trained_before_ms"] >= before.metrics["trained_before_ms"]
    assert Checkpoint.open(tmp_path / "c").vocabulary.items == dataset.load(features, Protocol.TIME).vocabulary.items


def test_the_start_is_looked_at_before_steps_that_choose_the_number_of_threads(
    ring_checkpoint: Path, tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Judge.ndcg_at_10
    order: list[str] = []
    monkeypatch.setattr(Judge, "ndcg_at_10", lambda *given: (order.append("look"), look(*given))[1])
    monkeypatch.setattr(Trainer, "choose_threads", lambda *_: order.append("steps"))
    training = tiny_recipe.training.model_copy(update={"num_threads": None})
    recipe = tiny_recipe.model_copy(update={"training": training})
    train.run(recipe, later_features(tmp_path / "f"), tmp_path / "c", protocol=Protocol.TIME, start=ring_checkpoint)
    assert order[:2] == ["look", "steps"]


def test_what_a_run_starts_from_has_not_absorbed_the_held_out_events(ring_checkpoint: Path) -> None:
    start = safetensors.torch.load_file(ring_checkpoint / START_FILE)
    whole = safetensors.torch.load_file(ring_checkpoint / "model.safetensors")
    assert start.keys() == whole.keys()
    assert not torch.equal(start["embedding.weight"], whole["embedding.weight"])
    assert artifact.read_manifest(ring_checkpoint).metrics["trained_before_ms"] < 10  # the cut of the ring


def test_a_start_that_has_seen_what_is_held_out_is_refused(
    ring_features: Path, ring_checkpoint: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    final = tmp_path / "final"
    train.run(tiny_recipe, ring_features, final, protocol=Protocol.FINAL, refit=ring_checkpoint)
    with pytest.raises(ArtifactError, match="that would leak"):
        train.run(tiny_recipe, ring_features, tmp_path / "c", protocol=Protocol.TIME, start=final)
    with pytest.raises(ArtifactError, match="held out at no certain moment"):
        train.run(tiny_recipe, ring_features, tmp_path / "c", protocol=Protocol.LAST_OUT, start=ring_checkpoint)
    assert not (tmp_path / "c").exists()


def test_a_start_of_another_model_is_refused(
    ring_features: Path, ring_checkpoint: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    values = tiny_recipe.model_dump()
    values["model"]["width"] = 64
    with pytest.raises(ArtifactError, match=r"made with model.width = 32, the recipe has 64; train without --start"):
        train.run(Recipe(**values), ring_features, tmp_path / "c", protocol=Protocol.TIME, start=ring_checkpoint)


def test_a_refit_goes_on_from_the_last_refit(
    ring_features: Path, ring_checkpoint: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    refit = {"protocol": Protocol.FINAL, "refit": ring_checkpoint}
    first = train.run(tiny_recipe, ring_features, tmp_path / "a", **refit)  # type: ignore[arg-type]
    second = train.run(tiny_recipe, ring_features, tmp_path / "b", start=tmp_path / "a", **refit)  # type: ignore[arg-type]
    assert second.parents["start"] == first.digest
    assert second.metrics["log"][0]["loss"] < first.metrics["log"][0]["loss"]
