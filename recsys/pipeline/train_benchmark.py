"""The speed of training beside the peers': each contender in a process of its own, in turns, on the same log."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import polars as pl

from features import build, bulk
from features.build import FeaturesConfig
from recsys import dataset
from recsys.contracts.errors import DataError
from recsys.contracts.protocol import Protocol
from recsys.pipeline.progress import bar
from recsys.training.speed import LENGTH

SHOP: Final = bulk.BulkConfig(num_users=6_000, num_items=3_400, num_events=1_000_000)
"""The log where none is given: about the size of MovieLens-1M."""
FIRST_MS: Final = 1_600_000_000_000
"""Of the log that all read: events come a second apart, since only order is used."""
PEERS: Final = {
    "replay": ("replay", "replay_train.py", "sasrec"),
    "rectools": ("rectools", "rectools_train.py", "sasrec"),
    "esasrec": ("rectools", "rectools_train.py", "esasrec"),
}
"""Name: environment, script, and the model it is told to train."""


@dataclass(frozen=True, slots=True)
class _Speed:
    tokens_per_second: float
    peak_mb: float


def run(
    settings: FeaturesConfig | None, sources: list[Path], seconds: float, rounds: int, num_threads: int
) -> dict[str, Any]:
    """Train each contender for `seconds`, `rounds` times in turns; medians, and ratios of ours to the peers'.

    All read the last events of each user, as many as the peers' sequences hold, so that every event is trained
    on once an epoch by everyone. A peer that is not installed gives None.
    """
    with tempfile.TemporaryDirectory(prefix="recsys-train-") as folder, bar("benchmark") as advance:
        place = Path(folder)
        advance("log", 0, rounds * (1 + len(PEERS)) + 1)
        log = _log(settings, sources, place)
        features = place / "features"
        build.run(FeaturesConfig(min_count=1), [log], features)
        contenders = {"recsys": [sys.executable, "-m", "recsys.training.speed", str(features)], **_peers(log)}
        found: dict[str, list[_Speed]] = {name: [] for name in contenders}
        for turn in range(rounds):
            for number, (name, command) in enumerate(contenders.items()):
                advance(name, 1 + turn * len(contenders) + number, rounds * len(contenders) + 1)
                found[name].append(_measured(name, command, place / "out.json", seconds, num_threads))
    return _summary(found, num_threads, rounds, seconds)


def _log(settings: FeaturesConfig | None, sources: list[Path], place: Path) -> Path:
    """One Parquet file with the last events of each user, of the given log or of a simulated one."""
    if settings is None:
        settings, sources = FeaturesConfig(), [bulk.run(SHOP, place / "shop.parquet")]
    build.run(settings.model_copy(update={"min_count": 1}), sources, place / "all")
    histories = dataset.load(place / "all", Protocol.FINAL).fit
    events = pl.DataFrame(
        {
            "user_id": pl.Series(histories.user_ids).gather(np.repeat(np.arange(len(histories)), histories.lengths)),
            "item_id": histories.tokens.astype("int64"),
            "timestamp": FIRST_MS + 1000 * np.arange(len(histories.tokens)),
        }
    )
    events.group_by("user_id", maintain_order=True).tail(LENGTH + 1).write_parquet(place / "log.parquet")
    return place / "log.parquet"


def _peers(log: Path) -> dict[str, list[str]]:
    commands = {}
    for name, (environment, script, kind) in PEERS.items():
        python, program = Path(".venv-peers") / environment / "bin" / "python", Path("peers") / script
        if python.exists() and program.exists():
            commands[name] = [str(python), str(program), str(log), kind]
    return commands


def _measured(name: str, command: list[str], out: Path, seconds: float, num_threads: int) -> _Speed:
    out.unlink(missing_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(num_threads)}
    process = subprocess.run(  # noqa: S603
        [*command, str(out), str(seconds), str(num_threads)], capture_output=True, text=True, env=environment
    )
    if process.returncode or not out.exists():
        raise DataError(f"{name}: {json.dumps(command[:3])} failed: {process.stderr[-500:]}; run it by hand to see why")
    values = json.loads(out.read_text())
    return _Speed(values["tokens"] / values["seconds"], values["peak_mb"])


def _summary(found: Mapping[str, list[_Speed]], num_threads: int, rounds: int, seconds: float) -> dict[str, Any]:
    speeds = {name: median(one.tokens_per_second for one in runs) for name, runs in found.items()}
    peaks = {name: max(one.peak_mb for one in runs) for name, runs in found.items()}

    def ratio(peer: str) -> float | None:
        return round(speeds["recsys"] / speeds[peer], 2) if peer in speeds else None

    return {
        "threads": num_threads,
        "rounds": rounds,
        "seconds": seconds,
        "tokens_per_second": round(speeds["recsys"]),
        "replay_ratio": ratio("replay"),
        "rectools_ratio": ratio("rectools"),
        "esasrec_ratio": ratio("esasrec"),
        "memory_ratio": round(peaks["recsys"] / peaks["replay"], 3) if "replay" in peaks else None,
        "peak_mb": {name: round(peak) for name, peak in peaks.items()},
        "tokens_per_second_of": {name: round(speed) for name, speed in speeds.items()},
    }
