import numpy as np
import pytest

from recsys.runtime.index import ItemIndex
from recsys.runtime.repeat import RepeatBoost, best, search, seen_items

INDEX = ItemIndex.build(np.array([[1.0], [2.0], [3.0], [4.0]], dtype=np.float32))
QUERY = np.array([[1.0]], dtype=np.float32)
NOTHING = np.empty(0, dtype=np.int32)


def ranked(history: list[int], boost: RepeatBoost, without: np.ndarray = NOTHING, k: int = 4) -> list[int]:
    return search(INDEX, QUERY, np.array(history, dtype=np.int32), k, without, boost)[0].tolist()


def test_seen_items_by_hand() -> None:
    tokens, times, since = seen_items(np.array([7, 5, 7, 9], dtype=np.int32))
    assert (tokens.tolist(), times.tolist(), since.tolist()) == ([5, 7, 9], [1, 2, 1], [2, 1, 0])


def test_a_boost_lifts_what_was_seen_and_zero_changes_nothing() -> None:
    assert ranked([1], RepeatBoost()) == [4, 3, 2, 1]
    assert ranked([1], RepeatBoost(base=2.5)) == [4, 1, 3, 2]  # 1 + 2.5
    assert ranked([4], RepeatBoost(base=-9.0)) == [3, 2, 1, 4]


def test_frequency_and_recency_by_hand() -> None:
    # token 1 twice, last 1 event ago: 1 + 3 ln 2 - ln 2 = 2.39; token 2 once, just now: 2 + 0 = 2
    boost = RepeatBoost(frequency=3.0, recency=1.0)
    tokens, scores = search(INDEX, QUERY, np.array([1, 1, 2], dtype=np.int32), 4, NOTHING, boost)
    assert tokens.tolist() == [4, 3, 1, 2]
    assert scores.tolist() == pytest.approx([4, 3, 1 + 2 * np.log(2), 2])


def test_what_is_excluded_is_not_lifted_back() -> None:
    assert ranked([1, 2], RepeatBoost(base=9.0), np.array([1, 4], dtype=np.int32)) == [2, 3, 0, 0]


def test_ties_go_by_token_and_gaps_are_padding() -> None:
    tokens, scores = best(np.array([3, 2]), np.array([1.0, 1.0]), 3)
    assert tokens.tolist() == [2, 3, 0]
    assert scores[2] == -np.inf
