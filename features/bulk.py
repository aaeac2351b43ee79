"""Event logs of any size, day by day in bounded memory: Zipf items and long-tailed histories, no other structure.

The simulated shop of `features.simulate` has structure for a model to find but walks its users step by step;
this is for volume.
"""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field

from features.simulate import EVENT_TYPES, START
from recsys.contracts.config import Config
from recsys.contracts.errors import ConfigError
from recsys.contracts.pruning import DAY_MS

MOST_EVENTS: Final = 50_000
"""Expected length of the longest histories."""
_TYPE_BOUNDS = (0.85, 0.95)  # views, then carts, then purchases
_ZIPF_SHIFT = 10.0
_PARETO = 1.5


class BulkConfig(Config):
    """The size of a log."""

    num_users: int = Field(ge=1)
    num_items: int = Field(ge=1)
    num_events: int = Field(ge=1)
    num_days: int = Field(default=100, ge=1)
    seed: int = Field(default=7, ge=0)


def run(config: BulkConfig, out: Path) -> Path:
    """Write the log: one `.parquet` or `.csv` file, or a folder with a Parquet file a day. Returns `out`.

    Raises:
        ConfigError: another ending.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".csv":
        with out.open("wb") as file:
            for number, day in enumerate(days(config)):
                day.write_csv(file, include_header=number == 0)
    elif out.suffix == ".parquet":
        with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
            parts = [Path(folder) / f"{number:05d}.parquet" for number in range(config.num_days)]
            for part, day in zip(parts, days(config), strict=True):
                day.write_parquet(part)
            pl.scan_parquet(parts, glob=False).sink_parquet(out)
    elif out.suffix == "":
        out.mkdir(exist_ok=True)
        for number, day in enumerate(days(config)):
            day.write_parquet(out / f"events-{START + timedelta(days=number):%Y-%m-%d}.parquet")
    else:
        raise ConfigError(f"{out}: expected a name ending in .csv, .parquet, or a folder without an ending")
    return out


def days(config: BulkConfig) -> Iterator[pl.DataFrame]:
    """user_id, item_id, timestamp (milliseconds), event_type of each day, in order of time."""
    generator = np.random.default_rng(config.seed)
    user_names = _names("u", config.num_users, generator)
    item_names = _names("sku-", config.num_items, generator)
    user_share = _cumulative(_activity(config))
    item_share = _cumulative(1 / (np.arange(config.num_items) + _ZIPF_SHIFT))
    kinds = pl.Series(EVENT_TYPES)
    start_ms = int(START.timestamp() * 1000)
    bounds = np.linspace(0, config.num_events, config.num_days + 1).astype(np.int64)
    for number, size in enumerate(np.diff(bounds)):
        kind = np.searchsorted(_TYPE_BOUNDS, generator.random(size)).astype(np.uint32)
        moment = start_ms + number * DAY_MS + np.sort(generator.integers(0, DAY_MS, size))
        yield pl.DataFrame(
            {
                "user_id": user_names.gather(_draw(user_share, size, generator)),
                "item_id": item_names.gather(_draw(item_share, size, generator)),
                "timestamp": moment,
                "event_type": kinds.gather(kind),
            }
        )


def _names(prefix: str, count: int, generator: np.random.Generator) -> pl.Series:
    """Ids that do not tell the rank."""
    numbers = pl.DataFrame({"n": generator.permutation(count) + 1})
    width = len(str(count))
    return numbers.select(pl.lit(prefix) + pl.col("n").cast(pl.String).str.zfill(width))["literal"]


def _activity(config: BulkConfig) -> npt.NDArray[np.float64]:
    """Relative number of events of each user: a Pareto tail, cut so that the longest is about MOST_EVENTS."""
    weight = ((np.arange(config.num_users) + 0.5) / config.num_users) ** (-1 / _PARETO)
    for _ in range(10):  # clipping moves the sum
        weight = np.minimum(weight, MOST_EVENTS * weight.sum() / config.num_events)
    return np.asarray(weight, dtype=np.float64)


def _cumulative(weight: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    total = np.cumsum(weight)
    return np.asarray(total / total[-1])


def _draw(cumulative: npt.NDArray[np.float64], size: int, generator: np.random.Generator) -> npt.NDArray[np.uint32]:
    """Positions by weight, in random order; drawn in sorted order, which is kind to the cache."""
    drawn = np.searchsorted(cumulative, np.sort(generator.random(size)), side="right")
    return generator.permutation(np.minimum(drawn, len(cumulative) - 1).astype(np.uint32))
