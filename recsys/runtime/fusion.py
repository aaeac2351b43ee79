"""Late fusion: the decoder's score plus what plain counts know of a user and of the last events.

Within a basket the next event is rarely a repeat, so the decoder learns to look for what goes with the last
item; over the following weeks much of what a user wants is what they had. And a table remembers a rare
transition that was seen better than a few hundred thousand weights do. The terms are zero for all but a few
hundred items, so the answer is exact: the best of those items and of the index's other items.
The weights are found on validation (see `recsys/training/fusion.py`).
"""

from dataclasses import dataclass

import numpy as np

from recsys.contracts.config import Config
from recsys.contracts.ids import PAD, Floats, Tokens
from recsys.runtime.index import ItemIndex, best, best_of_all
from recsys.transitions import TransitionTable

# S items with a term of their own, K results


class Fusion(Config):
    """Weights of the terms.

    score(item) = vector · item
                + transition · ln(1 + transition_scale · P(item | last events))
                + [item in history] · (base + frequency · ln(times seen) − recency · ln(1 + events since))
                + trend · ln(1 + events on the item in the last days)

    The last term is of every item, whoever asks: a release has it in its index, as a shift of scores.
    """

    transition: float = 0.0
    transition_scale: float = 100.0
    base: float = 0.0
    frequency: float = 0.0
    recency: float = 0.0
    trend: float = 0.0

    @property
    def is_off(self) -> bool:
        """Whether every term that differs by user is zero."""
        return not (self.transition or self.base or self.frequency or self.recency)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What counts say of the items they know something about, each of shape [S]; tokens are distinct."""

    tokens: Tokens
    likelihood: Floats
    """P(item | last events), summed with weights; 0 where the item follows none of them."""
    times_seen: Floats
    """0 where the item is not in the history."""
    events_since: Floats
    """After the item's last occurrence; 0 where it has none."""

    def terms(self, fusion: Fusion) -> Floats:
        """What each item's score gains, shape [S]."""
        seen = self.times_seen > 0
        of_history = fusion.base + fusion.frequency * np.log(np.maximum(self.times_seen, 1))
        of_history -= fusion.recency * np.log1p(self.events_since)
        of_transition = fusion.transition * np.log1p(fusion.transition_scale * self.likelihood)
        terms: Floats = (of_transition + np.where(seen, of_history, 0)).astype(np.float32)
        return terms


def evidence(history: Tokens, transitions: TransitionTable) -> Evidence:
    """Everything known from counts for one history, oldest event first."""
    seen, events_since, times_seen = np.unique(history[::-1], return_index=True, return_counts=True)
    following, likelihood = transitions.likely_next(history)
    tokens, place = np.unique(np.concatenate([seen, following]), return_inverse=True)
    at_seen, at_following = np.split(place, [len(seen)])
    columns = np.zeros((3, len(tokens)), dtype=np.float32)
    columns[0, at_following] = likelihood
    columns[1, at_seen] = times_seen
    columns[2, at_seen] = events_since
    return Evidence(tokens, *columns)


def search(
    index: ItemIndex, vector_1D: Floats, known: Evidence, k: int, without: Tokens, fusion: Fusion
) -> tuple[Tokens, Floats]:
    """The k best items by the fused score, best first, ties by token, shape [k] each; PAD where fewer exist."""
    scores_V = index.all_scores(vector_1D[0])
    if scores_V is not None:
        scores_V[known.tokens - 1] += known.terms(fusion)
        scores_V[without[without != PAD] - 1] = -np.inf
        return best_of_all(scores_V, k)
    if fusion.is_off:
        tokens_1K, scores_1K = index.search(vector_1D, k, [without])
        found = tokens_1K[0] != PAD
        return best(tokens_1K[0][found], scores_1K[0][found], k)
    tokens_1K, scores_1K = index.search(vector_1D, k, [np.union1d(known.tokens, without)])
    others = tokens_1K[0] != PAD
    allowed = ~np.isin(known.tokens, without)
    fused = index.scores(vector_1D[0], known.tokens) + known.terms(fusion)
    return best(
        np.concatenate([tokens_1K[0][others], known.tokens[allowed]]),
        np.concatenate([scores_1K[0][others], fused[allowed]]),
        k,
    )
