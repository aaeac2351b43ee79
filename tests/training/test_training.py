import json
import multiprocessing
import signal
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from recsys import dataset, transitions
from recsys.contracts import artifact
from recsys.contracts.errors import ArtifactError, DataError
from recsys.contracts.ids import PAD
from recsys.contracts.protocol import Protocol
from recsys.model.checkpoint import Checkpoint
from recsys.model.reference import encode
from recsys.training import batches, train
from recsys.training.config import Recipe
from recsys.training.fit import UNVALIDATED_EPOCHS
from recsys.training.loop import WindowStream
from recsys.training.validation import Judge
from recsys.windows import WindowConfig
from tests.conftest import write_events, write_features
from tests.training.conftest import KilledError, Steps

WINDOW = WindowConfig(size=8, overlap_share=0.25)  # stride 6, overlap 2


def test_every_event_but_the_first_is_a_target_once_an_epoch(ring_features: Path) -> None:
    fit = dataset.load(ring_features, Protocol.FINAL).fit
    windows = batches.training_windows(fit, WINDOW)
    counts = np.zeros(31, dtype=np.int64)
    for batch in batches.epoch(fit.tokens, windows, 64, np.random.default_rng(0)):
        counts += np.bincount(batch.targets_BL.numpy().ravel(), minlength=31)
    expected = np.bincount(np.concatenate([history[1:] for history in fit]), minlength=31)
    np.testing.assert_array_equal(counts[1:], expected[1:])


def test_a_target_follows_its_input_and_overlap_is_context_only() -> None:
    fit = dataset.Histories(["u"], np.array([0, 10]), np.arange(1, 11, dtype=np.int32), np.arange(10))
    windows = batches.training_windows(fit, WINDOW)
    # windows [0, 8) and [6, 10): the second predicts from event 6 + 2 = 8 on
    assert [(w.start, w.stop, w.first_target) for w in windows] == [(0, 8, 1), (6, 10, 8)]
    (batch,) = batches.epoch(fit.tokens, windows, 64, np.random.default_rng(0))
    rows = {tuple(t): tuple(y) for t, y in zip(batch.tokens_BL.tolist(), batch.targets_BL.tolist(), strict=True)}
    assert rows == {
        (1, 2, 3, 4, 5, 6, 7): (2, 3, 4, 5, 6, 7, 8),
        (7, 8, 9, PAD, PAD, PAD, PAD): (PAD, 9, 10, PAD, PAD, PAD, PAD),
    }


def test_without_overlap_the_first_event_of_a_window_is_an_input_only() -> None:
    fit = dataset.Histories(["u"], np.array([0, 6]), np.arange(1, 7, dtype=np.int32), np.arange(6))
    windows = batches.training_windows(fit, WindowConfig(size=3, overlap_share=0.0))
    (batch,) = batches.epoch(fit.tokens, windows, 64, np.random.default_rng(0))
    assert sorted(batch.targets_BL.tolist()) == [[2, 3], [5, 6]]


def test_negative_events_are_read_and_never_predicted(tiny_recipe: Recipe) -> None:
    tokens = np.arange(1, 14, dtype=np.int32)
    kinds = np.where(np.isin(tokens, [3, 9]), 0, 1).astype(np.uint8)
    fit = dataset.Histories(["u", "v"], np.array([0, 10, 13]), tokens, np.arange(13), kinds, negative_types=(1,))
    stream = WindowStream(fit, tiny_recipe, np.random.default_rng(0))
    read, predicted = set(), set()
    for _ in range(2 * stream.epoch_steps):
        batch = next(stream)
        read |= set(batch.tokens_BL.flatten().tolist())
        predicted |= set(batch.targets_BL.flatten().tolist())
    assert predicted == {PAD, 3, 9}
    assert read == {PAD, *range(1, 10)}  # 10 is a window's last event; v has nothing to predict


