"""A simulated shop where some purchases are decided by taste that was last seen more than a window ago."""

import math
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from features.config import FeaturesConfig
from recsys.dataset import Histories, ValidationSet

NUM_TASTES = 3
NUM_BRANDS = 8
ITEMS_OF_A_BRAND = 4
NUM_PLAIN = 50
_FIRST_BRANDED = 1 + NUM_PLAIN + NUM_TASTES
NUM_ITEMS = NUM_PLAIN + NUM_TASTES + NUM_TASTES * NUM_BRANDS * ITEMS_OF_A_BRAND
_LEAST_GAP, _MOST_GAP = 1.02, 1.40
"""Between two purchases of one taste, in windows."""
_NEXT_SHARE = 0.85
"""How often a plain item is followed by its successor."""
_BOUGHT = 2
"""Items of a visit."""
_CUT: Final = FeaturesConfig().split_quantile
"""Of a log's times, where features are cut by default."""
_START: Final = datetime(2026, 1, 1)
_CUT_DAY, _DAYS_AFTER = 90, 10


@dataclass(frozen=True, slots=True, kw_only=True)
class PlantedShop:
    """Users and the size of the window that tastes are to be remembered beyond."""

    num_users: int
    window_size: int
    num_windows: float = 3.5
    """Events of a user, in windows."""
    seed: int = 0

    def split(self) -> ValidationSet:
        """Histories that end before a purchase decided by taste, and that purchase as the target.

        A user has a brand for each taste, for good. From time to time they look at a taste's page (the same for all
        brands) and then buy two items of their brand, any of them; between two such visits lies more than a window.
        All other events walk a ring of plain items.
        """
        walks = self._walks(np.random.default_rng(self.seed))
        lengths = np.array([len(walk.row) - _BOUGHT for walk in walks])
        tokens = np.concatenate([walk.row[:-_BOUGHT] for walk in walks]).astype(np.int32)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        times = np.concatenate([np.arange(length) for length in lengths])
        train = Histories([f"u{u}" for u in range(self.num_users)], offsets, tokens, times)
        targets = [np.array([walk.row[-_BOUGHT]], dtype=np.int32) for walk in walks]
        return ValidationSet(train, list(train), targets)

    def log(self) -> pl.DataFrame:
        """The same users as an event log that features cut, by default, at that purchase of each.

        Columns user_id, item_id, timestamp, in order of time. So a tenth of the events come after the histories of
        `split`: the two purchases first, then what the users went on to do.
        """
        generator = np.random.default_rng(self.seed)
        walks = self._walks(generator)
        num_before = [len(walk.row) - _BOUGHT for walk in walks]
        num_after = math.ceil(sum(num_before) / _CUT) + 1 - sum(num_before)
        parts = []
        for u, (walk, before) in enumerate(zip(walks, num_before, strict=True)):
            after = num_after // self.num_users + (u < num_after % self.num_users)
            while len(walk.row) < before + after:
                walk.go_on(self.window_size, generator)
            day = np.concatenate(
                [_CUT_DAY * np.arange(before) / before, _CUT_DAY + _DAYS_AFTER * np.arange(after) / after]
            )
            rows = {"user_id": f"u{u:05d}", "item_id": [item_id(token) for token in walk.row[: before + after]]}
            parts.append(pl.DataFrame({**rows, "second": (86_400 * day).astype(np.int64)}))
        moment = pl.lit(_START) + pl.duration(seconds="second")
        return (
            pl.concat(parts)
            .sort("second", "user_id", maintain_order=True)
            .select("user_id", "item_id", moment.dt.strftime("%Y-%m-%dT%H:%M:%SZ").alias("timestamp"))
        )

    def _walks(self, generator: np.random.Generator) -> "list[_Walk]":
        """Each user up to and with the first visit that ends beyond their length."""
        return [self._walk(generator) for _ in range(self.num_users)]

    def _walk(self, generator: np.random.Generator) -> "_Walk":
        brands = generator.integers(NUM_BRANDS, size=NUM_TASTES)
        length = int(self.num_windows * self.window_size * generator.uniform(0.8, 1.2))
        due = generator.uniform(0, self.window_size, NUM_TASTES)
        walk = _Walk(brands, due, int(generator.integers(NUM_PLAIN)))
        while True:
            bought = walk.go_on(self.window_size, generator)
            if bought and len(walk.row) > length:
                return walk


@dataclass(slots=True)
class _Walk:
    """A user on the way."""

    brands: npt.NDArray[np.int64]
    due: npt.NDArray[np.float64]
    """Number of events at which each taste's next visit is made."""
    plain: int
    row: list[int] = field(default_factory=list)
    """Tokens so far."""

    def go_on(self, window_size: int, generator: np.random.Generator) -> bool:
        """A visit that is due, a page and two purchases, or one plain event; whether it was a visit."""
        taste = int(self.due.argmin())
        if self.due[taste] <= len(self.row):
            self.row += [1 + NUM_PLAIN + taste, *self._purchases(taste, generator)]
            self.due[taste] = len(self.row) + window_size * generator.uniform(_LEAST_GAP, _MOST_GAP)
            return True
        follows = generator.random() < _NEXT_SHARE
        self.plain = (self.plain + 1) % NUM_PLAIN if follows else int(generator.integers(NUM_PLAIN))
        self.row.append(1 + self.plain)
        return False

    def _purchases(self, taste: int, generator: np.random.Generator) -> list[int]:
        first = _FIRST_BRANDED + (taste * NUM_BRANDS + int(self.brands[taste])) * ITEMS_OF_A_BRAND
        return [first + int(item) for item in generator.permutation(ITEMS_OF_A_BRAND)[:_BOUGHT]]


def item_id(token: int) -> str:
    """What an item is called in the log."""
    if token <= NUM_PLAIN:
        return f"plain-{token:02d}"
    if token < _FIRST_BRANDED:
        return f"taste-{token - NUM_PLAIN}"
    number, item = divmod(token - _FIRST_BRANDED, ITEMS_OF_A_BRAND)
    taste, brand = divmod(number, NUM_BRANDS)
    return f"taste-{taste + 1}-brand-{brand + 1}-{item + 1}"
