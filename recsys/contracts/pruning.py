"""Which items are frequent enough to be kept: one policy, used by the batch job's report and by the reader."""

from collections.abc import Sequence
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, PositiveInt

from recsys.contracts.config import Config

DAY_MS: Final = 86_400_000
MOST_PRUNED: Final = 5
"""Highest `min_count` that is chosen by itself."""
MOST_LOST: Final = 0.01
"""Share of the events that may go with the items that are not kept, where `min_count` is chosen by itself."""


class PruningPolicy(Config):
    """An item is kept if its score reaches `min_count`."""

    min_count: int | None = Field(default=None, ge=1)
    """Least score of a kept item: events, or their weights. None: 5, or less where that would lose more than 1 %."""
    count_by_weight: bool = False
    """Score by the weights of the event types instead of by events."""
    count_types: tuple[str, ...] = ()
    """Event types that count; empty: all."""
    count_period_days: PositiveInt | None = None
    """Only events of so many days before the end (or before the cut) count; None: all."""
    event_weights: dict[str, float] = Field(default_factory=dict)
    """Weight by event type; 1 where none is given."""

    @classmethod
    def of(cls, config: dict[str, Any]) -> Self:
        """The policy in the settings of a features artifact."""
        return cls(**{name: config[name] for name in cls.model_fields if name in config})

    def type_scores(self, event_types: Sequence[str]) -> npt.NDArray[np.float64]:
        """What one event of each type adds to its item's score."""
        weights = [self.event_weights.get(kind, 1.0) if self.count_by_weight else 1.0 for kind in event_types]
        counted = [not self.count_types or kind in self.count_types for kind in event_types]
        scores: npt.NDArray[np.float64] = np.where(counted, weights, 0.0)
        return scores

    def least(self, scores: npt.NDArray[np.float64]) -> int:
        """Least score of a kept item, of these: `min_count`, or the highest that loses little of their sum."""
        if self.min_count is not None:
            return self.min_count
        losses = ((least, float(scores[scores < least].sum())) for least in range(MOST_PRUNED, 1, -1))
        return next((least for least, lost in losses if lost <= MOST_LOST * scores.sum()), 1)

    def since_ms(self, end_ms: int) -> int | None:
        """First moment that counts where the last one is before `end_ms`; None: all count."""
        return None if self.count_period_days is None else end_ms - self.count_period_days * DAY_MS
