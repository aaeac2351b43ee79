import numpy as np
import pytest

from recsys.dataset import Histories
from recsys.runtime.fusion import Fusion, best, evidence, search
from recsys.runtime.index import ItemIndex
from recsys.transitions import TransitionTable

INDEX = ItemIndex.build(np.array([[1.0], [2.0], [3.0], [4.0]], dtype=np.float32))
QUERY = np.array([[1.0]], dtype=np.float32)
NOTHING = np.empty(0, dtype=np.int32)
NO_TRANSITIONS = TransitionTable(np.zeros(6, dtype=np.int64), NOTHING, np.empty(0, dtype=np.float16))
# 1 is followed by 2 with probability 0.5; nothing else is known
ONE_TO_TWO = TransitionTable(
    np.array([0, 0, 1, 1, 1, 1]), np.array([2], dtype=np.int32), np.array([0.5], dtype=np.float16)
)


def tokens(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def ranked(
    history: np.ndarray, fusion: Fusion, without: np.ndarray = NOTHING, table: TransitionTable = NO_TRANSITIONS
) -> tuple[list[int], list[float]]:
    found, scores = search(INDEX, QUERY, evidence(history, table), 4, without, fusion)
    return found.tolist(), scores.tolist()


def test_evidence_of_a_history_by_hand() -> None:
    known = evidence(tokens(3, 1, 3, 4, 1), ONE_TO_TWO)
    assert known.tokens.tolist() == [1, 2, 3, 4]
    assert known.times_seen.tolist() == [2, 0, 2, 1]
    assert known.events_since.tolist() == [0, 0, 2, 1]
    # item 1 is the last event (age 1) and the fourth last (age 4)
    assert known.likelihood.tolist() == pytest.approx([0, 0.5 / 1 + 0.5 / 4, 0, 0])


def test_a_seen_item_is_lifted_and_zero_weights_change_nothing() -> None:
    assert ranked(tokens(1), Fusion()) == ([4, 3, 2, 1], [4, 3, 2, 1])
    assert ranked(tokens(1), Fusion(base=2.5)) == ([4, 1, 3, 2], [4, 3.5, 3, 2])
    assert ranked(tokens(4), Fusion(base=-9.0))[0] == [3, 2, 1, 4]


def test_frequency_and_recency_by_hand() -> None:
    # token 1 twice, last 1 event ago: 1 + 3 ln 2 - ln 2 = 2.39; token 2 once, just now: 2 + 0 = 2
    found, scores = ranked(tokens(1, 1, 2), Fusion(frequency=3.0, recency=1.0))
    assert found == [4, 3, 1, 2]
    assert scores == pytest.approx([4, 3, 1 + 2 * np.log(2), 2])


def test_a_likely_successor_is_lifted() -> None:
    # token 2: 2 + 3 ln(1 + 10 · 0.5) = 7.38
    found, scores = ranked(tokens(1), Fusion(transition=3.0, transition_scale=10.0), table=ONE_TO_TWO)
    assert found == [2, 4, 3, 1]
    assert scores[0] == pytest.approx(2 + 3 * np.log(6))


def test_what_is_excluded_is_not_lifted_back() -> None:
    assert ranked(tokens(1, 2), Fusion(base=9.0), tokens(1, 4))[0] == [2, 3, 0, 0]


def test_the_best_are_found_however_many_items_sink() -> None:
    assert search(INDEX, QUERY, evidence(tokens(4, 3, 2), NO_TRANSITIONS), 1, NOTHING, Fusion(base=-9.0))[0] == [1]


def test_ties_go_by_token_and_gaps_are_padding() -> None:
    found, scores = best(np.array([3, 2]), np.array([1.0, 1.0]), 3)
    assert found.tolist() == [2, 3, 0]
    assert scores[2] == -np.inf


def test_search_equals_scoring_every_item() -> None:
    generator = np.random.default_rng(0)
    vectors_VD = generator.normal(size=(40, 6)).astype(np.float32)
    index = ItemIndex.build(vectors_VD)
    events = generator.integers(1, 41, 600).astype(np.int32)
    table = TransitionTable.fit(Histories(["u"], np.array([0, 600]), events, np.arange(600)), 40)
    fusion = Fusion(transition=0.7, transition_scale=50, base=-0.4, frequency=0.9, recency=0.2)
    for _ in range(50):
        history = generator.integers(1, 41, generator.integers(1, 30)).astype(np.int32)
        without = generator.choice(40, 5, replace=False).astype(np.int32) + 1
        vector = generator.normal(size=(1, 6)).astype(np.float32)
        known = evidence(history, table)
        scores = vectors_VD @ vector[0]
        scores[known.tokens - 1] += known.terms(fusion)
        scores[without - 1] = -np.inf
        expected = np.argsort(-scores)[:7] + 1
        assert search(index, vector, known, 7, without, fusion)[0].tolist() == expected.tolist()
