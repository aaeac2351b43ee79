"""Log lines that nobody waits for: a reader of ours that stalls must not make answers late."""

import logging
import sys
import threading
from collections import deque
from typing import Final, TextIO

_MAX_WAITING: Final = 20_000
_EVERY_S: Final = 0.1


class BufferedHandler(logging.Handler):
    """Keeps records, and writes them from a thread of its own many times a second. What does not fit is counted."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._waiting: deque[logging.LogRecord] = deque()
        self._lost = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the record for the next writing."""
        if len(self._waiting) < _MAX_WAITING:
            self._waiting.append(record)
        else:
            self._lost += 1

    def close(self) -> None:
        """Write what waits, for a second at most."""
        self._closing.set()
        self._thread.join(1)
        super().close()

    def _work(self) -> None:
        while not self._closing.wait(_EVERY_S):
            self._write()
        self._write()

    def _write(self) -> None:
        lines = [self.format(self._waiting.popleft()) for _ in range(len(self._waiting))]
        lost, self._lost = self._lost, 0
        if lost:
            lines.append(f"{lost} log lines were lost")
        if lines:
            self._stream.write("\n".join(lines) + "\n")
            self._stream.flush()


def configure() -> None:
    """Log to standard error, without looking up for each line what no line shows."""
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = BufferedHandler(sys.stderr)
    logging.basicConfig(handlers=[handler], level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
