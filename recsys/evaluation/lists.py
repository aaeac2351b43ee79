"""What the lists are like, whatever the user did next: novelty, diversity, repeats, popularity bias.

None of these is better high or better low by itself; they say what a change of accuracy was paid with.
"""

# U users, K length of the lists, V items of the catalogue (a V axis here has V + 1 entries, entry 0 = PAD)

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from recsys.contracts.ids import PAD, Tokens
from recsys.dataset import Histories
from recsys.evaluation.metrics import Pairs, PerUser, distinct_pairs, is_in

_ROWS_AT_ONCE = 65_536
"""Lists whose pairs of items are held in memory at a time."""
_PAIRS_AT_ONCE = 4_096
"""Pairs of items whose users are held in memory at a time."""


@dataclass(frozen=True, slots=True)
class ListFacts:
    """What describes the items: everything fitted, nothing from after the cut."""

    num_events_V: npt.NDArray[np.int64]
    """Fitted events per token."""
    users_of_item: Any
    """Which users had each item before the cut: sparse, rows of length 1, shape [V + 1, users]."""

    @classmethod
    def of(cls, fit: Histories, num_items: int) -> "ListFacts":
        """Count the fitted events."""
        pairs = distinct_pairs(list(fit))
        num_users_V = np.bincount(pairs.target, minlength=num_items + 1)
        weights = (1 / np.sqrt(num_users_V[pairs.target])).astype(np.float32)
        shape = (num_items + 1, max(1, len(fit)))
        users_of_item = sparse.csr_array((weights, (pairs.target, pairs.user)), shape=shape)
        return cls(np.bincount(fit.tokens, minlength=num_items + 1), users_of_item)


def list_values(ranked: Tokens, seen: Pairs, facts: ListFacts, k: int) -> dict[str, PerUser]:
    """What the first k items of each list, shape [U, K], are like; nan where it is undefined (see each metric).

    `seen` holds the items of each user's context.
    """
    top = ranked[:, :k]
    return {
        f"novelty@{k}": novelty(top, facts.num_events_V),
        f"diversity@{k}": diversity(top, facts.users_of_item),
        f"repeat_share@{k}": repeat_share(top, seen),
    }


def list_means(ranked: Tokens, values: Mapping[str, PerUser], num_items: int, k: int) -> dict[str, float]:
    """Means of what `list_values` gave of these lists, then the Gini index of them all.

    A user whose value is undefined is skipped; nan if all are.
    """
    defined = {name: value[~np.isnan(value)] for name, value in values.items()}
    means = {name: float(value.mean()) if len(value) else float("nan") for name, value in defined.items()}
    return {**means, f"gini@{k}": gini(ranked[:, :k], num_items)}


def novelty(ranked: Tokens, num_events_V: npt.NDArray[np.int64]) -> PerUser:
    """Mean self-information of each list's items in bits: −log2(events of the item / events of all).

    An item without a fitted event counts as one with a single event. An empty list gives nan.
    Source: Zhou et al., PNAS 107(10), 2010 (surprisal, there over users, here over events).
    """
    bits_V = np.log2(max(1, num_events_V.sum())) - np.log2(np.maximum(num_events_V, 1))
    shown = ranked != PAD
    return _ratio((bits_V[ranked] * shown).sum(axis=1), shown.sum(axis=1))


def repeat_share(ranked: Tokens, seen: Pairs) -> PerUser:
    """Share of each list's items that the user had before the cut. An empty list gives nan.

    Source: Anderson et al., WWW 2014 (repeat consumption).
    """
    return _ratio(is_in(ranked, seen).sum(axis=1), (ranked != PAD).sum(axis=1))


def diversity(ranked: Tokens, users_of_item: Any) -> PerUser:
    """Mean over the pairs of a list of 1 − cosine of the sets of users who had each item before the cut.

    cosine(i, j) = |users of both| / √(|users of i| · |users of j|); an item nobody had shares nothing.
    A list of fewer than two items gives nan.
    Source: Ziegler et al., WWW 2005 (intra-list similarity); cosine as in Sarwar et al., WWW 2001.
    """
    means = [
        _diversity(ranked[start : start + _ROWS_AT_ONCE], users_of_item)
        for start in range(0, len(ranked), _ROWS_AT_ONCE)
    ]
    return np.concatenate([np.empty(0), *means])


def _diversity(ranked: Tokens, users_of_item: Any) -> PerUser:
    left, right = np.triu_indices(ranked.shape[1], 1)
    both = (ranked[:, left] != PAD) & (ranked[:, right] != PAD)
    span = users_of_item.shape[0]
    low, high = np.minimum(ranked[:, left], ranked[:, right]), np.maximum(ranked[:, left], ranked[:, right])
    keys, place = np.unique(low.astype(np.int64) * span + high, return_inverse=True)
    cosines = np.empty(len(keys))
    for start in range(0, len(keys), _PAIRS_AT_ONCE):
        piece = keys[start : start + _PAIRS_AT_ONCE]
        shared = users_of_item[piece // span].multiply(users_of_item[piece % span])
        cosines[start : start + len(piece)] = np.asarray(shared.sum(axis=1)).ravel()
    distance = 1 - cosines[place].reshape(both.shape)
    return _ratio((distance * both).sum(axis=1), both.sum(axis=1))


def gini(ranked: Tokens, num_items: int) -> float:
    """How unequally the lists show the catalogue: 0 all items equally often, 1 a single item.

    G = Σ over items by rising count c of (2j − V − 1) · c_j / ((V − 1) · Σ c), j from 1; items never shown
    count as 0. No list or a catalogue of one item gives nan.
    Source: Shani, Gunawardana, Recommender Systems Handbook, 2011, section 8.3.3.2.
    """
    shown = np.sort(np.bincount(ranked[ranked != PAD], minlength=num_items + 1)[1:])
    if num_items < 2 or not shown.any():
        return float("nan")
    rank = np.arange(1, num_items + 1)
    return float(((2 * rank - num_items - 1) * shown).sum() / ((num_items - 1) * shown.sum()))


def _ratio(total: npt.NDArray[Any], count: npt.NDArray[np.int64]) -> PerUser:
    """Quotients, nan where `count` is 0."""
    quotients = np.full(len(count), np.nan)
    np.divide(total, count, out=quotients, where=count > 0)
    return quotients
