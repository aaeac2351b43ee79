"""The same figures for parts of the test: which users, which items, which events the mean hides.

A segment is a set of target events. A user's relevant items are then those of the segment; a user without
any is not counted in it. Nothing is dropped silently: users and items unknown at the cut are segments too.
"""

# U users of the report, E their target events, V items of the catalogue (a V axis has V + 1 entries, entry 0 = PAD)

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.contracts.ids import PAD, Tokens, Vocabulary
from recsys.dataset import Dataset, TestSet
from recsys.evaluation.metrics import Targets, distinct_pairs, per_user_metrics
from recsys.evaluation.protocols import Report
from recsys.histories import ITEMS_FILE

HISTORY_BOUNDS = (20, 200, 717, 2_048)
"""Upper ends of history lengths, in kept events. 717 is the stride of the default window."""
AGE_BOUNDS_DAYS = (7, 30, 90)
"""Upper ends of an item's age: time of the target event less time of the item's first event."""
POPULAR_SHARES = (0.01, 0.10)
"""Shares of the catalogue, the items with the most fitted events first."""
UNKNOWN_USERS = "no kept event before the cut"
IN_VOCABULARY, PRUNED, NEVER_SEEN = "in the vocabulary", "seen before the cut, pruned", "first seen after the cut"
_DAY_MS = 86_400_000

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One part of the test."""

    by: str
    """What the test is divided by."""
    name: str
    num_users: int
    num_targets: int
    """Distinct (user, target) pairs."""
    values: dict[str, dict[str, float]]
    """Means over the segment's users by ranker and metric; no metric where there is no user."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        counts = {"num_users": self.num_users, "num_targets": self.num_targets}
        return {"by": self.by, "segment": self.name, **counts, "values": self.values}


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetFacts:
    """What is known of each target event of the report's users, users in order."""

    user: npt.NDArray[np.int64]
    """Row in the report, shape [E]."""
    target: Targets
    """Token, or a negative number outside the vocabulary, shape [E]."""
    history_length: npt.NDArray[np.int64]
    age_ms: npt.NDArray[np.int64] | None
    """None where the log has no times."""
    type_code: npt.NDArray[np.int64]
    popular_share: npt.NDArray[np.float64]
    """Place of the item by fitted events / V, in (0, 1]; nan outside the vocabulary."""
    is_pruned: Mask
    """Not kept, though there were events on the item before the cut."""
    is_unseen: Mask
    """No event on the item before the cut."""

    @classmethod
    def of(cls, data: Dataset, shown: Vocabulary, features: Path, test: TestSet, report: Report) -> "TargetFacts":
        """Look the targets up in the item table of the features artifact; `shown` is what their tokens mean."""
        items = pl.read_parquet(features / ITEMS_FILE, columns=["item_index", "first_ms"], glob=False).sort(
            "item_index"
        )
        first_ms = np.concatenate([[0], items["first_ms"].to_numpy()])
        index_V = np.array([PAD, *(item.item_index for item in shown.items)], dtype=np.int64)
        user = np.repeat(np.arange(len(report.rows)), [len(test.targets[row]) for row in report.rows])
        target = _flat(test.targets, report.rows)
        token = np.maximum(target, PAD)
        first_event_ms = first_ms[np.where(target < PAD, -target, index_V[token])]
        is_kept = (token != PAD) & (token <= shown.num_kept)
        kept_token = np.where(is_kept, token, PAD)
        is_pruned = ~is_kept & (first_event_ms < (data.split_ms or 0))
        has_times = data.manifest.metrics.get("has_timestamps", True)
        return cls(
            user=user,
            target=target,
            history_length=test.contexts.lengths[report.rows][user],
            age_ms=_flat(test.target_times_ms, report.rows) - first_event_ms if has_times else None,
            type_code=_flat(test.target_types, report.rows),
            popular_share=_popular_shares(data.vocabulary.num_events)[kept_token],
            is_pruned=is_pruned,
            is_unseen=(data.vocabulary.num_events[kept_token] == 0) & ~is_pruned,
        )


