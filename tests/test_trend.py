"""What is taken these days: counts, shifts, and the road into a release."""

from dataclasses import replace

import numpy as np

from recsys import trend
from recsys.contracts.ids import Item, Vocabulary
from recsys.contracts.pruning import DAY_MS
from recsys.runtime.fusion import Fusion
from recsys.runtime.new_items import NewItems
from recsys.runtime.release import shifts

KEPT = [Item(item_id=name, item_index=n, num_events=9, num_recent=n - 1) for n, name in enumerate("abc", start=1)]
NEW = Item(item_id="d", item_index=4, num_events=1, num_recent=7, is_new=True)


def test_events_of_the_last_seven_days_count() -> None:
    end_ms = 30 * DAY_MS
    ages = np.array([1, 7 * DAY_MS, 7 * DAY_MS + 1])  # ms before the end
    tokens = np.array([2, 2, 3], dtype=np.int32)
    assert trend.num_recent(tokens, end_ms - ages, end_ms, 3).tolist() == [0, 0, 2, 0]
    assert trend.num_recent(tokens, end_ms - ages, None, 3).tolist() == [0, 0, 0, 0]


def test_a_wrong_clock_does_not_move_the_week() -> None:
    moments = np.append(np.arange(1_000), 30 * DAY_MS)
    assert trend.end_of(moments) == 999
    assert trend.end_of(moments[:0]) is None
    counted = trend.num_recent(np.append(np.full(1_000, 2), 1), moments, trend.end_of(moments), 2)
    assert counted.tolist() == [0, 1, 1_000]


def test_what_may_not_be_predicted_does_not_count() -> None:
    assert trend.num_recent(np.array([0, 2], dtype=np.int32), np.array([5, 5]), 9, 2).tolist() == [0, 0, 1]


def test_a_release_shifts_kept_items_by_their_trend_and_new_ones_by_theirs() -> None:
    both, fusion, new = Vocabulary([*KEPT, NEW]), Fusion(trend=2.0), NewItems(shift=-3.0)
    assert np.allclose(shifts(both, new, fusion), [0, 2 * np.log(2), 2 * np.log(3), -3])
    assert np.allclose(shifts(Vocabulary(KEPT), new, fusion), [0, 2 * np.log(2), 2 * np.log(3)])
    assert np.allclose(shifts(both, new, Fusion()), [0, 0, 0, -3])


def test_nothing_is_shifted_without_a_weight_or_without_dates() -> None:
    assert shifts(Vocabulary(KEPT), NewItems(), Fusion()) is None
    undated = Vocabulary([replace(item, num_recent=0) for item in KEPT])
    assert shifts(undated, NewItems(), Fusion(trend=2.0)) is None
