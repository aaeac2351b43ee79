import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys import dataset
from recsys.contracts.protocol import Protocol
from recsys.evaluation.baselines import Popularity, Ranker
from recsys.evaluation.divisions import HISTORY_BOUNDS, NEVER_SEEN, bands
from recsys.evaluation.lists import ListFacts, list_values
from recsys.evaluation.metrics import distinct_pairs
from recsys.evaluation.protocols import Report, evaluate
from recsys.evaluation.segments import Question, Segment, by_segment
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


def segments_of(
    features: Path, rankers: dict[str, Ranker], k: int, metric: str, against: str | None = None,
    protocol: Protocol = Protocol.TIME, ks: tuple[int, ...] = (),
) -> tuple[list[Segment], Report]:  # fmt: skip
    data = dataset.load(features, protocol)
    test = data.test_set()
    report = evaluate(rankers, test, len(data.vocabulary), protocol, ks=ks or (k,))
    seen = distinct_pairs([test.contexts[row] for row in report.rows])
    facts = ListFacts.of(data.fit, len(data.vocabulary))
    lists = {name: list_values(result.ranked, seen, facts, k) for name, result in report.results.items()}
    question = Question(k=k, metric=metric, against=against)
    nobody = {name: ranker.rank([np.empty(0, dtype=np.int32)], max(ks or (k,)))[0] for name, ranker in rankers.items()}
    return by_segment(data, data.vocabulary, test, report, question, facts, lists, nobody), report


@pytest.fixture(scope="module")
def found(features: Path) -> dict[tuple[str, str], dict]:
    """Everybody gets item 1 (token 1), then 2 (token 2); of B the other way round."""
    rankers = {"model": Fixed([1, 2]), "b": Fixed([2, 1])}
    segments, _ = segments_of(features, rankers, 1, "map@2", "b", ks=(1, 2))
    return {(s.by, s.name): {**s.to_json(), **s.values["model"]} for s in segments}


def counts(row: dict) -> tuple[int, int]:
    return row["num_users"], row["num_targets"]


def test_history_length_divides_the_users(found) -> None:
    ann, bob = found["history length", "<= 200"], found["history length", "<= 20"]
    assert (counts(ann), counts(bob)) == ((1, 3), (1, 1))  # ann has 22 kept events and targets 1, 3, 4; bob 1
    assert (ann["recall@1"], bob["recall@1"]) == (1 / 3, 0)
    assert counts(found["history length", "> 2,048"]) == (0, 0)
    assert found["history length", "> 2,048"]["values"] == {"model": {}, "b": {}}
    assert found["history length", "> 2,048"]["difference"] is None


ACCURACY = {"recall@1", "hit_rate@1", "ndcg@1", "map@1", "mrr", "map@2"}
LISTS = {"coverage@1", "gini@1", "novelty@1", "diversity@1", "repeat_share@1"}


def test_segments_of_users_have_every_metric(found) -> None:
    ann, bob = (found["history length", name]["values"]["model"] for name in ("<= 200", "<= 20"))
    assert set(ann) == ACCURACY | LISTS
    # ann wants 1, 3, 4, and had 1 and 2; bob wants 2, and had 2. Shown is 1, then 2.
    of_ann = {"hit_rate@1": 1, "ndcg@1": 1, "map@1": 1 / 3, "map@2": 1 / 3, "mrr": 1, "repeat_share@1": 1}
    of_bob = {"hit_rate@1": 0, "ndcg@1": 0, "map@1": 0, "map@2": 1 / 2, "mrr": 1 / 2, "repeat_share@1": 0}
    # 21 of the 23 fitted events on kept items are on 1; one of two items is shown, to everybody
    of_both = {"novelty@1": math.log2(23 / 21), "coverage@1": 1 / 2, "gini@1": 1, "diversity@1": None}
    assert ann == pytest.approx({"recall@1": 1 / 3} | of_ann | of_both)
    assert bob == pytest.approx({"recall@1": 0} | of_bob | of_both)


def test_diversity_of_a_segment_is_that_of_its_users_lists(features: Path) -> None:
    segments, _ = segments_of(features, {"model": Fixed([1, 2])}, 2, "mrr")
    # ann had 1, ann and bob had 2
    values = {s.name: s.values["model"]["diversity@2"] for s in segments if s.by == "history length" and s.num_users}
    assert values == pytest.approx({"<= 20": 1 - 1 / math.sqrt(2), "<= 200": 1 - 1 / math.sqrt(2)})


