"""Log lines that nobody waits for: a reader of ours that stalls must not make answers late. Each is a JSON object."""

import json
import logging
import sys
import threading
from datetime import UTC, datetime
from typing import Any, BinaryIO, Final

from prometheus_client import Counter

_MAX_WAITING: Final = 20_000
_EVERY_S: Final = 0.1
_ENCODER: Final = json.JSONEncoder(default=str)

lost_lines: Final = Counter("recsys_log_lines_lost", "Log lines that were not written", registry=None)
"""Of the process, as logging is."""


def fields(**values: Any) -> dict[str, Any]:
    """The `extra` of a log call that gives its line fields of its own."""
    return {"fields": values}


def each(lines: list[tuple[float, dict[str, Any]]]) -> dict[str, Any]:
    """The `extra` of a log call that stands for many lines: the moment (`time.time()`) and the fields of each."""
    return {"each": lines}


class JsonLines(logging.Formatter):
    """A JSON object in ASCII on each line, whatever the record holds: docs/operate.md names the fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, or the lines of a record of many."""
        same = {"level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
        after = {"exception": self.formatException(record.exc_info)} if record.exc_info else {}
        return "\n".join(
            _ENCODER.encode({"time": _iso(created), **same, **own, **after}) for created, own in _lines_of(record)
        )


class BufferedHandler(logging.Handler):
    """Keeps records, and writes them from a thread of its own many times a second. What is not written is counted."""

    def __init__(self, stream: BinaryIO) -> None:
        """`stream` is unbuffered: what it does not take is known to be lost."""
        super().__init__()
        self.setFormatter(JsonLines())
        self._stream = stream
        self._waiting: list[logging.LogRecord] = []
        self._num_waiting = 0
        """Lines of them."""
        self._lost = 0
        self._line_is_torn = False
        self._counting = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the record for the next writing. Called with the handler's lock held."""
        num_lines = len(_lines_of(record))
        if self._num_waiting + num_lines <= _MAX_WAITING:
            self._waiting.append(record)
            self._num_waiting += num_lines
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
        self.acquire()
        waiting, self._waiting, self._num_waiting = self._waiting, [], 0
        self.release()
        lines = [text for text in map(self._text, waiting) if text is not None]
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

    def _text(self, record: logging.LogRecord) -> str | None:
        """None for what cannot be shown: this thread goes on whatever it was given."""
        try:
            return self.format(record)
        except Exception:
            self._lose(len(_lines_of(record)))
            return None

    def _lose(self, num_lines: int, num_said: int = 0) -> None:
        lost_lines.inc(num_lines)
        with self._counting:
            self._lost += num_lines - num_said


def _lines_of(record: logging.LogRecord) -> list[tuple[float, dict[str, Any]]]:
    return getattr(record, "each", None) or [(record.created, getattr(record, "fields", {}))]


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")


def _loss(num_lost: int) -> logging.LogRecord:
    record = logging.LogRecord(__name__, logging.WARNING, "", 0, "log lines were lost", None, None)
    record.fields = {"num_lost": num_lost}
    return record


def configure() -> None:
    """Log to standard error, without looking up for each line what no line shows."""
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    stream = open(sys.stderr.fileno(), "wb", buffering=0, closefd=False)  # noqa: SIM115 - not a path
    logging.basicConfig(handlers=[BufferedHandler(stream)], level=logging.INFO)
