import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.evaluation import lists
from recsys.evaluation.lists import ListFacts, diversity, gini, list_means, list_values, novelty, repeat_share
from recsys.evaluation.metrics import distinct_pairs
from tests.evaluation.test_baselines import histories

NUM_ITEMS = 6
# Events: 1 four times, 2 twice, 3 once, 4 once; 8 in all. Users: 1 {u0, u1, u2}, 2 {u0, u1}, 3 {u2}, 4 {u1}.
FIT = histories([1, 1, 2], [1, 2, 4], [1, 3])
FACTS = ListFacts.of(FIT, NUM_ITEMS)

ranked_lists = st.lists(st.lists(st.integers(1, NUM_ITEMS), max_size=4, unique=True), min_size=1, max_size=5)


def padded(*rows: list[int], length: int = 4) -> np.ndarray:
    return np.array([[*row, *[0] * (length - len(row))] for row in rows], dtype=np.int32)


def test_novelty_is_the_mean_number_of_bits() -> None:
    # 1 is half of all events: 1 bit; 2 a quarter: 2 bits; 3 an eighth: 3 bits; 5 has none and counts as one event
    values = novelty(padded([1], [1, 2], [3, 5], []), FACTS.num_events_V)
    assert values[:3].tolist() == [1, 1.5, 3]
    assert math.isnan(values[3])


def test_repeat_share_is_of_the_items_listed() -> None:
    values = repeat_share(padded([1, 2, 3], [4], []), distinct_pairs([np.array(r) for r in ([2, 2, 9], [1], [1])]))
    assert values[:2].tolist() == [1 / 3, 0]
    assert math.isnan(values[2])


def test_diversity_is_one_minus_the_cosine_of_users() -> None:
    # 1 and 2 share u0, u1 of 3 and 2 users: cosine 2 / √6. 1 and 3: 1 / √3. 2 and 3: 0. 5 has no user.
    values = diversity(padded([1, 2], [1, 2, 3], [1, 5], [1], []), FACTS.users_of_item)
    assert values[0] == pytest.approx(1 - 2 / 6**0.5)
    assert values[1] == pytest.approx(1 - (2 / 6**0.5 + 1 / 3**0.5 + 0) / 3)
    assert values[2] == 1  # nobody had 5
    assert np.isnan(values[3:]).all()


def test_gini_is_0_if_all_are_shown_alike_and_1_if_one_is_shown() -> None:
    assert gini(padded([1, 2], [3, 4]), 4) == 0
    assert gini(padded([2], [2], [2]), 4) == 1
    # counts 0, 0, 1, 3 of 4 items: (−3·0 − 1·0 + 1·1 + 3·3) / (3 · 4)
    assert gini(padded([1, 2], [1], [1]), 4) == pytest.approx(10 / 12)
    assert math.isnan(gini(padded([]), 4))
    assert math.isnan(gini(padded([1]), 1))


@settings(deadline=None)
@given(ranked_lists)
def test_every_metric_equals_a_naive_count(rows: list[list[int]]) -> None:
    ranked, contexts = padded(*rows), [FIT[u % 3] for u in range(len(rows))]
    had = [{u for u in range(3) if item in FIT[u]} for item in range(NUM_ITEMS + 1)]
    values = {
        "novelty": novelty(ranked, FACTS.num_events_V),
        "diversity": diversity(ranked, FACTS.users_of_item),
        "repeat": repeat_share(ranked, distinct_pairs(contexts)),
    }
    for user, row in enumerate(rows):
        if row:
            bits = [-math.log2(max(1, int((FIT.tokens == item).sum())) / 8) for item in row]
            assert values["novelty"][user] == pytest.approx(sum(bits) / len(row))
            assert values["repeat"][user] == pytest.approx(sum(i in contexts[user] for i in row) / len(row))
        if len(row) > 1:
            pairs = list(itertools.combinations(row, 2))
            cosines = [len(had[i] & had[j]) / max(1e-9, math.sqrt(len(had[i]) * len(had[j]))) for i, j in pairs]
            assert values["diversity"][user] == pytest.approx(1 - sum(cosines) / len(pairs))
    shown = [sum(item in row for row in rows) for item in range(1, NUM_ITEMS + 1)]
    if sum(shown):
        # Half the mean absolute difference over the mean, in its form without bias.
        spread = sum(abs(a - b) for a in shown for b in shown) / (2 * NUM_ITEMS * (NUM_ITEMS - 1))
        assert gini(ranked, NUM_ITEMS) == pytest.approx(spread / (sum(shown) / NUM_ITEMS))


def test_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ranked = padded([1, 2, 3], [4, 1], [5], [3, 2])
    whole = diversity(ranked, FACTS.users_of_item)
    monkeypatch.setattr(lists, "_ROWS_AT_ONCE", 3)
    monkeypatch.setattr(lists, "_PAIRS_AT_ONCE", 2)
    np.testing.assert_array_equal(diversity(ranked, FACTS.users_of_item), whole)


def test_means_skip_users_without_a_value_and_are_nan_without_any() -> None:
    seen = distinct_pairs([np.array([1]), np.array([2])])
    ranked = padded([1, 2], [])
    values = list_means(ranked, list_values(ranked, seen, FACTS, 1), NUM_ITEMS, 1)  # the first item of each list
    assert values["novelty@1"] == 1
    assert values["repeat_share@1"] == 1
    assert values["gini@1"] == 1
    assert math.isnan(values["diversity@1"])


def test_a_user_with_an_item_twice_counts_once() -> None:
    assert FACTS.num_events_V.tolist() == [0, 4, 2, 1, 1, 0, 0]
    assert (FACTS.users_of_item[[1]] > 0).sum() == 3
