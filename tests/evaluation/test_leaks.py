"""Figures can be trusted only if the future does not reach what is fitted, and the scale has its known ends."""

import gzip
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from features import build
from features.config import FeaturesConfig
from optimize import build as optimize_build
from optimize.config import OptimizeConfig
from recsys import dataset
from recsys.contracts import packing
from recsys.contracts.protocol import Protocol
from recsys.dataset import Dataset, Histories, TestSet
from recsys.evaluation.baselines import Cooccurrence, LastItem, Popularity
from recsys.evaluation.protocols import evaluate
from recsys.training import train
from recsys.training.config import Recipe
from recsys.transitions import TransitionTable
from tests.evaluation.test_protocols import Scored

NUM_ITEMS = 25


def events() -> pl.DataFrame:
    """A small log: 60 users, each item of the ring after the other, one event a minute over all."""
    generator = np.random.default_rng(2)
    user = generator.integers(0, 60, size=1_500)
    steps = {u: int(generator.integers(NUM_ITEMS)) for u in range(60)}
    items = []
    for u in user.tolist():
        steps[u] += 1
        items.append(f"i{steps[u] % NUM_ITEMS}")
    times = 1_600_000_000 + 60 * np.arange(len(user))
    return pl.DataFrame({"user_id": [f"u{u}" for u in user], "item_id": items, "timestamp": times})


def build_features(log: pl.DataFrame, folder: Path) -> Path:
    folder.mkdir()
    with gzip.open(folder / "log.csv.gz", "wb") as file:
        log.write_csv(file)
    build.run(FeaturesConfig(), [folder / "log.csv.gz"], folder / "features")
    return folder / "features"


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Features of the log, and of the log with users and items after T shuffled, some of them new."""
    folder, log = tmp_path_factory.mktemp("leaks"), events()
    first = build_features(log, folder / "real")
    split_ms = dataset.load(first, Protocol.TIME).split_ms
    past, future = (log.filter(side) for side in _sides(split_ms))
    generator = np.random.default_rng(7)
    shuffled = future.with_columns(
        pl.Series("user_id", generator.permutation(future["user_id"].to_list()).tolist()),
        pl.Series("item_id", generator.permutation([*future["item_id"].to_list()[3:], "x", "x", "y"]).tolist()),
    )
    return first, build_features(pl.concat([past, shuffled]), folder / "shuffled")


def _sides(split_ms: int | None) -> tuple[pl.Expr, pl.Expr]:
    assert split_ms is not None
    before = pl.col("timestamp") * 1000 < split_ms
    return before, ~before


def same(one: Histories, other: Histories) -> bool:
    arrays = ((one.offsets, other.offsets), (one.tokens, other.tokens), (one.timestamps_ms, other.timestamps_ms))
    return one.user_ids == other.user_ids and all(np.array_equal(a, b) for a, b in arrays)


def test_the_future_differs_and_what_may_be_fitted_does_not(both: tuple[Path, Path]) -> None:
    real, shuffled = (dataset.load(features, Protocol.TIME) for features in both)
    futures = [[row.tolist() for row in data.test_set().targets] for data in (real, shuffled)]
    assert futures[0] != futures[1]
    assert real.split_ms == shuffled.split_ms
    assert real.vocabulary.items == shuffled.vocabulary.items
    assert same(real.fit, shuffled.fit)
    assert same(real.validation(20, seed=1).train, shuffled.validation(20, seed=1).train)


@pytest.mark.parametrize("kind", [Popularity, LastItem, Cooccurrence])
def test_baselines_do_not_see_the_future(both: tuple[Path, Path], kind) -> None:
    lists = []
    for features in both:
        data = dataset.load(features, Protocol.TIME)
        lists.append(kind(data.fit, len(data.vocabulary)).rank(list(data.fit), 10))
    np.testing.assert_array_equal(lists[0], lists[1])


@pytest.fixture(scope="module")
def checkpoints(both: tuple[Path, Path], tiny_recipe: Recipe) -> list[Path]:
    """The same recipe and seed, trained on both."""
    places = [features.parent / "checkpoint" for features in both]
    for features, place in zip(both, places, strict=True):
        train.run(tiny_recipe, features, place, protocol=Protocol.TIME)
    return places


def test_trained_weights_do_not_see_the_future(checkpoints: list[Path]) -> None:
    real, shuffled = ((place / "model.safetensors").read_bytes() for place in checkpoints)
    assert real == shuffled


def test_what_training_found_and_the_table_of_a_release_do_not_see_the_future(
    both: tuple[Path, Path], checkpoints: list[Path]
) -> None:
    found = []
    for features, checkpoint in zip(both, checkpoints, strict=True):
        releases = features.parent / "releases"
        name, manifest = optimize_build.run(OptimizeConfig(bits=32), checkpoint, features, releases, force=True)
        found.append((manifest.config["fusion"], packing.read(releases / name / TransitionTable.FILE_NAME)))
    assert found[0] == found[1]


def targets_of(data: Dataset, test: TestSet) -> np.ndarray:
    """Scores of a model that is given the targets: 1 for each, 0 elsewhere."""
    scores = np.zeros((len(test.targets), len(data.vocabulary) + 1))
    for user, row in enumerate(test.targets):
        scores[user, row[row > 0]] = 1
    return scores


def test_a_model_given_the_targets_scores_1(both: tuple[Path, Path]) -> None:
    data = dataset.load(both[0], Protocol.TIME)
    test = data.test_set()
    assert all((row > 0).all() for row in test.targets)  # every target can be ranked
    most = max(len(set(row.tolist())) for row in test.targets)
    report = evaluate({"model": Scored(targets_of(data, test))}, test, len(data.vocabulary), Protocol.TIME, ks=(most,))
    model = report.to_json()["model"]
    perfect = [f"{name}@{most}" for name in ("recall", "ndcg", "hit_rate", "map")] + ["mrr"]
    assert {name: model[name] for name in perfect} == pytest.approx(dict.fromkeys(perfect, 1))


def test_a_random_model_scores_what_chance_predicts() -> None:
    """Every place of a random list holds a relevant item with chance n / V, n of the user's targets being rankable."""
    num_users, num_items, k = 3_000, 150, 10
    generator = np.random.default_rng(21)
    contexts = generator.integers(1, num_items + 1, size=(num_users, 2))
    rows = [generator.permutation(num_items)[: generator.integers(1, 30)] + 1 for _ in range(num_users)]
    targets = [np.where(generator.random(len(row)) < 0.1, -row, row).astype(np.int64) for row in rows]
    flat = Histories(
        [f"u{u}" for u in range(num_users)], np.arange(0, 2 * num_users + 1, 2),
        contexts.ravel().astype(np.int32), np.arange(2 * num_users),
    )  # fmt: skip
    ranker = Scored(generator.random((num_users, num_items + 1)))
    report = evaluate({"model": ranker}, TestSet(flat, targets, 0), num_items, Protocol.TIME, ks=(k,))
    found = report.results["model"].headline
    num_known = np.array([(row > 0).sum() for row in targets])
    num_all = np.array([len(row) for row in targets])
    discount = 1 / np.log2(np.arange(2, k + 2))
    ideal = np.array([discount[: min(k, n)].sum() for n in num_all])
    expected = {
        f"recall@{k}": (k / num_items) * num_known / num_all,
        f"ndcg@{k}": (num_known / num_items) * discount.sum() / ideal,
    }
    for name, chance in expected.items():
        error = (found[name] - chance).std() / num_users**0.5
        assert error < 0.003, name  # so that four of them are a narrow gate
        assert abs(found[name].mean() - chance.mean()) < 4 * error, name
