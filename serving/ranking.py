"""From an encoded history to the list that is shown: filters, boosts, diversity, truncation, pins, reasons.

Filters are exact. The k best items that match are found by looking further down the ranking until k match or
the catalogue ends; where few items match, those are scored one by one instead.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from recsys.contracts.ids import PAD, Floats, Tokens
from recsys.runtime.index import ItemIndex, best
from recsys.runtime.recommender import Query
from recsys.runtime.release import Release
from serving.rules import CompiledRules, Mask, with_pins

FEW: Final = 2_000
"""Items that match a filter, up to which they are scored one by one."""
_FIRST_LOOK: Final = 4
"""How many times k the first look down the ranking takes; further ones take what is kept, then eight times as many."""
_DIVERSITY_POOL: Final = 5
"""How many times k candidates diversity chooses from."""
_REASON_EVENTS: Final = 50
"""Last distinct items of a history that may be the reason for a recommendation."""

_KEPT: Final = 256
"""Places of a ranking that are kept. Only looks that go further down search again."""
_NOTHING: Final = np.empty(0, dtype=np.int32), np.empty(0, dtype=np.float32)

# V items, K results, H items of the history, L events of the history


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """How a list is made."""

    k: int
    allowed: Mask
    """Tokens that may be shown, after filters and exclusions."""
    rules: CompiledRules
    diversity: float = 0.0
    min_confidence: float = 0.0


@dataclass(frozen=True, slots=True)
class Ranked:
    """Chosen tokens, best first, with their scores."""

    tokens_K: Tokens
    scores_K: Floats


@dataclass(frozen=True, slots=True)
class Reason:
    """Why an item is in a list."""

    token: int
    """The other item of the recent history that is most like it (cosine); PAD where there is no other."""
    is_again: bool
    """The item itself is in the history."""


class Ranking:
    """All items in the order of one user's state, searched as far down as anybody has looked. Thread-safe.

    It depends on the history alone: filters, rules and exclusions are applied to it per request. So a user
    whom nothing has happened to since the last answer is ranked without a search.
    """

    SIZE_BYTES: Final = 3_000
    """Of what is kept."""

    def __init__(self, release: Release, vector_D: Floats, tokens_L: Tokens, *, is_partial: bool = False) -> None:
        """`is_partial`: the vector knows the last window alone; the summaries of those before it were not at hand."""
        self.release = release
        self.is_partial = is_partial
        self.vector_D = vector_D
        self.tokens_L = tokens_L
        self._seen: tuple[Tokens, Floats] = _NOTHING
        self._reasons: tuple[Tokens, list[Reason]] = _NOTHING[0], []

    def best(self, look: int) -> tuple[Tokens, Floats]:
        """The `look` best items, best first, PAD where fewer exist."""
        seen = self._seen
        if len(seen[0]) < look:
            seen = self._query().best(look)
            if look <= _KEPT:
                self._seen = seen
        return seen[0][:look], seen[1][:look]

    @property
    def num_at_hand(self) -> int:
        """Places that `best` gives without a search."""
        return len(self._seen[0])

    def scores(self, tokens: Tokens) -> Floats:
        """The scores by which `best` ranks, of chosen distinct tokens."""
        return self._query().scores(tokens)

    def reasons(self, tokens_K: Tokens) -> list[Reason]:
        """Why each token is in the list."""
        known = self._reasons
        if not np.array_equal(known[0], tokens_K):
            known = self._reasons = tokens_K, _reasons(self.release.index, tokens_K, self.tokens_L)
        return known[1]

    def _query(self) -> Query:
        return Query.of(self.release, self.vector_D, self.tokens_L)


def rank(ranking: Ranking, wish: Wish) -> Ranked:
    """The list for a wish; shorter than k where fewer items match or confidence ends."""
    pool = wish.k * (_DIVERSITY_POOL if wish.diversity else 1)
    tokens, scores = _candidates(ranking, wish, pool)
    confident = _confident(scores / ranking.release.temperature, wish.min_confidence)
    tokens, scores = tokens[:confident], scores[:confident]
    if wish.diversity:
        chosen = _diverse(ranking.release.index.vectors(tokens), scores, wish.k, wish.diversity)
        tokens, scores = tokens[chosen], scores[chosen]
    return Ranked(*with_pins(tokens[: wish.k], scores[: wish.k], wish.k, wish.rules, wish.allowed, ranking.scores))


def _candidates(ranking: Ranking, wish: Wish, num: int) -> tuple[Tokens, Floats]:
    """The `num` best allowed items with boosts. Boosted ones are scored apart, so the answer is exact."""
    is_boosted = wish.allowed[wish.rules.boosted]
    boosted = wish.rules.boosted[is_boosted]
    plain = wish.allowed.copy()
    plain[boosted] = False
    tokens, scores = _best_plain(ranking, plain, num, wish.min_confidence)
    if not len(boosted):
        return tokens, scores
    of_boosted = ranking.scores(boosted) + ranking.release.temperature * wish.rules.weights[is_boosted]
    found, values = best(np.concatenate([tokens, boosted]), np.concatenate([scores, of_boosted]), num)
    return found[found != PAD], values[found != PAD]


def _best_plain(ranking: Ranking, mask: Mask, num: int, min_confidence: float) -> tuple[Tokens, Floats]:
    """The `num` best of the mask; fewer where all that follow are less than `min_confidence` times as likely.

    Where confidence ends a list within the places at hand, nothing is searched. Else the whole catalogue is scored
    once, as for any list: an exact index does that in one product, whatever the length.
    """
    num_matching = int(np.count_nonzero(mask))
    if num_matching <= min(FEW, len(mask) // 4):
        matching = np.flatnonzero(mask).astype(np.int32)
        if not num_matching:
            return matching, np.empty(0, dtype=np.float32)
        tokens, scores = best(matching, ranking.scores(matching), num)
        return tokens[tokens != PAD], scores[tokens != PAD]
    num_items = len(mask) - 1
    # Where all but a few may be shown, one look that takes those few into account is enough.
    look = min(num_items, max(_FIRST_LOOK * num, num + min(num_items - num_matching, 100)))
    if min_confidence:
        look = min(look, ranking.num_at_hand or _KEPT)
    while True:
        tokens, scores = ranking.best(look)
        kept = mask[tokens]
        is_enough = kept.sum() >= min(num, num_matching) or look >= num_items
        if is_enough or _is_below(scores[-1], scores[kept], min_confidence, ranking.release.temperature):
            return tokens[kept][:num], scores[kept][:num]
        look = min(num_items, _KEPT if look < _KEPT else 8 * look)


def _is_below(score: float, above: Floats, min_confidence: float, temperature: float) -> bool:
    """Whether what comes after `score` is too unlikely beside the first of the items above it, if there are any."""
    if not min_confidence or not len(above):
        return False
    return bool((score - above[0]) / temperature < np.log(min_confidence))


def _confident(log_odds: Floats, min_confidence: float) -> int:
    """How many items are at least `min_confidence` times as likely as the first."""
    if not min_confidence or not len(log_odds):
        return len(log_odds)
    return int(np.count_nonzero(np.exp(log_odds - log_odds.max()) >= min_confidence))


def _diverse(items_ND: Floats, scores_N: Floats, k: int, diversity: float) -> list[int]:
    """Positions chosen one by one: score, less likeness to what was chosen already.

    Source: Carbonell, Goldstein, SIGIR 1998 (maximal marginal relevance), cosine likeness, scores scaled to [0, 1].
    """
    if not len(scores_N):
        return []
    unit_ND = items_ND / np.maximum(np.linalg.norm(items_ND, axis=1, keepdims=True), 1e-12)
    spread = float(scores_N.max() - scores_N.min()) or 1.0
    relevance_N = (1 - diversity) * (scores_N - scores_N.min()) / spread
    likeness_N = np.zeros(len(scores_N), dtype=np.float32)
    chosen: list[int] = []
    for _ in range(min(k, len(scores_N))):
        marginal_N = relevance_N - diversity * likeness_N
        marginal_N[chosen] = -np.inf
        chosen.append(int(marginal_N.argmax()))
        likeness_N = np.maximum(likeness_N, unit_ND @ unit_ND[chosen[-1]])
    return chosen


def _reasons(index: ItemIndex, tokens_K: Tokens, history: Tokens) -> list[Reason]:
    recent_H = np.fromiter(dict.fromkeys(history[::-1].tolist()), dtype=np.int32)[:_REASON_EVENTS]
    if not len(recent_H) or not len(tokens_K):
        return [Reason(PAD, is_again=False)] * len(tokens_K)
    items_KD, seen_HD = index.vectors(tokens_K), index.vectors(recent_H)
    seen_HD = seen_HD / np.maximum(np.linalg.norm(seen_HD, axis=1, keepdims=True), 1e-12)
    likeness_KH = np.where(tokens_K[:, None] == recent_H, -np.inf, items_KD @ seen_HD.T)
    nearest_K = np.where(np.isneginf(likeness_KH).all(axis=1), PAD, recent_H[likeness_KH.argmax(axis=1)])
    is_again_K = (tokens_K[:, None] == history).any(axis=1)
    return [Reason(token, again) for token, again in zip(nearest_K.tolist(), is_again_K.tolist(), strict=True)]
