"""A simulated shop where some purchases are decided by taste that was last seen more than a window ago."""

from dataclasses import dataclass

import numpy as np

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
        generator = np.random.default_rng(self.seed)
        rows = [self._history(generator) for _ in range(self.num_users)]
        lengths = np.array([len(row) - 2 for row in rows])
        tokens = np.concatenate([row[:-2] for row in rows]).astype(np.int32)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        times = np.concatenate([np.arange(length) for length in lengths])
        train = Histories([f"u{u}" for u in range(self.num_users)], offsets, tokens, times)
        return ValidationSet(train, list(train), [row[-2:-1].astype(np.int64) for row in rows])

    def _history(self, generator: np.random.Generator) -> np.ndarray:
        brands = generator.integers(NUM_BRANDS, size=NUM_TASTES)
        length = int(self.num_windows * self.window_size * generator.uniform(0.8, 1.2))
        due = generator.uniform(0, self.window_size, NUM_TASTES)
        row: list[int] = []
        plain = int(generator.integers(NUM_PLAIN))
        while True:
            taste = int(due.argmin())
            if due[taste] <= len(row):
                row += [1 + NUM_PLAIN + taste, *self._purchases(taste, int(brands[taste]), generator)]
                due[taste] = len(row) + self.window_size * generator.uniform(_LEAST_GAP, _MOST_GAP)
                if len(row) > length:
                    return np.array(row)
            else:
                follows = generator.random() < _NEXT_SHARE
                plain = (plain + 1) % NUM_PLAIN if follows else int(generator.integers(NUM_PLAIN))
                row.append(1 + plain)

    @staticmethod
    def _purchases(taste: int, brand: int, generator: np.random.Generator) -> list[int]:
        first = _FIRST_BRANDED + (taste * NUM_BRANDS + brand) * ITEMS_OF_A_BRAND
        return [first + int(item) for item in generator.permutation(ITEMS_OF_A_BRAND)[:2]]
