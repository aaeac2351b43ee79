"""Choices of the shop: what pruning counts, which event types make the history, which are targets."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.build import FeaturesConfig, run
from features.bulk import BulkConfig, days
from features.generations import num_to_merge
from features.pruning import cost
from features.spill import partitions_for
from recsys import dataset
from recsys.contracts.protocol import Protocol
from recsys.contracts.pruning import PruningPolicy

S = 1_600_000_000
DAY = 86_400
# item a: three views on day 0; b: a view and a purchase on day 2; c: a cart on day 2
LOG = "user_id,item_id,timestamp,event_type\n" + "".join(
    f"{user},{item},{S + day * DAY + n},{kind}\n"
    for n, (user, item, day, kind) in enumerate(
        [
            ("ann", "a", 0, "view"),
            ("bob", "a", 0, "view"),
            ("ann", "a", 0, "view"),
            ("ann", "b", 2, "view"),
            ("ann", "b", 2, "purchase"),
            ("cat", "c", 2, "cart"),
        ]
    )
)


def build(place: Path, **options: Any) -> Path:
    (place / "log.csv").write_text(LOG)
    run(FeaturesConfig.from_mapping(options, "test"), [place / "log.csv"], place / "out")
    return place / "out"


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"min_count": 1}, "abc"),
        ({"min_count": 2}, "ab"),
        ({"min_count": 3}, "a"),
        ({"min_count": 1, "count_types": ["purchase", "cart"]}, "bc"),
        ({"min_count": 1, "count_period_days": 1}, "bc"),
        ({"min_count": 6, "count_by_weight": True, "event_weights": {"purchase": 5, "cart": 2.5}}, "b"),
        ({"min_count": 2, "count_by_weight": True, "event_weights": {"view": 0.5, "cart": 2}}, "c"),
    ],
)
def test_the_pruning_policy_decides_in_the_artifact_and_in_the_reader(
    tmp_path: Path, options: dict[str, Any], kept: str
) -> None:
    out = build(tmp_path, **options)
    items = pl.read_parquet(out / "items.parquet")
    assert "".join(items.filter("kept")["item_id"]) == kept
    data = dataset.load(out, Protocol.FINAL)
    assert "".join(item.item_id for item in data.vocabulary.items) == kept


@pytest.mark.parametrize(
    ("scores", "least"),
    [
        ([1000, 4, 4], 5),  # 8 of 1,008 events are lost
        ([1000, 4, 4, 3], 4),  # 11 of 1,011 would be: those of 3 alone go
        ([1000, 1, *[4] * 20], 4),
        ([1] * 50, 1),
        ([], 5),
    ],
)
def test_a_threshold_that_nobody_chose_loses_little(scores: list[int], least: int) -> None:
    policy = PruningPolicy()
    assert policy.least(np.array(scores, dtype=np.float64)) == least
    assert PruningPolicy(min_count=3).least(np.array(scores, dtype=np.float64)) == 3


def test_a_sparse_log_keeps_its_items(tmp_path: Path) -> None:
    rows = [f"u{n % 7},i{n // 2},{S + n}" for n in range(140)]  # 70 items of two events each
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    metrics = run(FeaturesConfig(), [tmp_path / "log.csv"], tmp_path / "out").metrics
    assert (metrics["pruning"]["min_count"], metrics["num_items_kept"]) == (2, 70)
    assert len(dataset.load(tmp_path / "out", Protocol.FINAL).vocabulary) == 70
    metrics = run(FeaturesConfig(min_count=2), [tmp_path / "log.csv"], tmp_path / "out").metrics
    assert (metrics["pruning"]["min_count"], metrics["num_items_kept"]) == (2, 70)


def test_a_counting_period_reads_nights_with_and_without_event_ids(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    config = FeaturesConfig(min_count=1, count_period_days=30)
    for name, text in {
        "a.csv": f"user_id,item_id,timestamp,event_id\nann,a,{S},e1\n",
        "b.csv": f"user_id,item_id,timestamp\nbob,b,{S}\n",
        "c.csv": f"user_id,item_id,timestamp\ncat,c,{S + 40 * DAY}\n",
    }.items():
        (tmp_path / "log" / name).write_text(text)
        if name != "a.csv":
            run(config, [tmp_path / "log"], tmp_path / "out")
        if name == "b.csv":  # accept files without event ids from now on
            run(config, [tmp_path / "log"], tmp_path / "out", full=True)
    assert pl.read_parquet(tmp_path / "out" / "items.parquet").filter("kept")["item_id"].to_list() == ["c"]


def test_the_report_says_what_each_threshold_costs(tmp_path: Path) -> None:
    out = build(tmp_path, min_count=1)
    rows = dataset.load(out, Protocol.FINAL).manifest.metrics["pruning"]["thresholds"]
    found = {
        r["min_count"]: (r["num_items_kept"], r["events_lost"], r["users_lost"]) for r in rows if r["min_count"] < 5
    }
    # a 3 events, b 2, c 1; cat has nothing but c
    assert found == {1: (3, 0.0, 0.0), 2: (2, round(1 / 6, 6), round(1 / 3, 6)), 3: (1, 0.5, round(1 / 3, 6))}


def test_no_user_gives_no_share() -> None:
    items = pl.DataFrame({"num_events": pl.Series([2], dtype=pl.UInt32)})
    empty = pl.DataFrame(schema={"user_index": pl.UInt32, "item_index": pl.UInt32})
    assert cost(5, items, np.array([2.0]), empty)[0]["users_lost"] == 0.0


def test_types_are_kept_beside_the_items_with_the_times(tmp_path: Path) -> None:
    fit = dataset.load(build(tmp_path, min_count=1), Protocol.FINAL).fit
    assert fit.event_types is not None
    kinds = ["view", "purchase", "cart"]
    assert [[kinds[k] for k in fit.event_types[fit.offsets[u] : fit.offsets[u + 1]]] for u in range(3)] == [
        ["view", "view", "view", "purchase"],
        ["view"],
        ["cart"],
    ]
    assert fit.timestamps_ms.tolist()[:2] == [S * 1000, (S + 2) * 1000]


def test_history_and_target_types_are_a_choice_of_the_reader(tmp_path: Path) -> None:
    out = build(tmp_path, min_count=1, history_types=["view"], target_types=["purchase", "cart"])
    assert len(pl.concat([pl.read_parquet(p) for p in out.glob("histories/*/*")])) == 6  # stored in any case
    final = dataset.load(out, Protocol.FINAL)
    assert {u: final.fit[n].tolist() for n, u in enumerate(final.fit.user_ids)} == {"ann": [1, 1, 2], "bob": [1]}
    test = dataset.load(out, Protocol.LAST_OUT).test_set()
    assert test.contexts.user_ids == ["ann"]
    assert [target.tolist() for target in test.targets] == [[2]]  # the purchase of b; views before it are context
    assert test.num_cold_users == 1  # cat has a cart and no view


def test_a_users_events_after_the_held_out_one_are_not_fitted(tmp_path: Path) -> None:
    out = build(tmp_path, min_count=1, target_types=["view"])
    data = dataset.load(out, Protocol.LAST_OUT)
    assert {u: data.fit[n].tolist() for n, u in enumerate(data.fit.user_ids)} == {"ann": [1, 1], "cat": [3]}


@given(st.dictionaries(st.sampled_from("xyz"), st.floats(0, 10)), st.lists(st.sampled_from("xyz"), unique=True))
def test_a_type_scores_its_weight_or_one_and_only_where_it_counts(
    weights: dict[str, float], counted: list[str]
) -> None:
    policy = PruningPolicy(event_weights=weights, count_types=tuple(counted), count_by_weight=True)
    expected = [weights.get(kind, 1.0) if not counted or kind in counted else 0.0 for kind in "xyz"]
    assert policy.type_scores("xyz").tolist() == expected


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=60))
def test_generations_stay_few_and_fall_in_size(nights: list[int]) -> None:
    sizes: list[int] = []
    for night in nights:
        sizes.append(night)
        count = num_to_merge(sizes)
        sizes[-count:] = [sum(sizes[-count:])]
    assert sum(sizes) == sum(nights)
    assert all(newer * 2 <= older for older, newer in pairwise(sizes))


@given(st.integers(0, 10**9), st.integers(1, 10**7))
def test_partitions_are_a_power_of_two_that_bounds_their_size(num_events: int, most: int) -> None:
    number = partitions_for(num_events, most)
    assert number & (number - 1) == 0
    assert number * most >= num_events or number == 4096
    assert number == 1 or number * most < 2 * num_events


def test_bulk_logs_have_zipf_items_and_long_tailed_histories() -> None:
    config = BulkConfig(num_users=3_000, num_items=500, num_events=300_000, num_days=3)
    log = pl.concat(list(days(config)))
    assert log.equals(pl.concat(list(days(config))))
    assert len(log) == 300_000
    assert log["timestamp"].is_sorted()
    per_user = log.group_by("user_id").len()["len"]
    assert per_user.max() > 10_000
    assert per_user.median() < per_user.mean()
    per_item = log.group_by("item_id").len()["len"].sort(descending=True)
    # Zipf with shift 10: the share of rank r is proportional to 1 / (r + 10)
    assert per_item[0] / per_item[10] == pytest.approx(20 / 10, rel=0.1)
    assert set(log["event_type"]) == {"view", "cart", "purchase"}
