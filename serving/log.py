"""Log lines that nobody waits for: a reader of ours that stalls must not make answers late. Each is a JSON object."""

import json
import logging
import sys
import threading
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, BinaryIO, Final

import orjson
from prometheus_client import Counter

_MAX_WAITING: Final = 20_000
_EVERY_S: Final = 0.1

lost_lines: Final = Counter("recsys_log_lines_lost", "Log lines that were not written", registry=None)
"""Of the process, as logging is."""


def fields(**values: Any) -> dict[str, Any]:
    """The `extra` of a log call that gives its line fields of its own."""
    return {"fields": values}


def lines(each: Sequence[dict[str, Any]], **values: Any) -> dict[str, Any]:
    """The `extra` of a log call that stands for several lines: each has fields of its own, and these values.

    Its own are written by `orjson`, for a tenth of the work: one at least, in ASCII, no name that a value has.
    """
    return {"fields": values, "lines": each}


def _num_lines(record: logging.LogRecord) -> int:
    each = getattr(record, "lines", None)
    return 1 if each is None else len(each)


class JsonLines(logging.Formatter):
    """One JSON object in ASCII on one line, whatever the record holds: docs/operate.md names the fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, or those of a record that stands for several."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        whole = json.dumps(line, default=str)
        each = getattr(record, "lines", None)
        return whole if each is None else "\n".join([f"{whole[:-1]}, {orjson.dumps(own).decode()[1:]}" for own in each])


class BufferedHandler(logging.Handler):
    """Keeps records, and writes them from a thread of its own many times a second. What is not written is counted."""

    def __init__(self, stream: BinaryIO) -> None:
        """`stream` is unbuffered: what it does not take is known to be lost."""
        super().__init__()
        self.setFormatter(JsonLines())
        self._stream = stream
        self._waiting: deque[logging.LogRecord] = deque()
        self._num_waiting = 0
        """Lines."""
        self._lost = 0
        self._line_is_torn = False
        self._counting = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the record for the next writing."""
        num_lines = _num_lines(record)
        with self._counting:
            is_taken = self._num_waiting + num_lines <= _MAX_WAITING
            self._num_waiting += num_lines * is_taken
        if is_taken:
            self._waiting.append(record)
        else:
            self._lose(num_lines)

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
        waiting = [self._waiting.popleft() for _ in range(len(self._waiting))]
        num_lines = sum(map(_num_lines, waiting))
        with self._counting:  # nothing in here makes an object: a garbage collection may log, too
            self._num_waiting -= num_lines
        lines = [line for line in map(self._line, waiting) if line is not None]
        said = self._lost
        if said:
            lines.append(self.format(_loss(said)))
        if not lines:
            return
        left = ("\n" * self._line_is_torn + "\n".join(lines) + "\n").encode()
        try:
            while left:
                written = self._stream.write(left)
                if not written:
                    raise BlockingIOError("the reader is behind, and does not want us to wait")
                left = left[written:]
        except (OSError, ValueError):  # a full disk, a reader that has gone; later lines may find it better
            self._line_is_torn = True
            self._lose(max(0, left.lstrip(b"\n").count(b"\n") - bool(said)))
        else:
            self._line_is_torn = False
            self._lose(0, said)

    def _line(self, record: logging.LogRecord) -> str | None:
        """None for what cannot be shown: this thread goes on whatever it was given."""
        try:
            return self.format(record)
        except Exception:
            self._lose(_num_lines(record))
            return None

    def _lose(self, num_lines: int, num_said: int = 0) -> None:
        lost_lines.inc(num_lines)
        with self._counting:
            self._lost += num_lines - num_said


def _loss(num_lost: int) -> logging.LogRecord:
    record = logging.LogRecord(__name__, logging.WARNING, "", 0, "log lines were lost", None, None)
    record.fields = {"num_lost": num_lost}
    return record


def configure() -> None:
    """Log to standard error, without looking up for each line what no line shows."""
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    stream = open(sys.stderr.fileno(), "wb", buffering=0, closefd=False)  # noqa: SIM115 - not a path
    logging.basicConfig(handlers=[BufferedHandler(stream)], level=logging.INFO)
