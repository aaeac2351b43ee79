"""T, the moment that the time protocol cuts at."""

from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl

from recsys.contracts.pruning import DAY_MS
from recsys.histories import Generation


def moment_at(quantile: float, days: Counter[int], folder: Path, generations: list[Generation]) -> int:
    """The lower quantile of all timestamps, exact.

    The counts by day say which day it is in; only the timestamps of that day are sorted.
    """
    by_day = sorted(days.items())
    position = int((sum(days.values()) - 1) * quantile)
    day = 0
    for day, count in by_day:  # noqa: B007
        if position < count:
            break
        position -= count
    files = [folder / name for g in generations for name in g.file_names()]
    moment = pl.col("timestamp_ms")
    within = (
        pl.scan_parquet(files, missing_columns="insert", extra_columns="ignore", glob=False)
        .select(moment)
        .filter(moment.is_between(day * DAY_MS, (day + 1) * DAY_MS, closed="left"))
    )
    times = within.collect(engine="streaming")["timestamp_ms"].to_numpy()
    return int(np.partition(times, position)[position])
