import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.dataset import Histories
from recsys.evaluation import baselines
from recsys.evaluation.baselines import Cooccurrence, LastItem, Popularity, Trending, top_k


def histories(*rows: list[int]) -> Histories:
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    tokens = np.concatenate([np.empty(0), *rows]).astype(np.int32)
    return Histories([f"u{u}" for u in range(len(rows))], offsets, tokens, np.arange(len(tokens), dtype=np.int64))


def row(*tokens: int) -> np.ndarray:
    return np.array(tokens, dtype=np.int32)


# Events per item: 1 once, 2 twice, 3 three times, 4 once, 5 never.
FIT = histories([3, 2, 3], [2, 3, 1, 4])
ALL = [Popularity, LastItem, Cooccurrence]


def test_popularity_orders_by_events_then_token() -> None:
    assert Popularity(FIT, 5).rank([row(), row(1)], 4).tolist() == [[3, 2, 1, 4], [3, 2, 1, 4]]


def test_trending_orders_by_events_of_the_last_week_then_by_all() -> None:
    of_late = np.array([0, 1, 0, 2, 1, 0])  # 3 twice, 1 and 4 once
    assert Trending(FIT, 5, of_late).rank([row()], 5).tolist() == [[3, 1, 4, 2, 5]]
    nobody = np.zeros(6, dtype=np.int64)
    assert Trending(FIT, 5, nobody).rank([row()], 5).tolist() == Popularity(FIT, 5).rank([row()], 5).tolist()


def test_last_item_is_recency_of_distinct_items_then_popularity() -> None:
    assert LastItem(FIT, 5).rank([row(1, 4, 5, 4)], 5).tolist() == [[4, 5, 1, 3, 2]]


def test_cooccurrence_by_hand() -> None:
    # window 2. User 0: 3→2 1, 3→3 1/2, 2→3 1. User 1: 2→3 1, 2→1 1/2, 3→1 1, 3→4 1/2, 1→4 1.
    # From 3: 2 1, 3 1/2, 1 1, 4 1/2, sum 3. From 2: 3 2, 1 1/2, sum 5/2.
    ranker = Cooccurrence(FIT, 5, window=2)
    assert ranker._follows_VV.toarray()[3] == pytest.approx([0, 1 / 3, 1 / 3, 1 / 6, 1 / 6, 0])
    assert ranker._follows_VV.toarray()[2] == pytest.approx([0, 0.2, 0, 0.8, 0, 0])
    # Last event 3: ties 1 = 2 > 3 = 4 by token, then popular 5.
    assert ranker.rank([row(3)], 5).tolist() == [[1, 2, 3, 4, 5]]
    # 3 then 2: from 2 in full, from 3 in half: 1 .2 + .167, 2 .167, 3 .8 + .083, 4 .083.
    assert ranker.rank([row(3, 2)], 5).tolist() == [[3, 1, 2, 4, 5]]


def test_cooccurrence_counts_no_pair_across_users() -> None:
    ranker = Cooccurrence(histories([1, 2], [3, 4]), 4, window=3)
    assert set(zip(*(axis.tolist() for axis in ranker._follows_VV.nonzero()), strict=True)) == {(1, 2), (3, 4)}


def test_cooccurrence_equals_all_pairs_counted_naively() -> None:
    generator = np.random.default_rng(4)
    rows = [generator.integers(1, 9, size=generator.integers(1, 12)).tolist() for _ in range(20)]
    counts = np.zeros((9, 9))
    for events in rows:
        for i in range(len(events)):
            for j in range(i + 1, min(i + 4, len(events))):
                counts[events[i], events[j]] += 1 / (j - i)
    expected = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-9)
    assert Cooccurrence(histories(*rows), 8, window=3)._follows_VV.toarray() == pytest.approx(expected, abs=1e-6)


def test_cooccurrence_without_known_followers_is_popularity() -> None:
    assert Cooccurrence(FIT, 5).rank([row(5), row()], 3).tolist() == [[3, 2, 1], [3, 2, 1]]


@pytest.mark.parametrize("kind", ALL)
def test_lists_are_distinct_allowed_and_padded(kind) -> None:
    excluded = [row(3, 1), row(), row(1, 2, 3, 4, 5)]
    ranked = kind(FIT, 5).rank([row(3, 1), row(2), row(4)], 6, excluded)
    assert ranked.dtype == np.int32
    assert [sorted(line.tolist()) for line in ranked] == [[0, 0, 0, 2, 4, 5], [0, 1, 2, 3, 4, 5], [0] * 6]
    assert (np.sort(ranked == 0, axis=1) == (ranked == 0)).all()


@pytest.mark.parametrize("kind", ALL)
def test_batch_equals_one_at_a_time(kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "_ROWS_AT_ONCE", 3)
    generator = np.random.default_rng(0)
    fit = histories(*(generator.integers(1, 31, size=20).tolist() for _ in range(10)))
    ranker = kind(fit, 30)
    together = ranker.rank(list(fit), 12, list(fit))
    alone = [ranker.rank([fit[u]], 12, [fit[u]])[0] for u in range(10)]
    assert together.tolist() == [line.tolist() for line in alone]


@pytest.mark.parametrize("kind", ALL)
def test_bad_arguments_are_refused(kind) -> None:
    with pytest.raises(ValueError, match="k = 0, expected 1 or more"):
        kind(FIT, 5).rank([row(1)], 0)
    with pytest.raises(ValueError, match="1 lists to exclude for 2 histories"):
        kind(FIT, 5).rank([row(1), row(2)], 3, [row()])
    with pytest.raises(ValueError, match="fitted events hold token 4, expected at most 3"):
        kind(FIT, 3)


def test_cooccurrence_refuses_an_empty_window() -> None:
    with pytest.raises(ValueError, match="window = 0, num_last = 10"):
        Cooccurrence(FIT, 5, window=0)


def test_top_k_breaks_ties_by_token_and_never_lists_padding() -> None:
    scores = np.array([[9, 1, 2, 2, 2, 1], [9, 0, 0, 0, 0, 0]], dtype=np.float32)
    assert top_k(scores, 2).tolist() == [[2, 3], [1, 2]]
    assert top_k(scores, 4, [row(3), row(1, 5)]).tolist() == [[2, 4, 1, 5], [2, 3, 4, 0]]
    assert scores[0, 0] == 9  # unchanged


def test_top_k_refuses_what_it_cannot_order() -> None:
    with pytest.raises(ValueError, match="a score is nan"):
        top_k(np.array([[0, np.nan, 1]]), 1)
    with pytest.raises(ValueError, match="exclude holds tokens -1 to 2, expected 1 to 2"):
        top_k(np.zeros((1, 3)), 1, [row(-1, 2)])
    with pytest.raises(ValueError, match="k = 0"):
        top_k(np.zeros((1, 3)), 0)


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([-np.inf, -1.0, -0.0, 0.0, 0.5, 2.0]), min_size=2, max_size=20),
    st.integers(1, 25),
    st.data(),
)
def test_top_k_equals_a_full_sort(scores: list[float], k: int, data: st.DataObject) -> None:
    out = data.draw(st.sets(st.integers(1, len(scores) - 1)))
    allowed = [t for t in range(1, len(scores)) if t not in out and scores[t] > -np.inf]
    expected = sorted(allowed, key=lambda t: (-scores[t], t))[:k]
    ranked = top_k(np.array([scores]), k, [row(*out)])[0].tolist()
    assert ranked == expected + [0] * (k - len(expected))
