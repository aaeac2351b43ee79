"""New items: in a release by what the catalogue says of them, beside the kept items that were trained on events."""

from typing import Final

import numpy as np
from pydantic import Field

from recsys.contracts.config import Config
from recsys.contracts.ids import Floats

# U users

LAST: Final = -1000.0
"""A shift so low that new items come after all others: they are seen only where they are asked for."""


class NewItems(Config):
    """How new items stand among the others."""

    share: float = Field(default=0.0, ge=0, le=1)
    """Of users whose first ten hold a new item; chosen on validation (`recsys/training/new_items.py`)."""
    shift: float = LAST
    """Added to the scores of new items so that it is this share."""


def shift_for(share: float, last_U: Floats, best_new_U: Floats) -> float:
    """The shift with which the best new item passes the last shown item of this share of users; `LAST` for none."""
    gap_U = (last_U - best_new_U)[np.isfinite(last_U) & np.isfinite(best_new_U)]
    if not share or not len(gap_U):
        return LAST
    return float(np.quantile(gap_U, share)) + 1e-4
