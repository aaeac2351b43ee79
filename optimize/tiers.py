"""Where one engine becomes quicker than the other: measured on the machine at hand."""

import time
from typing import Any

import numpy as np

from recsys.contracts.ids import Tokens
from recsys.runtime.engine import Engine

WARM_UP_ROUNDS = 2


def measure(short: Engine, long: Engine, num_items: int, num_rounds: int = 15, seed: int = 0) -> dict[str, Any]:
    """Median milliseconds of one window by length, and the longest window that `short` encodes no slower.

    Calls of both take turns. `threshold` is 0 where `long` is quicker from the first length on.
    """
    generator = np.random.default_rng(seed)
    lengths = _lengths(short.info.window_size)
    rows = []
    for length in lengths:
        window = generator.integers(1, num_items + 1, length).astype(np.int32)
        milliseconds: dict[str, list[float]] = {"short": [], "long": []}
        for _ in range(num_rounds + WARM_UP_ROUNDS):
            milliseconds["short"].append(_timed(short, window))
            milliseconds["long"].append(_timed(long, window))
        medians = {name: float(np.median(values[WARM_UP_ROUNDS:])) for name, values in milliseconds.items()}
        rows.append({"length": length, "short_ms": round(medians["short"], 4), "long_ms": round(medians["long"], 4)})
    return {"threshold": threshold(rows), "by_length": rows}


def threshold(rows: list[dict[str, Any]]) -> int:
    """The last length before the first at which `long` is quicker."""
    found = 0
    for row in rows:
        if row["long_ms"] < row["short_ms"]:
            break
        found = int(row["length"])
    return found


def _lengths(window_size: int) -> list[int]:
    """Powers of two and the full window."""
    return [*(2**i for i in range(window_size.bit_length()) if 2**i < window_size), window_size]


def _timed(engine: Engine, window: Tokens) -> float:
    started = time.perf_counter()
    engine.encode([window])
    return (time.perf_counter() - started) * 1000
