"""What a test is divided by: lengths of histories, and what is known of each target event."""

# U users of the report, E their target events, V items of the catalogue (a V axis has V + 1 entries, entry 0 = PAD)

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys.contracts.ids import PAD, Vocabulary
from recsys.dataset import Dataset, TestSet
from recsys.evaluation.metrics import Targets
from recsys.evaluation.protocols import Report

HISTORY_BOUNDS = (20, 200, 717, 2_048)
"""Upper ends of history lengths, in kept events. 717 is the stride of the default window."""
AGE_BOUNDS_DAYS = (7, 30, 90)
"""Upper ends of an item's age: time of the target event less time of the item's first event."""
POPULAR_SHARES = (0.01, 0.10)
"""Shares of the catalogue, the items with the most fitted events first."""
IN_VOCABULARY, PRUNED, NEVER_SEEN = "in the vocabulary", "seen before the cut, pruned", "first seen after the cut"
_DAY_MS = 86_400_000

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetFacts:
    """What is known of each target event of the report's users, users in order."""

    user: npt.NDArray[np.int64]
    """Row in the report, shape [E]."""
    target: Targets
    """Token, or a negative number outside the vocabulary, shape [E]."""
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
    def of(cls, data: Dataset, shown: Vocabulary, test: TestSet, report: Report) -> "TargetFacts":
        """Look the targets up among the items of the features; `shown` is what their tokens mean."""
        index_V = np.array([PAD, *(item.item_index for item in shown.items)], dtype=np.int64)
        user = np.repeat(np.arange(len(report.rows)), [len(test.targets[row]) for row in report.rows])
        target = _flat(test.targets, report.rows)
        token = np.maximum(target, PAD)
        first_event_ms = data.first_ms[np.where(target < PAD, -target, index_V[token])]
        is_kept = (token != PAD) & (token <= shown.num_kept)
        kept_token = np.where(is_kept, token, PAD)
        is_pruned = ~is_kept & (first_event_ms < (data.split_ms or 0))
        has_times = data.manifest.metrics.get("has_timestamps", True)
        return cls(
            user=user,
            target=target,
            age_ms=_flat(test.target_times_ms, report.rows) - first_event_ms if has_times else None,
            type_code=_flat(test.target_types, report.rows),
            popular_share=_popular_shares(data.vocabulary.num_events)[kept_token],
            is_pruned=is_pruned,
            is_unseen=(data.vocabulary.num_events[kept_token] == 0) & ~is_pruned,
        )


def of_targets(facts: TargetFacts, event_types: Sequence[str]) -> Iterator[tuple[str, str, Mask]]:
    """(by, name, which target events) of every segment of targets."""
    if facts.age_ms is not None:
        for name, mask in bands(facts.age_ms / _DAY_MS, AGE_BOUNDS_DAYS, " days"):
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


def bands(values: npt.NDArray[Any], bounds: Sequence[int], unit: str) -> Iterator[tuple[str, Mask]]:
    """Bands up to each bound, then the rest; every value is in exactly one."""
    band = np.searchsorted(bounds, values, side="left")
    for place, bound in enumerate(bounds):
        yield f"<= {bound:,}{unit}", band == place
    yield f"> {bounds[-1]:,}{unit}", band == len(bounds)


def _popular_shares(num_events_V: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Place of each token by fitted events, most first, ties by token, as a share of V; nan for PAD."""
    shares_V = np.full(len(num_events_V), np.nan)
    order = np.argsort(-num_events_V[1:], kind="stable") + 1
    shares_V[order] = np.arange(1, len(num_events_V)) / (len(num_events_V) - 1)
    return shares_V


def _flat(rows: Sequence[npt.NDArray[np.int64]], chosen: Sequence[int]) -> npt.NDArray[np.int64]:
    return np.concatenate([np.empty(0, dtype=np.int64), *(rows[row] for row in chosen)])
