"""The search for the weights of late fusion, on users whose truth is made by one term."""

import numpy as np
import pytest

from recsys.contracts.ids import Floats, Tokens
from recsys.dataset import Histories
from recsys.runtime.fusion import Evidence, Fusion, evidence
from recsys.runtime.index import ItemIndex
from recsys.training import fusion
from recsys.training.fusion import Judges, Space, candidates_of
from recsys.transitions import TransitionTable

NUM_ITEMS, NUM_USERS, NUM_EVENTS = 60, 80, 40
_GENERATOR = np.random.default_rng(3)
HISTORIES = _GENERATOR.zipf(1.3, size=(NUM_USERS, NUM_EVENTS)).astype(np.int32) % NUM_ITEMS + 1
VECTORS = _GENERATOR.normal(size=(NUM_USERS, 4)).astype(np.float32)
INDEX = ItemIndex.build(_GENERATOR.normal(size=(NUM_ITEMS, 4)).astype(np.float32))


def known() -> list[Evidence]:
    events = HISTORIES.ravel()
    offsets = np.arange(0, len(events) + 1, NUM_EVENTS)
    users = [f"u{n}" for n in range(NUM_USERS)]
    table = TransitionTable.fit(Histories(users, offsets, events, np.arange(len(events))), NUM_ITEMS)
    return [evidence(history, table) for history in HISTORIES]


NO_DATES = np.zeros(NUM_ITEMS + 1, dtype=np.int64)


def most_frequent(history: Tokens) -> Tokens:
    items, counts = np.unique(history, return_counts=True)
    return items[np.argsort(-counts, kind="stable")][:5]


def test_a_term_that_says_everything_gets_a_weight_that_is_still_a_logit() -> None:
    """Users take again what they took most: the more weight on frequency the better, without end."""
    targets = [most_frequent(history) for history in HISTORIES]
    found, ndcg = fusion.fit(candidates_of(Judges(VECTORS, INDEX, known(), targets, None, NO_DATES)), Fusion())
    assert ndcg > 0.9
    assert 0 < found.frequency <= 30
    weights = [value for name, value in found if name != "transition_scale"]
    assert max(map(abs, weights)) <= 30


def test_terms_that_say_nothing_are_off() -> None:
    """Users take what the decoder ranks first, and nothing that they had."""

    def best_unseen(user: int) -> Tokens:
        scores: Floats = INDEX.vectors(np.arange(1, NUM_ITEMS + 1)) @ VECTORS[user]
        scores[HISTORIES[user] - 1] = -np.inf
        return (np.argsort(-scores)[:3] + 1).astype(np.int32)

    targets = [best_unseen(user) for user in range(NUM_USERS)]
    seen = [np.unique(history) for history in HISTORIES]
    nothing = [Evidence(each.tokens[:0], *(np.empty(0, dtype=np.float32),) * 3) for each in known()]
    found, ndcg = fusion.fit(candidates_of(Judges(VECTORS, INDEX, nothing, targets, seen, NO_DATES)), Fusion())
    assert found == Fusion()
    assert ndcg == pytest.approx(1)


@pytest.mark.parametrize("odds_scale", [0.5, 1.0, 12.0])
def test_the_temperature_makes_log_odds_of_scores(odds_scale: float) -> None:
    """Next events are drawn by odds that are known; scores are their logarithms times a number, which is found."""
    generator = np.random.default_rng(5)
    users = generator.normal(size=(1_000, 4)).astype(np.float32)
    odds = np.exp(users @ INDEX.vectors(np.arange(1, NUM_ITEMS + 1)).T)
    drawn = [generator.choice(NUM_ITEMS, p=row / row.sum()) + 1 for row in odds.astype(np.float64)]
    targets = [np.array([token], dtype=np.int32) for token in drawn]
    nothing = [Evidence(np.empty(0, dtype=np.int32), *(np.empty(0, dtype=np.float32),) * 3)] * len(users)
    found = fusion.temperature(Judges(odds_scale * users, INDEX, nothing, targets, None, NO_DATES), Fusion())
    assert found == pytest.approx(odds_scale, rel=0.05)


def test_the_temperature_counts_fusions_terms_and_leaves_out_what_may_not_be_listed() -> None:
    """All vectors are zero: one item in the history has the score `base`, all others 0. Half take it, half another.

    Odds of 1 to 57 for each of the others are ln 57 = 4.04, so τ = 8.09 / 4.04 = 2.
    """
    item, hidden = np.array([7], dtype=np.int32), [np.array([1, 2], dtype=np.int32)] * 80
    one = np.ones(1, dtype=np.float32)
    known = [Evidence(item, 0 * one, one, 0 * one)] * 80
    targets = [np.array([7 if user % 2 else 3 + user % 4], dtype=np.int32) for user in range(80)]
    weights = Fusion(base=2 * np.log(57))
    zeros = np.zeros((80, 4), dtype=np.float32)
    assert fusion.temperature(Judges(zeros, INDEX, known, targets, hidden, NO_DATES), weights) == pytest.approx(
        2, rel=0.02
    )


