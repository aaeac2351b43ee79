from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys import dataset
from recsys.contracts.protocol import Protocol
from recsys.evaluation.baselines import Popularity
from recsys.evaluation.protocols import evaluate
from recsys.evaluation.segments import HISTORY_BOUNDS, _bands, by_segment
from tests.conftest import write_events
from tests.evaluation.test_protocols import Fixed

DAY = 86_400_000
T = 100 * DAY
# (user, item, day, type). Before day 100: item 1 three events, 2 two, 3 one (pruned at min_count 2). 4 comes after.
EVENTS = [
    *[("ann", 1, 0, 0)] * 21, ("ann", 2, 95, 0),
    ("bob", 2, 60, 1), ("bob", 3, 70, 0),
    ("ann", 1, 100, 1), ("ann", 3, 101, 0), ("ann", 1, 102, 0), ("ann", 4, 103, 0),
    ("bob", 2, 100, 0),
    ("new", 1, 104, 0), ("new", 4, 105, 0),
]  # fmt: skip


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("segments") / "features"
    events = pl.DataFrame(
        [(user, item, day * DAY, kind) for user, item, day, kind in EVENTS],
        schema={"user_id": pl.String, "item_index": pl.UInt32, "timestamp_ms": pl.Int64, "event_type": pl.UInt8},
        orient="row",
    )
    metrics = {"split_ms": T, "event_types": ["view", "purchase"], "has_timestamps": True}
    write_events(place, events, 4, metrics)
    return place


@pytest.fixture(scope="module")
def found(features: Path) -> dict[tuple[str, str], dict]:
    data = dataset.load(features, Protocol.TIME)
    test = data.test_set()
    # Everybody gets item 1 (token 1), then 2 (token 2).
    report = evaluate({"model": Fixed([1, 2])}, test, len(data.vocabulary), Protocol.TIME, ks=(1,))
    segments = by_segment(data, data.vocabulary, features, test, report, 1)
    return {(s.by, s.name): {**s.to_json(), **s.values["model"]} for s in segments}


def counts(row: dict) -> tuple[int, int]:
    return row["num_users"], row["num_targets"]


def test_history_length_divides_the_users(found) -> None:
    ann, bob = found["history length", "<= 200"], found["history length", "<= 20"]
    assert (counts(ann), counts(bob)) == ((1, 3), (1, 1))  # ann has 22 kept events and targets 1, 3, 4; bob 1
    assert (ann["recall@1"], bob["recall@1"]) == (1 / 3, 0)
    assert counts(found["history length", "> 2,048"]) == (0, 0)
    assert found["history length", "> 2,048"]["values"] == {"model": {}}


def test_item_segments_keep_only_their_targets(found) -> None:
    known, pruned, never = (
        found["item", name] for name in ("in the vocabulary", "seen before the cut, pruned", "first seen after the cut")
    )
    assert (counts(known), known["recall@1"]) == ((2, 2), 1 / 2)  # ann's 1 is found, bob's 2 is not
    assert (counts(pruned), pruned["recall@1"]) == ((1, 1), 0)  # ann's 3
    assert (counts(never), never["recall@1"]) == ((1, 1), 0)  # ann's 4


def test_item_age_is_time_since_the_first_event_of_the_item(found) -> None:
    assert counts(found["item age", "<= 7 days"]) == (1, 1)  # 4 at age 0
    assert counts(found["item age", "<= 30 days"]) == (0, 0)
    assert counts(found["item age", "<= 90 days"]) == (2, 2)  # 3 at age 31, 2 at age 40
    assert counts(found["item age", "> 90 days"]) == (1, 1)  # 1 at ages 100 and 102, one pair


def test_event_type_and_popularity(found) -> None:
    assert counts(found["event type", "purchase"]) == (1, 1)  # ann's first event on 1
    assert counts(found["event type", "view"]) == (2, 4)  # ann 3, 1, 4; bob 2
    assert found["event type", "purchase"]["recall@1"] == 1
    # Two items in the vocabulary: places 1/2 and 2/2, so none is in the top 1 % or 10 %.
    assert counts(found["item popularity", "10% to 100%"]) == (2, 2)
    assert counts(found["item popularity", "top 1%"]) == (0, 0)


def test_users_unknown_at_the_cut_are_a_segment_that_gets_popular_items(found) -> None:
    row = found["user", "no kept event before the cut"]
    assert (counts(row), row["recall@1"]) == ((1, 2), 1 / 2)  # "new" wants 1, the most popular, and 4


def test_parts_of_a_division_add_up_to_the_whole(features: Path) -> None:
    data = dataset.load(features, Protocol.TIME)
    test = data.test_set()
    ranker = Popularity(data.fit, len(data.vocabulary))
    report = evaluate({"popularity": ranker}, test, len(data.vocabulary), Protocol.TIME, ks=(2,))
    segments = by_segment(data, data.vocabulary, features, test, report, 2)
    for by in ("history length", "item age", "item"):
        assert sum(s.num_targets for s in segments if s.by == by) == report.num_targets, by
    lengths = [s for s in segments if s.by == "history length" and s.num_users]
    mean = sum(s.num_users * s.values["popularity"]["ndcg@2"] for s in lengths) / len(report.rows)
    assert mean == pytest.approx(float(np.mean(report.results["popularity"].headline["ndcg@2"])))


def test_last_out_prunes_nothing_and_still_knows_items_first_seen_in_the_test(features: Path) -> None:
    data = dataset.load(features, Protocol.LAST_OUT)
    test = data.test_set()
    report = evaluate({"model": Fixed([1, 2, 3, 4])}, test, len(data.vocabulary), Protocol.LAST_OUT, ks=(4,))
    rows = {(s.by, s.name): s.num_targets for s in by_segment(data, data.vocabulary, features, test, report, 4)}
    # ann's and new's last event is the only kind of event on item 4; bob's is on 2
    assert rows["item", "first seen after the cut"] == 2
    assert rows["item", "seen before the cut, pruned"] == 0
    assert rows["item", "in the vocabulary"] == 1


def test_a_bound_belongs_to_the_band_that_it_ends() -> None:
    bands = dict(_bands(np.array([1, 20, 21, 2_048, 2_049]), HISTORY_BOUNDS, " events"))
    assert list(bands) == ["<= 20 events", "<= 200 events", "<= 717 events", "<= 2,048 events", "> 2,048 events"]
    assert [np.flatnonzero(mask).tolist() for mask in bands.values()] == [[0, 1], [2], [], [3], [4]]
