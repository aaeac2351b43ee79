"""Rankers against what users did after the cut: full ranking over the catalogue, one report for all.

Headline: all distinct items after the cut. Second row, `next`: only the first one. Items of the history
are left out of the ranking where the protocol says so (last-out), and stay in it otherwise (time).
Why no sampled negatives: Krichene, Rendle, KDD 2020.
"""

# U users, K length of the ranked lists = max(ks)

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recsys.contracts.errors import DataError
from recsys.contracts.ids import PAD, Tokens
from recsys.contracts.protocol import Protocol
from recsys.dataset import TestSet
from recsys.evaluation.baselines import Ranker
from recsys.evaluation.metrics import (
    Pairs,
    PerUser,
    Targets,
    check_ranked,
    coverage_at_k,
    distinct_pairs,
    is_in,
    per_user_metrics,
)

MODEL = "model"
"""Name of the ranker under evaluation."""
AGAINST = "against"
"""Name of another release it is compared with. All other rankers are baselines."""

Progress = Callable[[str, int, int], None]
"""Called with a ranker's name, users done, users in all."""


@dataclass(frozen=True, slots=True)
class RankerResult:
    """One ranker's values; entry u of every array is user `Report.user_ids[u]`."""

    headline: dict[str, PerUser]
    """recall@k, ndcg@k, hit_rate@k, map@k and mrr (first hit within the K ranked) against all targets."""
    next: dict[str, PerUser]
    """The same against the first target only."""
    coverage: dict[str, float]
    """coverage@k: share of the catalogue in anyone's first k. Grows with the number of users."""
    ranked: Tokens
    """The lists, shape [U, K]."""

    def means(self) -> dict[str, Any]:
        """Means over users, `next` nested."""
        nested = {name: float(values.mean()) for name, values in self.next.items()}
        headline = {name: float(values.mean()) for name, values in self.headline.items()}
        return {**headline, **self.coverage, "next": {**nested, **self.coverage}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was measured, on whom, and how much of it no ranker could have found."""

    protocol: Protocol
    num_items: int
    user_ids: list[str]
    """Users of the headline: a kept event before the cut and a target after it."""
    rows: list[int]
    """Their positions in the test set."""
    num_cold_users: int
    """Users with targets but no kept event before the cut; in no metric."""
    num_targets: int
    """Distinct (user, target) pairs."""
    num_targets_outside_vocabulary: int
    """Of those, items outside the vocabulary: misses for every ranker."""
    num_targets_seen: int
    """Of those, items in the user's own history: misses for every ranker where seen items are left out."""
    results: dict[str, RankerResult]

    def to_json(self) -> dict[str, Any]:
        """Means and counts as plain values; `model` and `against` only if rankers of these names were given."""
        means = {name: result.means() for name, result in self.results.items()}
        return {
            **{name: means.pop(name) for name in (MODEL, AGAINST) if name in means},
            "baselines": means,
            "num_users": len(self.user_ids),
            "num_cold_users": self.num_cold_users,
            "num_targets": self.num_targets,
            "num_targets_outside_vocabulary": self.num_targets_outside_vocabulary,
            "num_targets_seen": self.num_targets_seen,
            "num_items": self.num_items,
            "protocol": self.protocol.value,
        }


def evaluate(
    rankers: Mapping[str, Ranker],
    test: TestSet,
    num_items: int,
    protocol: Protocol,
    *,
    ks: Sequence[int] = (10, 20, 100),
    batch_size: int = 256,
    progress: Progress | None = None,
) -> Report:
    """Rank the catalogue for every user who can be judged, and measure each ranker on the same users.

    Raises:
        DataError: no user has both a kept event before the cut and one after it.
        ValueError: a `ks` or `batch_size` is below 1, or a ranker returns a list that breaks `Ranker.rank`.
    """
    if not ks or min(ks) < 1 or batch_size < 1:
        raise ValueError(f"ks = {list(ks)}, batch_size = {batch_size}, expected 1 or more")
    users = [u for u in range(len(test.contexts)) if len(test.contexts[u]) and len(test.targets[u])]
    if not users:
        raise DataError("no user has kept events before the cut and events after it; move the cut or get more data")
    contexts = [test.contexts[u] for u in users]
    targets = [test.targets[u] for u in users]
    seen, wanted = distinct_pairs(contexts), distinct_pairs(targets)
    results = {}
    for name, ranker in rankers.items():
        ranked = _rank_all(name, ranker, contexts, max(ks), protocol.masks_seen, batch_size, progress)
        _check_lists(name, ranked, num_items, seen if protocol.masks_seen else None)
        results[name] = _measure(ranked, targets, ks, num_items)
    return Report(
        protocol=protocol,
        num_items=num_items,
        user_ids=[test.contexts.user_ids[u] for u in users],
        rows=users,
        num_cold_users=test.num_cold_users + _num_without_context(test),
        num_targets=len(wanted.target),
        num_targets_outside_vocabulary=int((wanted.target < PAD).sum()),
        num_targets_seen=_num_shared(seen, wanted),
        results=results,
    )


def _rank_all(
    name: str,
    ranker: Ranker,
    contexts: Sequence[Tokens],
    k: int,
    masks_seen: bool,
    batch_size: int,
    progress: Progress | None,
) -> Tokens:
    """Ranked lists of all users, shape [U, K], a batch at a time. The ranker is shown no target."""
    ranked = np.full((len(contexts), k), PAD, dtype=np.int32)
    for start in range(0, len(contexts), batch_size):
        batch = contexts[start : start + batch_size]
        answer = ranker.rank(batch, k, [np.unique(row) for row in batch] if masks_seen else None)
        if answer.shape != (len(batch), k):
            raise ValueError(f"ranker {name!r} returned shape {answer.shape}, expected {(len(batch), k)}")
        ranked[start : start + len(batch)] = answer
        if progress is not None:
            progress(name, start + len(batch), len(contexts))
    return ranked


def _check_lists(name: str, ranked: Tokens, num_items: int, hidden: Pairs | None) -> None:
    try:
        check_ranked(ranked)
    except ValueError as error:
        raise ValueError(f"ranker {name!r}: {error}") from None
    if ranked.max() > num_items:
        raise ValueError(f"ranker {name!r} returned token {ranked.max()}, expected at most {num_items}")
    if hidden is not None and is_in(ranked, hidden).any():
        raise ValueError(f"ranker {name!r} returned items of the history, which this protocol leaves out")


def _measure(ranked: Tokens, targets: Sequence[Targets], ks: Sequence[int], num_items: int) -> RankerResult:
    return RankerResult(
        headline=per_user_metrics(ranked, targets, ks),
        next=per_user_metrics(ranked, [row[:1] for row in targets], ks),
        coverage={f"coverage@{k}": coverage_at_k(ranked, k, num_items) for k in ks},
        ranked=ranked,
    )


def _num_without_context(test: TestSet) -> int:
    return sum(len(row) > 0 and len(test.contexts[u]) == 0 for u, row in enumerate(test.targets))


def _num_shared(seen: Pairs, wanted: Pairs) -> int:
    """Pairs in both."""
    span = 1 + int(max(seen.target.max(initial=0), wanted.target.max(initial=0)))
    known = wanted.target > PAD
    wanted_keys = wanted.user[known] * span + wanted.target[known]
    return int(np.isin(wanted_keys, seen.user * span + seen.target).sum())
