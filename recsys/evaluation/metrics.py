"""Ranking metrics, twice: scalar functions that read like their formula, and one vectorised path for reports.

A test holds the two against each other, against a naive count and against ranx. `relevant` is the set of
distinct targets of a user; a target outside the vocabulary is in it, and no ranking can hold it.
"""

# U users, K length of the ranked lists, P distinct (user, target) pairs

import math
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recsys.contracts.ids import PAD, Tokens

PerUser = npt.NDArray[np.float64]
"""One value per user, shape [U]."""
Targets = npt.NDArray[np.int64]
"""Items of one user's future; tokens, or negative numbers outside the vocabulary."""


def recall_at_k(ranked: Sequence[int], relevant: AbstractSet[int], k: int) -> float:
    """Share of the relevant items that the first k ranked ones hold: |top-k ∩ relevant| / |relevant|.

    The divisor is |relevant| even where that exceeds k, so 1 is then out of reach. No relevant items
    gives nan.
    Source: Manning, Raghavan, Schütze, Introduction to Information Retrieval, 2008, section 8.3.

    Raises:
        ValueError: k < 1, or `ranked` repeats an item.
    """
    hits = _hits(ranked, relevant, k)
    return sum(hits) / len(relevant) if relevant else math.nan


def hit_rate_at_k(ranked: Sequence[int], relevant: AbstractSet[int], k: int) -> float:
    """1 if the first k ranked items hold any relevant one, else 0. No relevant items gives nan.

    Source: Deshpande, Karypis, ACM TOIS 22(1), 2004 (hit rate of a top-N list).

    Raises:
        ValueError: k < 1, or `ranked` repeats an item.
    """
    hits = _hits(ranked, relevant, k)
    return float(any(hits)) if relevant else math.nan


def ndcg_at_k(ranked: Sequence[int], relevant: AbstractSet[int], k: int) -> float:
    """Binary-gain NDCG in [0, 1], discount 1 / log2(rank + 1), rank from 1.

    The ideal list holds min(k, |relevant|) hits. No relevant items gives nan.
    Source: Järvelin, Kekäläinen, ACM TOIS 20(4), 2002 (cumulated gain); Burges et al., ICML 2005 (discount).

    Raises:
        ValueError: k < 1, or `ranked` repeats an item.
    """
    hits = _hits(ranked, relevant, k)
    gain = sum(1 / math.log2(rank + 1) for rank, hit in enumerate(hits, start=1) if hit)
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(relevant)) + 1))
    return gain / ideal if relevant else math.nan


def average_precision_at_k(ranked: Sequence[int], relevant: AbstractSet[int], k: int) -> float:
    """Mean over the relevant items of the precision at each one's rank; 0 for those below rank k.

    Σ over hits at rank r ≤ k of (hits up to r) / r, divided by |relevant|, even where that exceeds k.
    No relevant items gives nan. Its mean over users is MAP@k.
    Source: Manning, Raghavan, Schütze, Introduction to Information Retrieval, 2008, section 8.4.

    Raises:
        ValueError: k < 1, or `ranked` repeats an item.
    """
    hits = _hits(ranked, relevant, k)
    precisions = [sum(hits[:rank]) / rank for rank, hit in enumerate(hits, start=1) if hit]
    return sum(precisions) / len(relevant) if relevant else math.nan


def reciprocal_rank(ranked: Sequence[int], relevant: AbstractSet[int]) -> float:
    """1 / rank of the first relevant item, 0 if the list holds none. No relevant items gives nan.

    The list's length is the cut: a first hit below it counts as 0.
    Source: Voorhees, TREC-8, 1999.

    Raises:
        ValueError: `ranked` repeats an item.
    """
    hits = _hits(ranked, relevant, max(1, len(ranked)))
    if not relevant:
        return math.nan
    return 1 / (hits.index(True) + 1) if any(hits) else 0.0


def coverage_at_k(ranked: Tokens, k: int, num_items: int) -> float:
    """Share of the `num_items` items that stand in the first k of any row of `ranked`, shape [U, K].

    Source: Herlocker et al., ACM TOIS 22(1), 2004, section 4.1 (catalogue coverage).

    Raises:
        ValueError: k < 1, or `ranked` holds a token above `num_items`.
    """
    _check_k(k)
    shown = np.unique(ranked[:, :k])
    if len(shown) and not 0 <= shown[0] <= shown[-1] <= num_items:
        raise ValueError(f"ranked holds tokens {shown[0]} to {shown[-1]}, expected {PAD} to {num_items}")
    return float(np.count_nonzero(shown != PAD) / num_items)


def _hits(ranked: Sequence[int], relevant: AbstractSet[int], k: int) -> list[bool]:
    _check_k(k)
    if len(set(ranked)) != len(ranked):
        raise ValueError("ranked repeats an item, expected distinct ones")
    return [item in relevant for item in ranked[:k]]


def _check_k(k: int) -> None:
    if k < 1:
        raise ValueError(f"k = {k}, expected 1 or more")


