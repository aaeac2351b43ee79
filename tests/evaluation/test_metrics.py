import math
import warnings
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.evaluation.metrics import (
    average_precision_at_k,
    coverage_at_k,
    hit_rate_at_k,
    ndcg_at_k,
    per_user_metrics,
    recall_at_k,
    reciprocal_rank,
)

RANKED = [5, 3, 9, 1]
RELEVANT = {3, 1, 7}  # ranks 2 and 4; 7 is not listed
KS = (1, 3, 10)

lists = st.lists(st.integers(1, 30), max_size=15, unique=True)
targets = st.lists(st.integers(-5, 30).filter(bool), min_size=1, max_size=12)


def padded(rows: Sequence[Sequence[int]], length: int) -> np.ndarray:
    return np.array([[*row, *[0] * (length - len(row))] for row in rows], dtype=np.int32).reshape(len(rows), length)


def test_recall_is_the_share_of_relevant_items_found() -> None:
    assert [recall_at_k(RANKED, RELEVANT, k) for k in (1, 2, 3, 4, 9)] == [0, 1 / 3, 1 / 3, 2 / 3, 2 / 3]


def test_recall_divides_by_all_relevant_items_even_above_k() -> None:
    assert recall_at_k([1, 2], {1, 2, 3, 4}, 2) == 2 / 4


def test_hit_rate_is_one_from_the_first_hit_on() -> None:
    assert [hit_rate_at_k(RANKED, RELEVANT, k) for k in (1, 2, 4)] == [0, 1, 1]


def test_ndcg_is_discounted_gain_over_the_ideal_list() -> None:
    # rank 2 gains 1 / log2 3 = .63093, rank 4 gains 1 / log2 5 = .43068; ideal of 3: 1 + .63093 + .5 = 2.13093
    assert ndcg_at_k(RANKED, RELEVANT, 4) == pytest.approx((0.63093 + 0.43068) / 2.13093, abs=1e-5)
    # k = 2: ideal of min(2, 3) = 2 hits: 1 + .63093
    assert ndcg_at_k(RANKED, RELEVANT, 2) == pytest.approx(0.63093 / 1.63093, abs=1e-5)
    assert ndcg_at_k([3, 7, 1], RELEVANT, 3) == 1


def test_average_precision_is_the_mean_precision_at_the_relevant_items() -> None:
    # precision 1/2 at rank 2 and 2/4 at rank 4; the third relevant item is not listed and adds 0
    assert average_precision_at_k(RANKED, RELEVANT, 4) == pytest.approx((1 / 2 + 2 / 4) / 3)
    assert average_precision_at_k(RANKED, RELEVANT, 3) == pytest.approx((1 / 2) / 3)
    assert average_precision_at_k([3, 7, 1], RELEVANT, 3) == 1
    assert average_precision_at_k([3, 7, 1], RELEVANT, 2) == 2 / 3


def test_reciprocal_rank_is_of_the_first_hit() -> None:
    assert reciprocal_rank(RANKED, RELEVANT) == 1 / 2
    assert reciprocal_rank(RANKED, {8}) == 0
    assert reciprocal_rank([], {8}) == 0


def test_coverage_counts_each_listed_item_once() -> None:
    ranked = padded([[1, 2, 3], [2, 4], []], 3)
    assert coverage_at_k(ranked, 1, num_items=8) == 2 / 8  # 1, 2
    assert coverage_at_k(ranked, 2, num_items=8) == 3 / 8  # 1, 2, 4
    assert coverage_at_k(ranked, 9, num_items=8) == 4 / 8


def test_a_user_without_relevant_items_is_nan_not_zero() -> None:
    scalar = [metric([1], set(), 1) for metric in (recall_at_k, hit_rate_at_k, ndcg_at_k, average_precision_at_k)]
    assert all(map(math.isnan, [*scalar, reciprocal_rank([1], set())]))
    values = per_user_metrics(padded([[1], [1]], 1), [np.array([], dtype=np.int64), np.array([1])], [1])
    assert all(math.isnan(value[0]) and value[1] == 1 for value in values.values())


def test_items_outside_the_vocabulary_are_misses() -> None:
    values = per_user_metrics(padded([[4, 2]], 2), [np.array([4, -7, -7, -8])], [2])
    assert values["recall@2"] == [1 / 3]  # distinct targets 4, -7, -8
    assert values["mrr"] == [1]


