"""What a user had before: shops repeat, and a next-event model underrates it.

Within a basket the next event is rarely a repeat, so the decoder learns to look for what goes with the last
item; over the following weeks much of what a user wants is what they had. Items of the history therefore
get a boost on their score, fitted on a cut before the held-out events (see `optimize/repeat.py`).
"""

import numpy as np

from recsys.contracts.config import Config
from recsys.contracts.ids import PAD, Floats, Tokens
from recsys.runtime.index import ItemIndex

# K results


class RepeatBoost(Config):
    """score = vector · item + base + frequency · ln(times seen) − recency · ln(1 + events since)."""

    base: float = 0.0
    frequency: float = 0.0
    recency: float = 0.0

    @property
    def is_off(self) -> bool:
        """Whether nothing is boosted."""
        return self == RepeatBoost()

    def boosts(self, times_seen: Floats, events_since: Floats) -> Floats:
        """The boost of each distinct item of a history."""
        boost = self.base + self.frequency * np.log(times_seen) - self.recency * np.log1p(events_since)
        boosted: Floats = boost.astype(np.float32)
        return boosted


def seen_items(history: Tokens) -> tuple[Tokens, Floats, Floats]:
    """Distinct tokens of a history, how often each occurs, and how many events came after its last one."""
    tokens, events_since, times_seen = np.unique(history[::-1], return_index=True, return_counts=True)
    return tokens.astype(np.int32), times_seen.astype(np.float32), events_since.astype(np.float32)


def search(
    index: ItemIndex, vector_1D: Floats, history: Tokens, k: int, without: Tokens, boost: RepeatBoost
) -> tuple[Tokens, Floats]:
    """The k best items after the boost, best first, shape [k] each; PAD where fewer exist."""
    tokens_1K, scores_1K = index.search(vector_1D, k, [without])
    if boost.is_off:
        return tokens_1K[0], scores_1K[0]
    seen, times_seen, events_since = seen_items(history)
    allowed = ~np.isin(seen, without)
    seen_scores = index.vectors(seen) @ vector_1D[0] + boost.boosts(times_seen, events_since)
    fresh = (tokens_1K[0] != PAD) & ~np.isin(tokens_1K[0], seen)
    return best(
        np.concatenate([tokens_1K[0][fresh], seen[allowed]]),
        np.concatenate([scores_1K[0][fresh], seen_scores[allowed]]),
        k,
    )


def best(tokens: Tokens, scores: Floats, k: int) -> tuple[Tokens, Floats]:
    """The k highest scores, ties by token, filled up with PAD."""
    order = np.lexsort((tokens, -scores))[:k]
    found, values = np.full(k, PAD, dtype=np.int32), np.full(k, -np.inf, dtype=np.float32)
    found[: len(order)], values[: len(order)] = tokens[order], scores[order]
    return found, values
