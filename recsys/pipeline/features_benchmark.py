"""The feature job's figures: memory, speed beside plain polars and RecTools, one more day, ten times the log."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import psutil

from features import bulk
from recsys.contracts.artifact import read_manifest
from recsys.contracts.errors import DataError
from recsys.pipeline.progress import bar

NUM_DAYS: Final = 100
PEER_EVENTS: Final = 10_000_000
"""Events of the comparison with RecTools, at most."""
PEER_TURNS: Final = 3
"""Each builds so many times, in turn."""
FLOOR_BYTES_PER_EVENT: Final = 160
"""Memory that plain polars needs to group a log; where there is less, the floor is measured on a tenth of it."""
PEER_PYTHON: Final = Path(".venv-peers/rectools/bin/python")
PEER_SCRIPT: Final = Path("peers/rectools_features.py")
_FLOOR = """
import sys, polars as pl
log = pl.scan_parquet(sys.argv[1] + "/*.parquet")
good = log.filter(pl.col("user_id").is_not_null() & pl.col("item_id").is_not_null() & (pl.col("timestamp") > 0))
good.group_by("user_id").agg("item_id", "timestamp", "event_type").sink_parquet(sys.argv[2])
"""


@dataclass(frozen=True, slots=True)
class _Cost:
    seconds: float
    peak_gib: float


def run(num_events: int) -> dict[str, Any]:
    """Simulate a log, build it in processes of their own, and compare; everything is removed afterwards.

    Ratios are of times in this one run, on as many threads as the machine has.
    """
    with tempfile.TemporaryDirectory(prefix="recsys-features-") as folder, bar("benchmark") as advance:
        place = Path(folder)
        advance("simulate", 0, 6)
        last_day = _simulate(place, num_events, "log")
        advance("full build", 1, 6)
        full = _build(place / "log", place / "out")
        steps = read_manifest(place / "out").metrics["steps"]
        advance("floor", 2, 6)
        floor = _floor(place, num_events)
        advance("one more day", 3, 6)
        last_day.rename(place / "log" / last_day.name)
        one_day = _build(place / "log", place / "out")
        day_steps = read_manifest(place / "out").metrics["steps"]
        for name in ("log", "out"):
            shutil.rmtree(place / name)
        advance("a tenth", 4, 6)
        _simulate(place, max(1, num_events // 10), "tenth")
        tenth = _build(place / "tenth", place / "tenth-out")
        tenth_floor = floor or _floor(place, num_events // 10, "tenth")
        advance("RecTools", 5, 6)
        peer_events = min(num_events, PEER_EVENTS)
        peer, peer_csv = _rectools(place, peer_events, "peer"), _rectools(place, peer_events, "peer.csv")
    ours_beside_floor = full if floor else tenth
    return {
        "events": num_events,
        "seconds": round(full.seconds, 2),
        "peak_gib": round(full.peak_gib, 3),
        "events_per_second": round(num_events / full.seconds),
        "floor_events": num_events if floor else num_events // 10,
        "floor_peak_gib": None if tenth_floor is None else round(tenth_floor.peak_gib, 3),
        "floor_ratio": None if tenth_floor is None else round(tenth_floor.seconds / ours_beside_floor.seconds, 3),
        "rectools_events": peer_events,
        "rectools_ratio": peer,
        "rectools_csv_ratio": peer_csv,
        "one_day_seconds": round(one_day.seconds, 2),
        "one_day_share": round(one_day.seconds / full.seconds, 4),
        "growth_10x": round(full.seconds / tenth.seconds, 2),
        "steps": steps,
        "one_day_steps": day_steps,
    }


def _simulate(place: Path, num_events: int, name: str) -> Path:
    """A folder with a file a day, and the path of one more day, 1 % of the events, outside it."""
    config = bulk.BulkConfig(
        num_users=max(10, num_events // 100),
        num_items=max(100, min(100_000, num_events // 1000)),
        num_events=num_events + num_events // NUM_DAYS,
        num_days=NUM_DAYS + 1,
    )
    bulk.run(config, place / name)
    last = max((place / name).iterdir())
    return last.rename(place / last.name)


def _build(log: Path, out: Path) -> _Cost:
    return _measured([sys.executable, "-m", "recsys", "features", "build", str(log), "--out", str(out)])


def _floor(place: Path, num_events: int, name: str = "log") -> _Cost | None:
    """Plain polars: read, filter, group by user, write; None where it would not fit into memory."""
    if num_events * FLOOR_BYTES_PER_EVENT > psutil.virtual_memory().available:
        return None
    return _measured([sys.executable, "-c", _FLOOR, str(place / name), str(place / "floor.parquet")])


def _rectools(place: Path, num_events: int, name: str) -> float | None:
    """How many times as long RecTools and pandas take from a log to sequences, the median of turns; None without them.

    A name that ends in .csv makes the log one CSV file, any other a folder of daily Parquet files, as above.
    """
    if not (PEER_PYTHON.exists() and PEER_SCRIPT.exists()):
        return None
    log = place / name
    num_items = max(100, num_events // 1000)
    bulk.run(bulk.BulkConfig(num_users=max(10, num_events // 100), num_items=num_items, num_events=num_events), log)
    ratios = []
    for turn in range(PEER_TURNS):
        ours = _build(log, place / f"{name}-out-{turn}")
        theirs = _measured([str(PEER_PYTHON), str(PEER_SCRIPT), str(log), str(place / "peer.pkl")])
        ratios.append(theirs.seconds / ours.seconds)
    return round(median(ratios), 2)


def _measured(command: list[str]) -> _Cost:
    """Wall time and peak memory of a process of its own, its start included."""
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)  # noqa: S603
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            raise DataError(f"{json.dumps(command[:4])} failed: {errors.read()[-500:]}; run it by hand to see why")
    return _Cost(seconds, usage.ru_maxrss / 2**20)
