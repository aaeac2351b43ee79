"""What is taken these days: the one thing that counts say of every item, whoever asks.

A decoder learns from the whole log what follows what. What sells this week it cannot tell from what sold half a year
ago, as it reads no dates. So the events on an item in the last days before the end of what was fitted shift its score,
by a weight that validation finds (`trend` of `recsys/runtime/fusion.py`).
"""

# V items

import numpy as np
import numpy.typing as npt

from recsys.contracts.ids import PAD, Floats, Tokens
from recsys.contracts.pruning import DAY_MS

DAYS = 7
"""A week: whatever the weekday, no day of it counts twice."""
_SURE = 0.999


def num_recent(
    tokens: Tokens | npt.NDArray[np.int64], timestamps_ms: npt.NDArray[np.int64], end_ms: int | None, num_items: int
) -> npt.NDArray[np.int64]:
    """Of these events those on each item from `DAYS` before `end_ms` on, shape [V + 1]; none where that is unknown."""
    if end_ms is None:
        return np.zeros(num_items + 1, dtype=np.int64)
    is_recent = (timestamps_ms >= end_ms - DAYS * DAY_MS) & (tokens != PAD)
    return np.bincount(tokens[is_recent], minlength=num_items + 1)


def end_of(timestamps_ms: npt.NDArray[np.int64]) -> int | None:
    """The moment before which all events but one in a thousand are: a few with a wrong clock do not move the week."""
    if not len(timestamps_ms):
        return None
    return int(np.quantile(timestamps_ms, _SURE, method="lower"))


def shifts(weight: float, num_recent_V: npt.NDArray[np.int64]) -> Floats | None:
    """What is added to each item's score, shape [V], from counts of shape [V + 1]; None where that is nothing."""
    if not weight or not num_recent_V.any():
        return None
    return (weight * np.log1p(num_recent_V[PAD + 1 :])).astype(np.float32)
