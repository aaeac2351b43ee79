"""Figures can be trusted only if the future does not reach what is fitted, and the scale has its known ends."""

import gzip
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest

from features import build
from features.config import FeaturesConfig
from optimize import build as optimize_build
from optimize.config import OptimizeConfig
from recsys import dataset, trend
from recsys.contracts import artifact, packing
from recsys.contracts.protocol import Protocol
from recsys.dataset import Dataset, Histories, TestSet, ValidationSet
from recsys.evaluation.baselines import Cooccurrence, LastItem, Popularity, Trending
from recsys.evaluation.protocols import evaluate
from recsys.training import train
from recsys.training.config import Recipe
from recsys.transitions import TransitionTable
from tests.evaluation.test_protocols import Scored

NUM_ITEMS = 25


class Pair(NamedTuple):
    """Features of the log, and of the same with what the protocol holds out changed."""

    protocol: Protocol
    places: tuple[Path, Path]

    def load(self) -> list[Dataset]:
        return [dataset.load(features, self.protocol) for features in self.places]


def events() -> pl.DataFrame:
    """A small log: 60 users, each item of the ring after the other, one event every half an hour over a month."""
    generator = np.random.default_rng(2)
    user = generator.integers(0, 60, size=1_500)
    steps = {u: int(generator.integers(NUM_ITEMS)) for u in range(60)}
    items = []
    for u in user.tolist():
        steps[u] += 1
        items.append(f"i{steps[u] % NUM_ITEMS}")
    return pl.DataFrame(
        {
            "user_id": [f"u{u}" for u in user],
            "item_id": items,
            "timestamp": 1_600_000_000 + 1_800 * np.arange(len(user)),
            "event_type": generator.choice(["view", "cart", "purchase"], size=len(user)).tolist(),
        }
    )


def build_features(log: pl.DataFrame, folder: Path) -> Path:
    """Every event gives its item another title and price: what is known of an item before the cut is what counts."""
    item, moment = pl.col("item_id"), pl.col("timestamp")
    number = item.str.slice(1).cast(pl.UInt32, strict=False).fill_null(99)
    described = log.with_columns(
        title=pl.format("Thing {} of {}", item, moment),
        category=pl.format("c{}", number % 4),
        price=number.cast(pl.Float64) / 4 + moment % 7,
    )
    folder.mkdir()
    with gzip.open(folder / "log.csv.gz", "wb") as file:
        described.write_csv(file)
    build.run(FeaturesConfig(), [folder / "log.csv.gz"], folder / "features")
    return folder / "features"


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_features(events(), tmp_path_factory.mktemp("leaks") / "real")


