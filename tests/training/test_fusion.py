"""The search for the weights of late fusion, on users whose truth is made by one term."""

import numpy as np
import pytest

from recsys.contracts.ids import Floats, Tokens
from recsys.dataset import Histories
from recsys.runtime.fusion import Evidence, Fusion, evidence
from recsys.runtime.index import ItemIndex
from recsys.training import fusion
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


def most_frequent(history: Tokens) -> Tokens:
    items, counts = np.unique(history, return_counts=True)
    return items[np.argsort(-counts, kind="stable")][:5]


def test_a_term_that_says_everything_gets_a_weight_that_is_still_a_logit() -> None:
    """Users take again what they took most: the more weight on frequency the better, without end."""
    targets = [most_frequent(history) for history in HISTORIES]
    found, ndcg = fusion.fit(VECTORS, INDEX, known(), targets, None, Fusion())
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
    found, ndcg = fusion.fit(VECTORS, INDEX, nothing, targets, seen, Fusion())
    assert found == Fusion()
    assert ndcg == pytest.approx(1)
