"""A recipe with a model for sparse logs: which one is trained, gone on from, refitted."""

from pathlib import Path

import pytest

from recsys import dataset
from recsys.contracts.errors import ArtifactError, ConfigError
from recsys.contracts.protocol import Protocol
from recsys.model.checkpoint import Checkpoint
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
    assert "the recipe's [sparse.model] is trained" in capsys.readouterr().err
    assert trained(with_sparse(tiny_recipe, density), ring_features, tmp_path / "dense") == WIDE
    assert "the recipe's [model] is trained" in capsys.readouterr().err
    config = Checkpoint.open(tmp_path / "sparse").manifest.config
    assert config["sparse"] is None  # what was trained is one model
    assert config["model"]["dropout"] == 0.25


def test_a_refit_and_a_start_keep_the_model_that_they_come_from_though_the_log_has_grown(
    ring_features: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    """Events become more every night: a model is not changed by that between its gate and its refit."""
    trained(with_sparse(tiny_recipe, 1_000), ring_features, tmp_path / "before")
    now_dense = with_sparse(tiny_recipe, 0.5)
    assert mismatch(Checkpoint.open(tmp_path / "before").manifest, now_dense) is None
    assert trained(now_dense, ring_features, tmp_path / "started", start=tmp_path / "before") == NARROW
    assert trained(now_dense, ring_features, tmp_path / "refitted", refit=tmp_path / "before") == NARROW
    with pytest.raises(ArtifactError, match=r"made with model\.head_dim = 8, the recipe has 16"):
        trained(tiny_recipe, ring_features, tmp_path / "other", start=tmp_path / "before")


def test_the_default_has_a_model_for_sparse_logs() -> None:
    recipe = Recipe.load("default")
    assert recipe.sparse is not None
    dense, sparse = recipe.for_log(recipe.sparse.below), recipe.for_log(recipe.sparse.below - 1)
    assert dense.model == recipe.model
    assert sparse.model == recipe.sparse.model
    assert {"width", "dropout"} <= {name for name, value in dense.model if value != getattr(sparse.model, name)}
    assert dense.sparse is None
    assert recipe.like(sparse.model) == sparse
    assert Recipe.load("demo").for_log(0.1) == Recipe.load("demo")  # one model for every log


def test_a_sparse_model_without_its_limit_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"recipe: sparse\.below: field required"):
        Recipe.from_mapping({"sparse": {"model": {}}}, "recipe")
