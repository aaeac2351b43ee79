"""What opening and continuing windows costs, by length and batch."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from recsys.contracts.ids import Tokens
from recsys.contracts.precision import EngineName
from recsys.runtime.engine import Engine, Session
from recsys.runtime.release import Release

BATCHES = (1, 8)
WARM_UP_ROUNDS = 2


def run(releases: Path, num_rounds: int, num_threads: int, engine_name: EngineName | None = None) -> dict[str, Any]:
    """Time a release's engine on windows of random items; calls of all rows take turns."""
    release = Release.open(releases, num_threads=num_threads, engine=engine_name)
    engine, size = release.engine, release.window.size
    generator = np.random.default_rng(0)

    def windows(batch: int, length: int) -> list[Tokens]:
        return [generator.integers(1, len(release.vocabulary) + 1, length).astype(np.int32) for _ in range(batch)]

    calls: dict[tuple[str, int, int], Callable[[], object]] = {}
    for batch in BATCHES:
        for length in sorted({min(64, size), max(1, size // 2), size}):
            calls["open", length, batch] = partial(engine.open, windows(batch, length))
        growing = engine.open(windows(batch, size // 2))
        calls["append 1", size // 2, batch] = partial(_append, engine, growing, windows(batch, 1))
    seconds: dict[tuple[str, int, int], list[float]] = {key: [] for key in calls}
    for round_ in range(num_rounds + WARM_UP_ROUNDS):
        for key, call in calls.items():
            started = time.perf_counter()
            call()
            if round_ >= WARM_UP_ROUNDS:
                seconds[key].append(time.perf_counter() - started)
    info = engine.info
    return {
        "engine": info.name,
        "precision": info.precision,
        "num_threads": info.num_threads,
        "cache": info.cache.value,
        "session_bytes": engine.open(windows(1, size))[0].size_bytes,
        "rows": [_row(*key, values) for key, values in seconds.items()],
    }


def _append(engine: Engine, sessions: list[Session], events: list[Tokens]) -> None:
    """One event more for each; the sessions grow in place."""
    sessions[:] = engine.append(sessions, events)


def _row(call: str, events: int, batch: int, seconds: list[float]) -> dict[str, Any]:
    p50, p99 = np.percentile(seconds, [50, 99]) * 1000
    return {
        "call": call,
        "events": events,
        "batch": batch,
        "p50_ms": round(float(p50), 3),
        "p99_ms": round(float(p99), 3),
        "windows_per_s": round(1000 * batch / float(p50), 1),
    }
