"""Which items may be shown, by what the catalogue says of them."""

import math
from typing import Annotated, Final

from pydantic import Field

from recsys.contracts.config import Config
from recsys.contracts.events import MAX_ID_LENGTH
from recsys.contracts.ids import Item

NO_NUL: Final = r"^[^\x00]+$"
"""No database stores it as it is."""
ItemId = Annotated[str, Field(min_length=1, max_length=MAX_ID_LENGTH, pattern=NO_NUL)]


class ItemFilters(Config):
    """Which items may be shown; all conditions must hold. An item without the field does not match."""

    category: list[ItemId] | None = Field(default=None, min_length=1, max_length=100)
    """Any of these."""
    min_price: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    max_price: float | None = Field(default=None, ge=0, allow_inf_nan=False)

    def keep(self, item: Item) -> bool:
        """Whether an item may be shown: the `keep` of `Recommender.recommend`."""
        if self.category is not None and item.category not in self.category:
            return False
        if self.min_price is None and self.max_price is None:
            return True
        low = -math.inf if self.min_price is None else self.min_price
        high = math.inf if self.max_price is None else self.max_price
        return item.price is not None and low <= item.price <= high