def by_segment(
    data: Dataset, shown: Vocabulary, features: Path, test: TestSet, report: Report, k: int
) -> list[Segment]:
    """Recall, NDCG and hit rate at k of every ranker in every segment, empty segments among them."""
    facts = TargetFacts.of(data, shown, features, test, report)
    ranked = {name: result.ranked for name, result in report.results.items()}
    known = [
        _measure(by, name, facts.user[mask], facts.target[mask], len(report.rows), ranked, k)
        for by, name, mask in _masks(facts, data.manifest.metrics.get("event_types", []))
    ]
    return [*known, _unknown_users(data, test, list(report.results), k)]


def _masks(facts: TargetFacts, event_types: Sequence[str]) -> Iterator[tuple[str, str, Mask]]:
    """(by, name, which target events) of every segment of known users."""
    for name, mask in _bands(facts.history_length, HISTORY_BOUNDS, ""):
        yield "history length", name, mask
    if facts.age_ms is not None:
        for name, mask in _bands(facts.age_ms / _DAY_MS, AGE_BOUNDS_DAYS, " days"):
            yield "item age", name, mask
    lower = 0.0
    for upper in (*POPULAR_SHARES, 1.0):
        inside = (facts.popular_share > lower) & (facts.popular_share <= upper)
        yield "item popularity", f"top {upper:.0%}" if not lower else f"{lower:.0%} to {upper:.0%}", inside
        lower = upper
    for code, name in enumerate(event_types):
        yield "event type", name, facts.type_code == code
    yield "item", IN_VOCABULARY, ~facts.is_pruned & ~facts.is_unseen
    yield "item", PRUNED, facts.is_pruned
    yield "item", NEVER_SEEN, facts.is_unseen


def _bands(values: npt.NDArray[Any], bounds: Sequence[int], unit: str) -> Iterator[tuple[str, Mask]]:
    """Bands up to each bound, then the rest; every value is in exactly one."""
    band = np.searchsorted(bounds, values, side="left")
    for place, bound in enumerate(bounds):
        yield f"<= {bound:,}{unit}", band == place
    yield f"> {bounds[-1]:,}{unit}", band == len(bounds)


def _measure(
    by: str,
    name: str,
    user: npt.NDArray[np.int64],
    target: Targets,
    num_users: int,
    ranked: dict[str, Tokens],
    k: int,
) -> Segment:
    """Every ranker against these targets; entry e of `user` is the row of the user who has target e."""
    targets = np.split(target, np.cumsum(np.bincount(user, minlength=num_users))[:-1])
    rows = np.unique(user)
    kept = [targets[row] for row in rows]
    values: dict[str, dict[str, float]] = {}
    for ranker, lists in ranked.items():
        measured = per_user_metrics(lists[rows, :k], kept, [k]) if len(rows) else {}
        values[ranker] = {
            m: float(measured[m].mean()) for m in (f"recall@{k}", f"ndcg@{k}", f"hit_rate@{k}") if measured
        }
    pairs = distinct_pairs(kept)
    return Segment(by=by, name=name, num_users=len(rows), num_targets=len(pairs.target), values=values)


def _unknown_users(data: Dataset, test: TestSet, rankers: Sequence[str], k: int) -> Segment:
    """Users without a history get popular items, from a release as from every baseline."""
    popular = data.vocabulary.popular()[:k]
    targets = [row for row in test.cold_targets if len(row)]
    user = np.repeat(np.arange(len(targets)), [len(row) for row in targets])
    lists = np.tile(popular, (len(targets), 1))
    flat = np.concatenate([np.empty(0, dtype=np.int64), *targets])
    return _measure("user", UNKNOWN_USERS, user, flat, max(1, len(targets)), dict.fromkeys(rankers, lists), k)


def _popular_shares(num_events_V: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Place of each token by fitted events, most first, ties by token, as a share of V; nan for PAD."""
    shares_V = np.full(len(num_events_V), np.nan)
    order = np.argsort(-num_events_V[1:], kind="stable") + 1
    shares_V[order] = np.arange(1, len(num_events_V)) / (len(num_events_V) - 1)
    return shares_V


def _flat(rows: Sequence[npt.NDArray[np.int64]], chosen: Sequence[int]) -> npt.NDArray[np.int64]:
    return np.concatenate([np.empty(0, dtype=np.int64), *(rows[row] for row in chosen)])
