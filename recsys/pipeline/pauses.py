"""When a machine did not let its processes run, told apart from when our own load kept it busy."""

import subprocess
import sys
from collections.abc import Sequence
from typing import Any, Final

PAUSE_MS: Final = 20.0
"""Longest that an idle process may be kept from running before the machine is said to have paused."""
OURS: Final = 0.5
"""Share of all processor time during a pause from which on it is called our own doing."""
# A process's clock can be read by its number: see clock_getcpuclockid(3).
_CONTROL = f"""
import os, sys, time
clocks = [(~int(pid) << 3) | 2 for pid in sys.argv[1:]]
def used():
    return sum(map(time.clock_gettime, clocks))
last, before = time.monotonic(), used()
while True:
    time.sleep(0.002)
    now = time.monotonic()
    if now - last > {PAUSE_MS / 1000}:
        share = (used() - before) / (now - last) / os.cpu_count()
        print(last, now, share, flush=True)
    last, before = time.monotonic(), used()
"""


class Pauses:
    """A process that does nothing but notice when it was not allowed to run, and how much of that time was ours."""

    def __init__(self, our_pids: Sequence[int]) -> None:
        self._command = [sys.executable, "-c", _CONTROL, *map(str, our_pids)]
        self.found: list[tuple[float, float]] = []

    def __enter__(self) -> "Pauses":
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)  # noqa: S603
        return self

    def __exit__(self, *_: Any) -> None:
        self._process.terminate()
        rows = [line.split() for line in self._process.communicate(timeout=10)[0].splitlines()]
        self.found = [(float(row[0]), float(row[1])) for row in rows if len(row) == 3 and float(row[2]) < OURS]

    def overlap_ms(self, start: float, stop: float) -> float:
        """How long the machine paused between two moments, in milliseconds."""
        return sum(max(0.0, min(end, stop) - max(begin, start)) for begin, end in self.found) * 1000
