"""A recipe with a model for sparse logs, or windows for long histories: what is trained, gone on from, refitted."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from recsys import dataset
from recsys.contracts import artifact
from recsys.contracts.errors import ArtifactError, ConfigError
from recsys.contracts.protocol import Protocol
from recsys.model.checkpoint import Checkpoint
from recsys.model.summaries import SummaryModel
from recsys.pipeline.nightly import _last_night
from recsys.training import search, train
from recsys.training.config import Recipe
from recsys.training.start import mismatch
from tests.conftest import NUM_ITEMS, write_features

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


def with_long(recipe: Recipe, from_share: float, size: int) -> Recipe:
    values = recipe.model_dump()
    plain = values["window"] | {"size": size}
    return Recipe.from_mapping(
        {
            **values,
            "training": values["training"] | {"max_epochs": 1},
            "window": plain,
            "long": {"from_share": from_share, "window": plain | {"summary_tokens": 2}},
        },
        "with windows for long histories",
    )


def test_windows_leave_summaries_where_so_many_users_have_more_events_than_one_holds(
    tiny_recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    around = {user: [(start + n) % 30 + 1 for n in range(30)] for start, user in enumerate("abcdefgh")}
    features, size, share = tmp_path / "features", 9, 0.25
    cut = {user: around[user] if user in "ab" else around[user][:9] for user in around}
    write_features(features, cut, NUM_ITEMS, split_ms=25)  # two have 25 events before it, six have 9
    data = dataset.load(features, Protocol.TIME)
    assert [data.share_with_more_than(n) for n in (8, 9, 25)] == [1, 0.25, 0]

    def summary_tokens(name: str, from_share: float, before: str | None = None) -> int:
        recipe, place = with_long(tiny_recipe, from_share, size), tmp_path / name
        trained(recipe, features, place, refit=None if before is None else tmp_path / before)
        checkpoint = Checkpoint.open(place)
        assert isinstance(checkpoint.model, SummaryModel) == bool(checkpoint.window.summary_tokens)
        return checkpoint.window.summary_tokens

    assert summary_tokens("long", share) == 2
    assert "the recipe's [model] and [long.window]\n" in (said := capsys.readouterr().err)
    assert f"{share:.1%} of users have more than {size} events, long from {share:.0%}" in said
    assert artifact.read_manifest(tmp_path / "long").config["form"] == "model + long.window"
    assert summary_tokens("short", min(1.0, share + 0.01)) == 0
    assert "the recipe's [model]\n" in capsys.readouterr().err
    assert summary_tokens("refitted", 1.0, before="long") == 2
    assert "is of [model] and [long.window], which is kept" in capsys.readouterr().err
    assert mismatch(artifact.read_manifest(tmp_path / "long"), with_long(tiny_recipe, 1.0, size)) is None
    assert mismatch(artifact.read_manifest(tmp_path / "long"), tiny_recipe) == (
        "made with window.summary_tokens = 2, the recipe has 0"
    )


@dataclass(frozen=True)
class Log:
    """What a recipe looks at to settle itself."""

    events_per_item: float
    longest_share: float = 0.0

    def share_with_more_than(self, num_events: int) -> float:
        assert num_events == 1024
        return self.longest_share


def test_the_default_has_windows_for_long_histories() -> None:
    recipe = Recipe.load("default")
    assert recipe.long is not None
    few, many = (recipe.for_log(Log(200.0, recipe.long.from_share + by)) for by in (-0.01, 0.0))
    assert few.window == recipe.window
    assert many.window == recipe.window.model_copy(update={"summary_tokens": 4})
    assert many.long is None
    assert recipe.form_for(Log(1.0, 1.0)) == "sparse.model + long.window"
    assert recipe.settled("sparse.model + long.window").model == recipe.sparse.model


def test_windows_of_another_size_are_so_in_every_form() -> None:
    default = Recipe.load("default")
    small = default.with_windows_of(32)
    assert small.long is not None
    assert default.long is not None
    assert small.window == default.window.model_copy(update={"size": 32})
    assert small.long.window == default.long.window.model_copy(update={"size": 32})
    assert small.model_copy(update={"window": default.window, "long": default.long}) == default
    with pytest.raises(ConfigError, match="windows of 1"):
        default.with_windows_of(1)


def test_the_default_has_a_model_for_sparse_logs() -> None:
    recipe = Recipe.load("default")
    assert recipe.sparse is not None
    dense, sparse = recipe.for_log(Log(recipe.sparse.below)), recipe.for_log(Log(recipe.sparse.below - 1))
    assert dense.model == recipe.model
    assert sparse.model == recipe.sparse.model
    assert dense.model.width > sparse.model.width
    assert dense.model.dropout < sparse.model.dropout
    assert dense.sparse is None
    assert Recipe.load("demo").for_log(Log(0.1)) == Recipe.load("demo")  # one model for every log


def test_a_sparse_model_without_its_limit_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"recipe: sparse\.below: field required"):
        Recipe.from_mapping({"sparse": {"model": {}}}, "recipe")


def test_nights_with_windows_for_long_histories_go_on_and_a_search_keeps_them(
    tiny_recipe: Recipe, tmp_path: Path
) -> None:
    around = {user: [(start + n) % 30 + 1 for n in range(30)] for start, user in enumerate("abcdefgh")}
    write_features(tmp_path / "features", around, NUM_ITEMS, split_ms=25)
    recipe = with_long(tiny_recipe, 0.5, 9)
    for name in ("checkpoint", "gate/checkpoint"):
        trained(recipe, tmp_path / "features", tmp_path / name)
    last, why_not = _last_night(tmp_path, with_long(tiny_recipe, 1.0, 9))  # fewer histories are long enough by now
    assert (why_not, last) == (None, (tmp_path / "gate" / "checkpoint", tmp_path / "checkpoint"))
    trained(with_long(tiny_recipe, 1.0, 9), tmp_path / "features", tmp_path / "on", start=tmp_path / "checkpoint")
    assert artifact.read_manifest(tmp_path / "on").config["form"] == "model + long.window"
    protocol = Protocol.TIME
    search.run(recipe, tmp_path / "features", tmp_path / "s", protocol=protocol, num_trials=1, minutes=1)
    found = Recipe.load(str(tmp_path / "s" / "recipe.toml"))
    assert (found.window.summary_tokens, found.long) == (2, None)


def test_a_form_is_of_tables_that_the_recipe_has(tiny_recipe: Recipe) -> None:
    """A checkpoint of another recipe, or of before recipes had such tables, names what this one lacks."""
    sparse, long = with_sparse(tiny_recipe, 1_000), with_long(tiny_recipe, 1.0, 9)
    both = "sparse.model + long.window"
    forms = [recipe.form_like(both) for recipe in (tiny_recipe, sparse, long)]
    assert forms == ["model", "sparse.model", "model + long.window"]
    of_before = artifact.Manifest.model_construct(config={})
    assert train._form_of(of_before, long, "model + long.window") == "model"
    assert train._form_of(of_before, sparse, "sparse.model") == "sparse.model"