@pytest.mark.parametrize("metric", [recall_at_k, hit_rate_at_k, ndcg_at_k, average_precision_at_k])
def test_bad_arguments_are_refused(metric) -> None:
    with pytest.raises(ValueError, match="k = 0, expected 1 or more"):
        metric([1], {1}, 0)
    with pytest.raises(ValueError, match="repeats an item"):
        metric([1, 2, 1], {1}, 1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1, 2, 1], "row 1 repeats an item"),
        ([1, 0, 2], "row 1 has padding before an item"),
        ([1, -2, 0], "row 1 holds a negative token"),
    ],
)
def test_broken_ranked_lists_are_refused(row: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        per_user_metrics(padded([[1, 2, 3], row], 3), [np.array([1])] * 2, [1])


def test_vectorised_path_refuses_bad_arguments() -> None:
    with pytest.raises(ValueError, match="k = 0"):
        per_user_metrics(padded([[1]], 1), [np.array([1])], [0])
    with pytest.raises(ValueError, match="1 ranked lists for 2 users"):
        per_user_metrics(padded([[1]], 1), [np.array([1])] * 2, [1])
    with pytest.raises(ValueError, match="user in row 1 has the padding token"):
        per_user_metrics(padded([[1], [1]], 1), [np.array([1]), np.array([1, 0])], [1])
    with pytest.raises(ValueError, match="tokens 0 to 9, expected 0 to 8"):
        coverage_at_k(padded([[0], [9]], 1), 1, num_items=8)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(lists, targets), min_size=1, max_size=6))
def test_vectorised_equals_scalar(users: list[tuple[list[int], list[int]]]) -> None:
    values = per_user_metrics(padded([row for row, _ in users], 15), [np.array(future) for _, future in users], KS)
    for user, (ranked, future) in enumerate(users):
        relevant = set(future)
        assert values["mrr"][user] == pytest.approx(reciprocal_rank(ranked, relevant))
        for k in KS:
            assert values[f"recall@{k}"][user] == pytest.approx(recall_at_k(ranked, relevant, k))
            assert values[f"hit_rate@{k}"][user] == hit_rate_at_k(ranked, relevant, k)
            assert values[f"ndcg@{k}"][user] == pytest.approx(ndcg_at_k(ranked, relevant, k))
            assert values[f"map@{k}"][user] == pytest.approx(average_precision_at_k(ranked, relevant, k))


@given(lists, targets)
def test_scalar_equals_a_naive_count(ranked: list[int], future: list[int]) -> None:
    for k in KS:
        found = [rank for rank in range(min(k, len(ranked))) if ranked[rank] in future]
        best = min(k, len(set(future)))
        gain = sum(math.log(2) / math.log(rank + 2) for rank in found)
        ideal = sum(math.log(2) / math.log(rank + 2) for rank in range(best))
        assert recall_at_k(ranked, set(future), k) == len(set(ranked[:k]) & set(future)) / len(set(future))
        assert hit_rate_at_k(ranked, set(future), k) == (1 if found else 0)
        assert ndcg_at_k(ranked, set(future), k) == pytest.approx(gain / ideal)
        precisions = [len([r for r in found if r <= rank]) / (rank + 1) for rank in found]
        assert average_precision_at_k(ranked, set(future), k) == pytest.approx(sum(precisions) / len(set(future)))


@given(lists, targets)
def test_recall_and_hit_rate_never_fall_with_k(ranked: list[int], future: list[int]) -> None:
    for metric in (recall_at_k, hit_rate_at_k):
        values = [metric(ranked, set(future), k) for k in range(1, 17)]
        assert values == sorted(values)


@given(lists, targets, st.integers(1, 15), st.randoms(use_true_random=False))
def test_order_beyond_k_changes_nothing(ranked: list[int], future: list[int], k: int, random) -> None:
    tail = ranked[k:]
    random.shuffle(tail)
    for metric in (recall_at_k, hit_rate_at_k, ndcg_at_k, average_precision_at_k):
        assert metric(ranked, set(future), k) == metric(ranked[:k] + tail, set(future), k)


@given(lists, targets, st.integers(1, 5))
def test_padding_changes_nothing(ranked: list[int], future: list[int], extra: int) -> None:
    short = per_user_metrics(padded([ranked], len(ranked)), [np.array(future)], KS)
    long = per_user_metrics(padded([ranked], len(ranked) + extra), [np.array(future)], KS)
    assert {name: value[0] for name, value in short.items()} == pytest.approx({n: v[0] for n, v in long.items()})


def test_vectorised_equals_ranx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")  # compiling takes a minute, running these few lists does not
    generator = np.random.default_rng(11)
    rows = [generator.permutation(40)[: generator.integers(3, 21)] + 1 for _ in range(50)]
    futures = [generator.choice([*range(1, 41), -3, -9], size=generator.integers(1, 9)) for _ in range(50)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numba's, of code that is not ours
        from ranx import Qrels, Run
        from ranx import evaluate as ranx_evaluate

        qrels = Qrels({f"u{u}": {f"i{i}": 1 for i in set(future)} for u, future in enumerate(futures)})
        run = Run({f"u{u}": {f"i{i}": 1 / (r + 1) for r, i in enumerate(row)} for u, row in enumerate(rows)})
        names = ["recall@10", "hit_rate@10", "ndcg@10", "map@10", "mrr"]
        ranx_evaluate(qrels, run, names)
    values = per_user_metrics(padded(rows, 20), futures, [10])
    for name in names:
        assert [run.scores[name][f"u{u}"] for u in range(50)] == pytest.approx(values[name].tolist()), name