@dataclass(frozen=True, slots=True)
class Pairs:
    """The distinct (user, target) pairs of many users, in order of user."""

    user: npt.NDArray[np.int64]
    """Row of the user, shape [P]."""
    target: Targets
    """Token, or a negative number outside the vocabulary, shape [P]."""
    num_users: int

    @property
    def num_relevant(self) -> npt.NDArray[np.int64]:
        """Distinct targets per user, shape [U]."""
        return np.bincount(self.user, minlength=self.num_users).astype(np.int64)


def distinct_pairs(items: Sequence[npt.NDArray[np.signedinteger]]) -> Pairs:
    """Each user's distinct items.

    Raises:
        ValueError: an item is PAD.
    """
    user = np.repeat(np.arange(len(items), dtype=np.int64), [len(row) for row in items])
    target = np.concatenate([np.empty(0, dtype=np.int64), *items]).astype(np.int64)
    if (target == PAD).any():
        raise ValueError(f"user in row {user[target == PAD][0]} has the padding token {PAD} as an item")
    order = np.lexsort((target, user))
    user, target = user[order], target[order]
    first = np.ones(len(user), dtype=bool)
    first[1:] = (np.diff(user) != 0) | (np.diff(target) != 0)
    return Pairs(user[first], target[first], len(items))


def is_in(ranked: Tokens, pairs: Pairs) -> npt.NDArray[np.bool_]:
    """Where a row of `ranked`, shape [U, K], holds an item of that user's pairs. PAD is in none."""
    in_vocabulary = pairs.target > PAD
    span = 1 + int(max(ranked.max(initial=0), pairs.target.max(initial=0)))
    keys = pairs.user[in_vocabulary] * span + pairs.target[in_vocabulary]
    row = np.arange(len(ranked), dtype=np.int64)[:, None]
    return np.isin(row * span + ranked, keys)


def per_user_metrics(ranked: Tokens, targets: Sequence[Targets], ks: Sequence[int]) -> dict[str, PerUser]:
    """Every metric of every user: recall, ndcg, hit_rate and map @k for each k, and mrr over the K ranked.

    Same values as the scalar functions on each row without its padding. `ranked` has shape [U, K], PAD at
    the end of a row where it holds fewer; rows may be shorter than k. A user without targets is nan.

    Raises:
        ValueError: k < 1, a row repeats an item, has PAD before an item or a negative token, or the
            lengths of `ranked` and `targets` differ.
    """
    check_ranked(ranked)
    if len(ranked) != len(targets):
        raise ValueError(f"{len(ranked)} ranked lists for {len(targets)} users")
    pairs = distinct_pairs(targets)
    return metrics_of_hits(is_in(ranked, pairs), pairs.num_relevant, ks)


def metrics_of_hits(
    hits: npt.NDArray[np.bool_], num_relevant: npt.NDArray[np.int64], ks: Sequence[int]
) -> dict[str, PerUser]:
    """What `per_user_metrics` returns, of where the lists hold relevant items, shape [U, K], and how many there are.

    Raises:
        ValueError: k < 1.
    """
    divisor = np.where(num_relevant == 0, np.nan, num_relevant)
    nothing = 0 * divisor  # nan where there is no target
    precision = np.cumsum(hits, axis=1) / np.arange(1, 1 + hits.shape[1])
    discount = 1 / np.log2(np.arange(2, 2 + max(*ks, hits.shape[1], 1)))
    ideal = np.concatenate([[np.nan], np.cumsum(discount)])
    values: dict[str, PerUser] = {}
    for k in ks:
        _check_k(k)
        top = hits[:, :k]
        values[f"recall@{k}"] = top.sum(axis=1) / divisor
        values[f"ndcg@{k}"] = top @ discount[: top.shape[1]] / ideal[np.minimum(k, num_relevant)]
        values[f"hit_rate@{k}"] = top.any(axis=1) + nothing
        values[f"map@{k}"] = (top * precision[:, :k]).sum(axis=1) / divisor
    first = hits.argmax(axis=1) if hits.shape[1] else np.zeros(len(hits))
    values["mrr"] = np.where(hits.any(axis=1), 1 / (first + 1), 0.0) + nothing
    return values


def check_ranked(ranked: Tokens) -> None:
    """Refuse ranked lists, shape [U, K], that are not distinct tokens followed by padding.

    Raises:
        ValueError: see above; names the first bad row.
    """
    if ranked.ndim != 2:
        raise ValueError(f"ranked has shape {ranked.shape}, expected [users, k]")
    in_order = np.sort(ranked, axis=1)
    rules = {
        "repeats an item": (in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] != PAD),
        "has padding before an item": (ranked[:, :-1] == PAD) & (ranked[:, 1:] != PAD),
        "holds a negative token": ranked < PAD,
    }
    for rule, broken in rules.items():
        if broken.any():
            raise ValueError(f"ranked list in row {np.flatnonzero(broken.any(axis=1))[0]} {rule}")