def test_a_trained_model_never_recommends_what_was_only_ever_sent_back(tiny_recipe: Recipe, tmp_path: Path) -> None:
    """Everybody buys 1 … 4 in turn and sends back item 5 after each; half of all events are that return."""
    rows = [
        (f"u{u:02d}", item, 10 * i + late, late)
        for u in range(30)
        for i in range(12)
        for late, item in ((0, 1 + (u + i) % 4), (1, 5))
    ]
    events = pl.DataFrame(rows, ["user_id", "item_index", "timestamp_ms", "event_type"], orient="row")
    write_events(tmp_path / "f", events, 5, {"split_ms": 100, "event_types": ["purchase", "return"]}, {"min_count": 1})
    out = tmp_path / "checkpoint"
    train.run(tiny_recipe, tmp_path / "f", out, protocol=Protocol.TIME)
    data = dataset.load(tmp_path / "f", Protocol.TIME)
    num_events = [item.num_events for item in data.vocabulary.items]
    assert (sum(num_events), num_events[4]) == (300, 0)
    assert all((targets != 5).all() for targets in data.validation(30, 0).targets)
    assert not transitions.count(data.fit, 5)[:, [5]].sum()
    checkpoint = Checkpoint.open(out)
    just_bought = [history[:-1] for history in data.fit]
    scores = encode(checkpoint.model, just_bought) @ checkpoint.model.items_VD.detach().numpy().T
    assert (scores.argmax(axis=1) != 4).all()


def test_a_log_of_returns_alone_leaves_nothing_to_predict(tiny_recipe: Recipe, tmp_path: Path) -> None:
    events = pl.DataFrame(
        [("a", 1, 0, 0), ("a", 1, 1, 1), ("a", 1, 2, 1)],
        ["user_id", "item_index", "timestamp_ms", "event_type"],
        orient="row",
    )
    write_events(tmp_path / "f", events, 1, {"split_ms": None, "event_types": ["purchase", "return"]}, {"min_count": 1})
    with pytest.raises(DataError, match="nothing to predict"):
        train.run(tiny_recipe, tmp_path / "f", tmp_path / "o", protocol=Protocol.FINAL)


def test_a_batch_stays_within_its_size(ring_features: Path) -> None:
    fit = dataset.load(ring_features, Protocol.FINAL).fit
    for batch in batches.epoch(fit.tokens, batches.training_windows(fit, WINDOW), 40, np.random.default_rng(0)):
        assert batch.tokens_BL.numel() <= 40


