"""RePlay's compiled SasRec of equal width and layers, on one user of 2,048 events: a process in its own environment.

It answers once each time it is asked, so that its answers are timed in turns with ours.
"""

import json
import os
import select
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

from recsys.contracts.errors import DataError
from recsys.model.config import ModelConfig

PYTHON: Final = Path(".venv-peers/replay/bin/python")
SCRIPT: Final = Path("peers/replay_serve.py")
TIMEOUT_S: Final = 300
"""Longest that it may take to start, and to answer."""


class Replay:
    """The running peer. Not thread-safe."""

    def __init__(self, process: "subprocess.Popen[str]", log: IO[str]) -> None:
        self._process = process
        self._log = log
        self.load_s = round(float(self._line()["load_s"]), 3)
        """From the start of its process to its first answer."""
        self.peak_mb = 0.0
        """The most memory that it has held so far."""

    def answer(self) -> float:
        """Milliseconds of one answer, as it measured them itself.

        Raises:
            DataError: it has ended, or hangs.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("answer\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, which the line below says
        found = self._line()
        self.peak_mb = round(float(found["peak_mb"]), 3)
        return float(found["ms"])

    def _line(self) -> dict[str, Any]:
        """What it writes next: one line, each time it is asked."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], TIMEOUT_S)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            self._log.seek(0)
            said = self._log.read()[-300:].strip() if ready else f"no answer for {TIMEOUT_S} s"
            raise DataError(f"{SCRIPT} failed: {said}; run `make peers` again, or it by hand to see why")
        values: dict[str, Any] = json.loads(line)
        return values


@contextmanager
def running(model: ModelConfig, num_items: int, num_events: int, num_threads: int) -> Iterator[Replay | None]:
    """The peer, loaded; None where it is not installed.

    Raises:
        DataError: it is installed and failed.
    """
    if not (PYTHON.exists() and SCRIPT.exists()):
        yield None
        return
    shape = (num_items, model.width, model.num_layers, model.num_heads, num_events, num_threads)
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(  # noqa: S603
            [str(PYTHON), str(SCRIPT), *map(str, shape)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(num_threads)},
        )
        try:
            yield Replay(process, log)
        finally:
            process.kill()
            process.communicate()