def test_segments_of_targets_have_the_metrics_of_accuracy(found) -> None:
    known, pruned = (found["item", name]["values"]["model"] for name in ("in the vocabulary", NEVER_SEEN))
    # ann's 1 is at the first place, bob's 2 at the second
    by_hand = {"recall@1": 1 / 2, "hit_rate@1": 1 / 2, "ndcg@1": 1 / 2, "map@1": 1 / 2, "map@2": 3 / 4, "mrr": 3 / 4}
    assert known == by_hand
    assert pruned == dict.fromkeys(ACCURACY, 0)


def test_the_primary_metric_of_a_segment_is_compared_by_user(found) -> None:
    def difference(by: str, name: str) -> tuple[float, ...]:
        row = found[by, name]["difference"]
        return row["difference"], row["low"], row["high"], row["num_users"]

    # MAP@2 of ann's list is 1/3 against 1/6, of bob's 1/2 against 1
    assert difference("history length", "<= 200") == pytest.approx((1 / 6, 1 / 6, 1 / 6, 1))
    assert difference("history length", "<= 20") == (-1 / 2, -1 / 2, -1 / 2, 1)
    # of 1 alone, ann's is 1 against 1/2: the interval holds a user twice, or both
    assert difference("item", "in the vocabulary") == (0, -1 / 2, 1 / 2, 2)
    assert found["item", NEVER_SEEN]["difference"]["relative"] is None  # 0 by 0


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


def test_users_unknown_at_the_cut_are_a_segment_that_gets_what_each_ranker_has_for_nobody(found) -> None:
    row = found["user", "no kept event before the cut"]
    assert (counts(row), row["recall@1"]) == ((1, 2), 1 / 2)  # "new" wants 1 and 4; 4 was never seen
    assert {
        name: row[name] for name in ("mrr", "coverage@1", "gini@1", "repeat_share@1", "novelty@1")
    } == pytest.approx(
        {"mrr": 1, "coverage@1": 1 / 2, "gini@1": 1, "repeat_share@1": 0, "novelty@1": math.log2(23 / 21)}
    )
    assert (row["values"]["b"]["recall@1"], row["values"]["b"]["mrr"]) == (0, 1 / 2)
    assert row["difference"]["difference"] == 1 / 2 - 1 / 4  # of MAP@2


def test_parts_of_a_division_add_up_to_the_whole(features: Path) -> None:
    data = dataset.load(features, Protocol.TIME)
    rankers = {"popularity": Popularity(data.fit, len(data.vocabulary))}
    segments, report = segments_of(features, rankers, 2, "ndcg@2")
    for by in ("history length", "item age", "item"):
        assert sum(s.num_targets for s in segments if s.by == by) == report.num_targets, by
    lengths = [s for s in segments if s.by == "history length" and s.num_users]
    mean = sum(s.num_users * s.values["popularity"]["ndcg@2"] for s in lengths) / len(report.rows)
    assert mean == pytest.approx(float(np.mean(report.results["popularity"].headline["ndcg@2"])))


def test_last_out_prunes_nothing_and_still_knows_items_first_seen_in_the_test(features: Path) -> None:
    segments, _ = segments_of(features, {"model": Fixed([1, 2, 3, 4])}, 4, "mrr", protocol=Protocol.LAST_OUT)
    rows = {(s.by, s.name): s.num_targets for s in segments}
    # ann's and new's last event is the only kind of event on item 4; bob's is on 2
    assert rows["item", "first seen after the cut"] == 2
    assert rows["item", "seen before the cut, pruned"] == 0
    assert rows["item", "in the vocabulary"] == 1


def test_a_bound_belongs_to_the_band_that_it_ends() -> None:
    found = dict(bands(np.array([1, 20, 21, 2_048, 2_049]), HISTORY_BOUNDS, " events"))
    assert list(found) == ["<= 20 events", "<= 200 events", "<= 717 events", "<= 2,048 events", "> 2,048 events"]
    assert [np.flatnonzero(mask).tolist() for mask in found.values()] == [[0, 1], [2], [], [3], [4]]