@pytest.fixture(scope="module", params=[Protocol.TIME, Protocol.LAST_OUT])
def both(request: pytest.FixtureRequest, real: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    change = after_t if request.param is Protocol.TIME else last_events
    changed = build_features(change(events(), real), tmp_path_factory.mktemp("leaks") / "changed")
    return Pair(request.param, (real, changed))


def after_t(log: pl.DataFrame, features: Path) -> pl.DataFrame:
    """Users, items and event types after T shuffled, some of the items new."""
    before = pl.col("timestamp") * 1000 < dataset.load(features, Protocol.TIME).split_ms
    past, future = log.filter(before), log.filter(~before)
    generator = np.random.default_rng(7)
    shuffled = {name: generator.permutation(future[name].to_list()).tolist() for name in ("user_id", "event_type")}
    items = generator.permutation([*future["item_id"].to_list()[3:], "x", "x", "y"]).tolist()
    return pl.concat([past, future.with_columns(item_id=pl.Series(items), **_series(shuffled))])


def last_events(log: pl.DataFrame, features: Path) -> pl.DataFrame:
    """Items and event types of the users' last events shuffled among them, and these events a day later."""
    last = log["timestamp"] == log.select(pl.col("timestamp").max().over("user_id")).to_series()
    past, future = log.filter(~last), log.filter(last)
    generator = np.random.default_rng(7)
    shuffled = {name: generator.permutation(future[name].to_list()).tolist() for name in ("item_id", "event_type")}
    return pl.concat([past, future.with_columns(pl.col("timestamp") + 86_400, **_series(shuffled))])


def _series(columns: dict[str, list[str]]) -> dict[str, pl.Series]:
    return {name: pl.Series(values) for name, values in columns.items()}


def same(one: Histories, other: Histories) -> bool:
    fields = ("offsets", "tokens", "timestamps_ms", "event_types")
    return one.user_ids == other.user_ids and all(
        np.array_equal(getattr(one, field), getattr(other, field)) for field in fields
    )


def same_validation(one: ValidationSet, other: ValidationSet) -> bool:
    rows = [[row.tolist() for row in (*of.contexts, *of.targets, of.pruned)] for of in (one, other)]
    return same(one.train, other.train) and one.user_ids == other.user_ids and rows[0] == rows[1]


def test_what_is_held_out_differs_and_what_may_be_fitted_does_not(both: Pair) -> None:
    real, changed = both.load()
    held_out = [[row.tolist() for row in data.test_set().targets] for data in (real, changed)]
    types = [[row.tolist() for row in data.test_set().target_types] for data in (real, changed)]
    assert held_out[0] != held_out[1]
    assert types[0] != types[1]
    assert real.vocabulary.items == changed.vocabulary.items
    assert {item.category for item in real.vocabulary.items} == {"c0", "c1", "c2", "c3"}
    assert all(item.title and item.price is not None for item in real.vocabulary.items)
    assert same(real.fit, changed.fit)
    assert len(set(real.fit.event_types.tolist())) == 3
    assert same_validation(real.validation(20, seed=1), changed.validation(20, seed=1))
    if both.protocol is Protocol.TIME:
        assert real.split_ms == changed.split_ms


def trending(fit: Histories, num_items: int, data: Dataset) -> Trending:
    return Trending(fit, num_items, data.vocabulary.num_recent)


@pytest.mark.parametrize("kind", [Popularity, trending, LastItem, Cooccurrence])
def test_baselines_do_not_see_what_is_held_out(both: Pair, kind) -> None:
    others = [(data,) if kind is trending else () for data in both.load()]
    lists = [
        kind(data.fit, len(data.vocabulary), *other).rank(list(data.fit), 10)
        for data, other in zip(both.load(), others, strict=True)
    ]
    np.testing.assert_array_equal(lists[0], lists[1])


def test_what_is_taken_these_days_is_what_was_before_the_cut(real: Path) -> None:
    """Only of a log that is longer than those days can a leak into them be seen."""
    data = dataset.load(real, Protocol.TIME)
    assert 0 < data.vocabulary.num_recent.sum() < data.vocabulary.num_events.sum() / 2
    last_week = data.split_ms - data.fit.timestamps_ms <= trend.DAYS * 86_400_000
    counts = np.bincount(data.fit.tokens[last_week], minlength=len(data.vocabulary) + 1)
    np.testing.assert_array_equal(data.vocabulary.num_recent, counts)


@pytest.fixture(scope="module")
def checkpoints(both: Pair, tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same recipe and seed, trained on both."""
    folder = tmp_path_factory.mktemp("checkpoints")
    places = [folder / "real", folder / "changed"]
    for features, place in zip(both.places, places, strict=True):
        train.run(tiny_recipe, features, place, protocol=both.protocol)
    return places


def test_trained_weights_and_what_training_found_do_not_see_what_is_held_out(checkpoints: list[Path]) -> None:
    real, changed = ((place / "model.safetensors").read_bytes() for place in checkpoints)
    assert real == changed
    configs = [artifact.read_manifest(place).config for place in checkpoints]
    assert configs[0] == configs[1]
    assert {"fusion", "temperature", "new_items"} <= set(configs[0])


@pytest.mark.parametrize("both", [Protocol.TIME], indirect=True)
def test_fusion_and_the_table_of_a_release_do_not_see_what_is_held_out(both: Pair, checkpoints: list[Path]) -> None:
    found = []
    live = [dataset.load(features, Protocol.FINAL).vocabulary.items for features in both.places]
    assert live[0] != live[1]  # what goes live knows what things were called last
    for features, checkpoint in zip(both.places, checkpoints, strict=True):
        releases = checkpoint.with_name(f"{checkpoint.name}-releases")
        name, manifest = optimize_build.run(OptimizeConfig(bits=32), checkpoint, features, releases, force=True)
        found.append((manifest.config["fusion"], packing.read(releases / name / TransitionTable.FILE_NAME)))
    assert found[0] == found[1]


def targets_of(data: Dataset, test: TestSet) -> np.ndarray:
    """Scores of a model that is given the targets: 1 for each, 0 elsewhere."""
    scores = np.zeros((len(test.targets), len(data.vocabulary) + 1))
    for user, row in enumerate(test.targets):
        scores[user, row[row > 0]] = 1
    return scores


def test_a_model_given_the_targets_scores_1(real: Path) -> None:
    data = dataset.load(real, Protocol.TIME)
    test = data.test_set()
    assert all((row > 0).all() for row in test.targets)  # every target can be ranked
    most = max(len(set(row.tolist())) for row in test.targets)
    report = evaluate({"model": Scored(targets_of(data, test))}, test, len(data.vocabulary), Protocol.TIME, ks=(most,))
    model = report.to_json()["model"]
    perfect = [f"{name}@{most}" for name in ("recall", "ndcg", "hit_rate", "map")] + ["mrr"]
    assert {name: model[name] for name in perfect} == pytest.approx(dict.fromkeys(perfect, 1))


def _chance_of_map(num_known: np.ndarray, num_all: np.ndarray, num_items: int, k: int) -> np.ndarray:
    """A place j holds a hit with chance n / V, and each place before it then with (n - 1) / (V - 1)."""
    j = np.arange(1, k + 1)[:, None]
    precision = (1 + (j - 1) * (num_known - 1) / (num_items - 1)) / j
    return (num_known / num_items * precision).sum(axis=0) / num_all


def _chance_of_mrr(num_known: int, num_items: int, k: int) -> float:
    """The first hit is at place j if j - 1 misses come before it."""
    left, chance = 1.0, 0.0
    for j in range(1, k + 1):
        hit = num_known / (num_items - j + 1)
        chance += left * hit / j
        left *= 1 - hit
    return chance


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
    missed = np.array([np.prod(1 - n / (num_items - np.arange(k))) for n in num_known])  # places without any of n
    expected = {
        f"recall@{k}": (k / num_items) * num_known / num_all,
        f"ndcg@{k}": (num_known / num_items) * discount.sum() / ideal,
        f"hit_rate@{k}": 1 - missed,
        f"map@{k}": _chance_of_map(num_known, num_all, num_items, k),
        "mrr": np.array([_chance_of_mrr(int(n), num_items, k) for n in num_known]),
    }
    for name, chance in expected.items():
        error = (found[name] - chance).std() / num_users**0.5
        assert error < 0.05 * chance.mean(), name  # so that four of them are a narrow gate
        assert abs(found[name].mean() - chance.mean()) < 4 * error, name
