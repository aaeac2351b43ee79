"""What opening and continuing windows costs, by length and batch; beside it the model by eager torch, if asked."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from recsys.contracts import artifact
from recsys.contracts.errors import ConfigError
from recsys.contracts.ids import Tokens
from recsys.contracts.precision import EngineName
from recsys.runtime.engine import Engine, Session
from recsys.runtime.release import Release
from recsys.telemetry import GpuWatch

BATCHES = (1, 8)
WARM_UP_ROUNDS = 2
_MOST_LENGTHS = 256
_USED_S = 1.0
"""How long a GPU is watched at each row's work."""


def run(
    releases: Path,
    num_rounds: int,
    num_threads: int,
    engine_name: EngineName | None = None,
    *,
    checkpoint: Path | None = None,
    device: str | None = None,
    batches: Sequence[int] = BATCHES,
) -> dict[str, Any]:
    """Time a release's engine on windows of random items; calls of all rows take turns.

    With the `checkpoint` that the release was made from: eager torch in float32 over a window and over two, on
    `device`, which is the torch engine's as well. Where there is a GPU, what each row's work uses of it.

    Raises:
        ArtifactError: the release was made from another checkpoint.
        ConfigError: there is no such engine or device.
    """
    release = Release.open(releases, num_threads=num_threads, engine=engine_name, device=device)
    engine, size = release.engine, release.window.size
    generator = np.random.default_rng(0)

    def windows(batch: int, length: int) -> list[Tokens]:
        return [generator.integers(1, release.vocabulary.num_kept + 1, length).astype(np.int32) for _ in range(batch)]

    engine.warm_up()
    every_length = _every_length(engine, windows)
    calls: dict[tuple[str, int, int], Callable[[], object]] = {}
    encode = None if checkpoint is None else _eager(checkpoint, release, device or "cpu", num_threads)
    for batch in batches:
        for length in sorted({min(64, size), max(1, size // 2), size}):
            calls["open", length, batch] = partial(engine.open, windows(batch, length))
        growing = engine.open(windows(batch, size // 2))
        calls["append 1", size // 2, batch] = partial(_append, engine, growing, windows(batch, 1))
        if encode is not None:
            for length in (size, 2 * size):
                calls["eager", length, batch] = partial(encode, windows(batch, length))
    seconds: dict[tuple[str, int, int], list[float]] = {key: [] for key in calls}
    for round_ in range(num_rounds + WARM_UP_ROUNDS):
        for key, call in calls.items():
            started = time.perf_counter()
            call()
            if round_ >= WARM_UP_ROUNDS:
                seconds[key].append(time.perf_counter() - started)
    watch = GpuWatch.open()
    watched = {key: call for key, call in calls.items() if key[0] != "append 1"}  # its sessions would grow too long
    used = {} if watch is None else {key: watch.used(call, _USED_S) for key, call in watched.items()}
    info = engine.info
    return {
        "engine": info.name,
        "precision": info.precision,
        "num_threads": info.num_threads,
        "cache": info.cache.value,
        "session_bytes": engine.open(windows(1, size))[0].size_bytes,
        "every_length": every_length,
        "rows": [_row(*key, values) | used.get(key, {}) for key, values in seconds.items()],
    }


def _every_length(engine: Engine, windows: Callable[[int, int], list[Tokens]]) -> dict[str, Any]:
    """Windows of many lengths in a random order, as users come, and the same once more.

    An engine that makes something for each shape pays where a length is new, and in memory.
    """
    size = engine.info.window_size
    lengths = range(max(1, size // 4), size + 1, max(1, size // _MOST_LENGTHS))
    users = [windows(1, length) for length in np.random.default_rng(0).permutation(lengths)]
    resident = psutil.Process().memory_info
    before = resident().rss
    seconds: list[list[float]] = []
    for _ in range(2):
        seconds.append([])
        for user in users:
            started = time.perf_counter()
            engine.encode(user)
            seconds[-1].append(time.perf_counter() - started)
    new_ms, again_ms = (1000 * float(np.mean(round_)) for round_ in seconds)
    return {
        "num_lengths": len(lengths),
        "new_ms": round(new_ms, 3),
        "again_ms": round(again_ms, 3),
        "grown_mb": round((resident().rss - before) / 1e6, 1),
    }


def _eager(checkpoint: Path, release: Release, device: str, num_threads: int) -> Callable[[list[Tokens]], object]:
    import torch

    from recsys.model.checkpoint import Checkpoint
    from recsys.model.reference import encode

    opened = Checkpoint.open(checkpoint)
    artifact.check_parent(release.manifest, "checkpoint", opened.manifest, release.folder)
    torch.set_num_threads(num_threads)
    try:
        model = opened.model.without_summaries().to(device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {device}: {str(error).splitlines()[0]}") from None
    return partial(encode, model)


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