def test_a_model_learns_the_ring(ring_features: Path, ring_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(ring_checkpoint)
    validation = dataset.load(ring_features, Protocol.TIME).validation(100, seed=1)
    assert Judge(validation, 30, recipe_of(checkpoint), mask_seen=False).ndcg_at_10(checkpoint.model) > 0.95
    losses = [row["loss"] for row in checkpoint.manifest.metrics["log"]]
    assert losses[-1] < losses[0] / 2


def recipe_of(checkpoint: Checkpoint) -> Recipe:
    settings = checkpoint.manifest.config
    return Recipe.from_mapping({name: settings[name] for name in Recipe.model_fields if name in settings}, "checkpoint")


@pytest.mark.parametrize("trend", [True, False])
def test_what_is_taken_these_days_counts_unless_the_recipe_says_no(
    tiny_recipe: Recipe, tmp_path: Path, *, trend: bool
) -> None:
    """Everybody takes items at random for months, and those of one handful in the last days."""
    generator, day_ms = np.random.default_rng(0), 24 * 3600 * 1000
    rows = [
        (f"u{user:02d}", 1 + int(generator.integers(5 if day >= 95 else 30)), day * day_ms + user, 0)
        for user in range(80)
        for day in [*range(0, 90, 9), 95, 96, 97, 98, 99]
    ]
    events = pl.DataFrame(rows, ["user_id", "item_index", "timestamp_ms", "event_type"], orient="row")
    write_events(tmp_path / "features", events, 30, {"split_ms": 99 * day_ms})
    recipe = Recipe.from_mapping(tiny_recipe.model_dump() | {"training": {"trend": trend, "max_epochs": 1}}, "test")
    checkpoint = train.run(recipe, tmp_path / "features", tmp_path / "out", protocol=Protocol.TIME)
    assert (checkpoint.config["fusion"]["trend"] != 0) is trend


def test_a_checkpoint_holds_its_curve_and_log(ring_checkpoint: Path) -> None:
    assert (ring_checkpoint / "curve.png").read_bytes().startswith(b"\x89PNG")
    rows = [json.loads(line) for line in (ring_checkpoint / "training.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == list(range(1, len(rows) + 1))


def test_the_same_seed_gives_the_same_weights(ring_features: Path, tiny_recipe: Recipe, tmp_path: Path) -> None:
    for name in "ab":
        train.run(tiny_recipe, ring_features, tmp_path / name, protocol=Protocol.TIME)
    weights = [artifact.read_manifest(tmp_path / name).files["model.safetensors"].sha256 for name in "ab"]
    assert weights[0] == weights[1]


def test_users_with_one_event_leave_nothing_to_train_on(tmp_path: Path, tiny_recipe: Recipe) -> None:
    write_features(tmp_path / "f", {"a": [1], "b": [1]}, 1, split_ms=None)
    with pytest.raises(DataError, match="no user has two events"):
        train.run(tiny_recipe, tmp_path / "f", tmp_path / "out", protocol=Protocol.FINAL)
    assert not (tmp_path / "out").exists()


def test_a_refit_takes_over_epochs_and_fusion(ring_features: Path, ring_checkpoint: Path, tmp_path: Path) -> None:
    recipe = Checkpoint.open(ring_checkpoint).manifest
    manifest = train.run(
        recipe_of(Checkpoint.open(ring_checkpoint)),
        ring_features,
        tmp_path / "final",
        protocol=Protocol.FINAL,
        refit=ring_checkpoint,
    )
    assert manifest.config["fusion"] == recipe.config["fusion"]
    assert manifest.config["temperature"] == recipe.config["temperature"] != 1
    assert manifest.metrics["epochs"] == recipe.metrics["epochs"]
    assert manifest.metrics["validation_ndcg@10"] is None
    assert manifest.config["refit"]


def test_a_refit_of_other_features_is_refused(ring_checkpoint: Path, tiny_recipe: Recipe, tmp_path: Path) -> None:
    write_features(tmp_path / "f", {"a": [1, 1, 1, 1], "b": [1, 1, 1]}, 1, split_ms=None)
    with pytest.raises(ArtifactError, match="was made from features"):
        train.run(tiny_recipe, tmp_path / "f", tmp_path / "o", protocol=Protocol.FINAL, refit=ring_checkpoint)


def test_a_log_that_leaves_nobody_to_validate_with_is_trained_on(tiny_recipe: Recipe, tmp_path: Path) -> None:
    write_features(tmp_path / "f", {"a": [1, 2], "b": [2, 1]}, 2, split_ms=None)
    manifest = train.run(tiny_recipe, tmp_path / "f", tmp_path / "o", protocol=Protocol.FINAL)
    assert manifest.metrics["epochs"] == UNVALIDATED_EPOCHS


def test_an_epoch_has_about_two_hundred_batches_where_the_log_is_large_enough(tiny_recipe: Recipe) -> None:
    recipe = tiny_recipe.model_copy(update={"training": tiny_recipe.training.model_copy(update={"batch_tokens": None})})
    tokens = np.ones(400_000, dtype=np.int32)
    fit = dataset.Histories([f"u{i}" for i in range(50_000)], np.arange(0, 400_001, 8), tokens, np.arange(400_000))
    assert 180 < WindowStream(fit, recipe, np.random.default_rng(0)).epoch_steps < 220


@pytest.mark.parametrize("step", [1, 7, 20, 40, -1])
def test_a_resumed_run_equals_an_uninterrupted_one(
    ring_features: Path, tiny_recipe: Recipe, tmp_path: Path, steps: Steps, step: int
) -> None:
    """The last step (-1) is one of those that absorb what was held out."""
    whole = train.run(tiny_recipe, ring_features, tmp_path / "whole", protocol=Protocol.TIME)
    steps.dies_at, steps.taken = step if step > 0 else steps.taken, 0
    with pytest.raises(KilledError):
        train.run(tiny_recipe, ring_features, tmp_path / "cut", protocol=Protocol.TIME)
    assert not (tmp_path / "cut").exists()
    again = train.run(tiny_recipe, ring_features, tmp_path / "cut", protocol=Protocol.TIME, resume=True)
    assert again.files["model.safetensors"] == whole.files["model.safetensors"]
    losses = [[(row["loss"], row["validation_ndcg"]) for row in m.metrics["log"]] for m in (whole, again)]
    assert losses[0] == losses[1]
    assert not (tmp_path / ".cut.training").exists()


@pytest.mark.parametrize("share", [0, 0.5, 1])
def test_a_resumed_refit_equals_an_uninterrupted_one(
    ring_features: Path, ring_checkpoint: Path, tiny_recipe: Recipe, tmp_path: Path, steps: Steps, share: float
) -> None:
    """Broken off at the first step, half-way, and at the last of those that absorb."""

    def refit(name: str, *, resume: bool = False) -> artifact.Manifest:
        return train.run(
            tiny_recipe, ring_features, tmp_path / name, protocol=Protocol.FINAL, refit=ring_checkpoint, resume=resume
        )

    whole = refit("whole")
    steps.dies_at, num_steps, steps.taken = max(1, int(share * steps.taken)), steps.taken, 0
    with pytest.raises(KilledError):
        refit("cut")
    with pytest.raises(ArtifactError, match="an interrupted training of other features"):  # it was a refit
        train.run(tiny_recipe, ring_features, tmp_path / "cut", protocol=Protocol.FINAL, resume=True)
    before = steps.taken
    again = refit("cut", resume=True)
    assert again.files["model.safetensors"] == whole.files["model.safetensors"]
    assert [row["loss"] for row in again.metrics["log"]] == [row["loss"] for row in whole.metrics["log"]]
    assert share < 1 or steps.taken - before < num_steps  # it went on where the last round had ended
    assert again.config["temperature"] == whole.config["temperature"] != 1


def test_a_run_that_was_killed_while_threads_were_tried_can_be_resumed(
    ring_features: Path, tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = tiny_recipe.model_dump()
    values["training"] |= {"num_threads": None, "max_epochs": 1}
    recipe = Recipe.from_mapping(values, "r")
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr("recsys.training.loop.Trainer.choose_threads", lambda *_: (_ for _ in ()).throw(KilledError))
        train.run(recipe, ring_features, tmp_path / "c", protocol=Protocol.TIME)
    tried: list[int] = []
    choose = torch.set_num_threads
    monkeypatch.setattr(torch, "set_num_threads", lambda count: (tried.append(count), choose(count)))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    train.run(recipe, ring_features, tmp_path / "c", protocol=Protocol.TIME, resume=True)
    assert 2 in tried  # they are tried again


def test_a_killed_process_goes_on_to_the_same_checkpoint(
    ring_features: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    whole = train.run(tiny_recipe, ring_features, tmp_path / "whole", protocol=Protocol.TIME)
    killed = multiprocessing.get_context("spawn").Process(
        target=train.run,
        args=(tiny_recipe, ring_features, tmp_path / "cut"),
        kwargs={"protocol": Protocol.TIME},
    )
    killed.start()
    state = tmp_path / ".cut.training" / artifact.MANIFEST_NAME
    while killed.is_alive() and not state.exists():
        time.sleep(0.001)
    killed.kill()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert not (tmp_path / "cut").exists()
    again = train.run(tiny_recipe, ring_features, tmp_path / "cut", protocol=Protocol.TIME, resume=True)
    assert again.files["model.safetensors"] == whole.files["model.safetensors"]


def test_resuming_another_recipe_or_nothing_at_all_is_refused(
    ring_features: Path, tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ArtifactError, match="no artifact here"):
        train.run(tiny_recipe, ring_features, tmp_path / "x", protocol=Protocol.TIME, resume=True)
    monkeypatch.setattr("recsys.training.fit._absorb", lambda *_: (_ for _ in ()).throw(KilledError))
    with pytest.raises(KilledError):
        train.run(tiny_recipe, ring_features, tmp_path / "x", protocol=Protocol.TIME)
    other = tiny_recipe.model_copy(update={"training": tiny_recipe.training.model_copy(update={"seed": 9})})
    with pytest.raises(ArtifactError, match="an interrupted training of other features, another recipe or an older"):
        train.run(other, ring_features, tmp_path / "x", protocol=Protocol.TIME, resume=True)


def test_a_process_that_may_use_one_core_tries_no_second_thread(
    ring_features: Path, tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3})
    tried: list[int] = []
    choose = torch.set_num_threads
    monkeypatch.setattr(torch, "set_num_threads", lambda count: (tried.append(count), choose(count)))
    values = tiny_recipe.model_dump()
    values["training"] |= {"num_threads": None, "max_epochs": 1}
    manifest = train.run(Recipe.from_mapping(values, "r"), ring_features, tmp_path / "c", protocol=Protocol.TIME)
    assert set(tried) == {1} == {manifest.metrics["num_threads"]}
