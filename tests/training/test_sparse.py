"""A recipe with a model for sparse logs: which one is trained, gone on from, refitted."""

import shutil
from pathlib import Path

import pytest

from recsys import dataset
from recsys.contracts import artifact
from recsys.contracts.errors import ArtifactError, ConfigError
from recsys.contracts.protocol import Protocol
from recsys.model.checkpoint import Checkpoint
from recsys.pipeline.nightly import _last_night
from recsys.training import train
from recsys.training.config import Recipe
from recsys.training.start import mismatch

WIDE, NARROW = 32, 16


def with_sparse(recipe: Recipe, below: float) -> Recipe:
    values = recipe.model_dump()
    narrow = values["model"] | {"width": NARROW, "head_dim": 8, "dropout": 0.25}
    training = values["training"] | {"max_epochs": 1}
    return Recipe.from_mapping(
        {**values, "training": training, "sparse": {"below": below, "model": narrow}}, "with a sparse model"
    )


def trained(recipe: Recipe, features: Path, out: Path, start: Path | None = None, refit: Path | None = None) -> int:
    """Width of what came of it."""
    protocol = Protocol.TIME if refit is None else Protocol.FINAL
    train.run(recipe, features, out, protocol=protocol, start=start, refit=refit)
    return Checkpoint.open(out).model.config.width


def test_a_log_with_fewer_events_on_an_item_than_the_recipe_says_gets_the_sparse_model(
    ring_features: Path, tiny_recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    density = dataset.load(ring_features, Protocol.TIME).events_per_item
    assert trained(with_sparse(tiny_recipe, density + 0.01), ring_features, tmp_path / "sparse") == NARROW
    assert "the recipe's [sparse.model]\n" in capsys.readouterr().err
    assert trained(with_sparse(tiny_recipe, density), ring_features, tmp_path / "dense") == WIDE
    assert "the recipe's [model]\n" in capsys.readouterr().err
    config = Checkpoint.open(tmp_path / "sparse").manifest.config
    assert config["form"] == "sparse.model"
    assert config["model"]["dropout"] == 0.25


def test_a_refit_and_a_start_keep_the_model_that_they_come_from_though_the_log_has_grown(
    ring_features: Path, tiny_recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Events become more every night: a model is not changed by that between its gate and its refit."""
    trained(with_sparse(tiny_recipe, 1_000), ring_features, tmp_path / "before")
    now_dense = with_sparse(tiny_recipe, 0.5)
    assert mismatch(Checkpoint.open(tmp_path / "before").manifest, now_dense) is None
    assert trained(now_dense, ring_features, tmp_path / "started", start=tmp_path / "before") == NARROW
    assert "the recipe's [model]; " in (said := capsys.readouterr().err)
    assert "is of [sparse.model], which is kept" in said
    assert trained(now_dense, ring_features, tmp_path / "refitted", refit=tmp_path / "before") == NARROW


def test_what_a_start_or_a_refit_cannot_go_on_with_is_refused(
    ring_features: Path, ring_checkpoint: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    both = with_sparse(tiny_recipe, 1_000)
    trained(both, ring_features, tmp_path / "sparse")
    trained(with_sparse(tiny_recipe, 0.5), ring_features, tmp_path / "dense")
    with pytest.raises(ArtifactError, match=r"made with model\.head_dim = 8, the recipe has 16"):
        trained(tiny_recipe, ring_features, tmp_path / "out", start=tmp_path / "sparse")
    with pytest.raises(ArtifactError, match=r"made with model\.head_dim = 8, the recipe has 16"):
        trained(both, ring_features, tmp_path / "out", start=tmp_path / "sparse", refit=tmp_path / "dense")
    manifest = artifact.read_manifest(ring_checkpoint)
    of_before = {name: value for name, value in manifest.config.items() if name != "form"}
    assert mismatch(manifest.model_copy(update={"config": of_before}), both) == (
        "made before recipes had a model for sparse logs"
    )
    assert mismatch(manifest.model_copy(update={"config": of_before}), tiny_recipe) is None


def test_a_night_goes_on_from_two_checkpoints_of_one_model_or_from_none(
    ring_features: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    both = with_sparse(tiny_recipe, 1_000)
    trained(both, ring_features, tmp_path / "checkpoint")
    trained(both, ring_features, tmp_path / "gate" / "checkpoint")
    assert _last_night(tmp_path, both)[1] is None
    shutil.rmtree(tmp_path / "gate")
    trained(with_sparse(tiny_recipe, 0.5), ring_features, tmp_path / "gate" / "checkpoint")  # refused before its refit
    assert _last_night(tmp_path, both) == (
        None,
        "the last night's checkpoint: made with model.head_dim = 8, the recipe has 16",
    )


def test_a_refit_without_trend_has_none_though_its_gate_had(
    ring_features: Path, ring_checkpoint: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    data = dataset.load(ring_features, Protocol.FINAL)
    off = tiny_recipe.model_copy(update={"training": tiny_recipe.training.model_copy(update={"trend": False})})
    manifest = artifact.read_manifest(ring_checkpoint)
    shifted = manifest.config | {"fusion": manifest.config["fusion"] | {"trend": 0.5}}
    with artifact.writing(tmp_path / "refit", "checkpoint") as writer:
        for name in manifest.files:
            shutil.copy(ring_checkpoint / name, writer.folder)
        writer.commit(parents=manifest.parents, config=shifted, metrics=manifest.metrics)
    assert train._found_before(tmp_path / "refit", data, tiny_recipe).fusion.trend == 0.5
    assert train._found_before(tmp_path / "refit", data, off).fusion.trend == 0.0


def test_the_default_has_a_model_for_sparse_logs() -> None:
    recipe = Recipe.load("default")
    assert recipe.sparse is not None
    dense, sparse = recipe.for_log(recipe.sparse.below), recipe.for_log(recipe.sparse.below - 1)
    assert dense.model == recipe.model
    assert sparse.model == recipe.sparse.model
    assert dense.model.width > sparse.model.width
    assert dense.model.dropout < sparse.model.dropout
    assert dense.sparse is None
    assert Recipe.load("demo").for_log(0.1) == Recipe.load("demo")  # one model for every log


def test_a_sparse_model_without_its_limit_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"recipe: sparse\.below: field required"):
        Recipe.from_mapping({"sparse": {"model": {}}}, "recipe")