def test_what_is_pruned_is_in_no_list() -> None:
    targets = [most_frequent(history) for history in HISTORIES]
    pruned, seen = np.array([1, 2, 3], dtype=np.int32), [np.array([4, 2], dtype=np.int32)] * NUM_USERS
    for exclude, out in ((None, [1, 2, 3]), (seen, [1, 2, 3, 4])):
        listed = candidates_of(Judges(VECTORS, INDEX, known(), targets, exclude, NO_DATES, pruned)).evidence.tokens
        assert not np.isin(listed, out).any()
        assert np.isin(5, listed)


def test_the_temperature_leaves_out_what_is_pruned_and_who_takes_it() -> None:
    """As above, with the two items pruned; half of the users take one of them."""
    item, pruned = np.array([7], dtype=np.int32), np.array([1, 2], dtype=np.int32)
    one = np.ones(1, dtype=np.float32)
    known = [Evidence(item, 0 * one, one, 0 * one)] * 160
    taken = [7 if user % 2 else 3 + user % 4 for user in range(80)] + [-1] * 80
    targets = [np.array([each], dtype=np.int32) for each in taken]
    judges = Judges(np.zeros((160, 4), dtype=np.float32), INDEX, known, targets, None, NO_DATES, pruned)
    assert fusion.temperature(judges, Fusion(base=2 * np.log(57))) == pytest.approx(2, rel=0.02)


def test_too_few_users_tell_nothing_of_the_temperature() -> None:
    targets = [np.array([1], dtype=np.int32)] * 29
    judges = Judges(VECTORS[:29], INDEX, known()[:29], targets, None, NO_DATES)
    assert fusion.temperature(judges, Fusion()) == 1.0


def test_what_is_taken_these_days_is_found_by_the_trend() -> None:
    """All take three items of this week, which neither the decoder nor histories say anything of."""
    num_recent = NO_DATES.copy()
    num_recent[[11, 12, 13]] = 50
    targets = [np.array([11, 12, 13], dtype=np.int32)] * NUM_USERS
    judges = Judges(VECTORS, INDEX, known(), targets, None, num_recent)
    found, ndcg = fusion.fit(candidates_of(judges), Fusion())
    assert found.trend > 0
    assert ndcg > 0.6
    undated = Judges(VECTORS, INDEX, known(), targets, None, NO_DATES)
    found, without = fusion.fit(candidates_of(undated), Fusion())
    assert found.trend == 0
    assert without < ndcg / 2


def test_bagged_weights_are_the_mean_of_halves_and_the_same_every_time() -> None:
    targets = [most_frequent(history) for history in HISTORIES]
    candidates = candidates_of(Judges(VECTORS, INDEX, known(), targets, None, NO_DATES))
    found = fusion.bagged(candidates)
    assert found == fusion.bagged(candidates)
    assert 0 < found.frequency <= 30
    assert found.trend == 0


def test_too_few_users_are_not_halved() -> None:
    targets = [most_frequent(history) for history in HISTORIES[:40]]
    few = candidates_of(Judges(VECTORS[:40], INDEX, known()[:40], targets, None, NO_DATES))
    assert fusion.bagged(few) == fusion.fit(few, Fusion())[0]


def test_terms_can_be_left_out_and_bounded_otherwise() -> None:
    targets = [most_frequent(history) for history in HISTORIES]
    candidates = candidates_of(Judges(VECTORS, INDEX, known(), targets, None, NO_DATES))
    repeats = frozenset({"base", "frequency", "recency"})
    without = fusion.bagged(candidates, Space(without=repeats))
    assert (without.base, without.frequency, without.recency) == (0, 0, 0)
    weak, strong = (fusion.bagged(candidates, Space(most_weight=most)) for most in (2.0, 300.0))
    assert 0 < weak.frequency <= 2 < strong.frequency <= 300
    assert max(candidates.ndcg(without), candidates.ndcg(weak)) < candidates.ndcg(strong)


def test_ndcg_is_the_mean_over_users() -> None:
    targets = [most_frequent(history) for history in HISTORIES]
    candidates = candidates_of(Judges(VECTORS, INDEX, known(), targets, None, NO_DATES))
    weights = Fusion(frequency=3.0)
    values = candidates.ndcg_U(weights)
    assert values.shape == (NUM_USERS,)
    assert candidates.ndcg(weights) == pytest.approx(values.mean())
    some = np.array([3, 8])
    assert candidates.of(some).ndcg_U(weights) == pytest.approx(values[some])


def test_where_the_decoder_says_nothing_the_trend_brings_its_items() -> None:
    """Nobody has had them, nothing leads to them, and the decoder's scores are all alike."""
    num_recent = NO_DATES.copy()
    num_recent[[11, 12, 13]] = 50
    nothing = [Evidence(np.empty(0, dtype=np.int32), *(np.empty(0, dtype=np.float32),) * 3)] * NUM_USERS
    targets = [np.array([11, 12, 13], dtype=np.int32)] * NUM_USERS
    blind = candidates_of(Judges(np.zeros_like(VECTORS), INDEX, nothing, targets, None, num_recent))
    assert blind.ndcg(Fusion(trend=1.0)) == pytest.approx(1)
