"""Time and memory of a run, by step."""

import time
from typing import Any

from recsys.peak_memory import peak_bytes


class Steps:
    """Call `done` at the end of each step."""

    def __init__(self) -> None:
        self._mark = time.monotonic()
        self.rows: list[dict[str, Any]] = []

    def done(self, step: str) -> None:
        """Note the time since the step before, and the highest memory of the process so far."""
        now = time.monotonic()
        self.rows.append({"step": step, "seconds": round(now - self._mark, 3), "peak_mb": round(peak_bytes() / 1e6, 1)})
        self._mark = now
