"""Recall is counted in a process of its own: answers do not wait for its interpreter, and it gives way to them.

The process hears by its standard input when to count, and ends with it.
"""

import os
import signal
import subprocess
import sys
import threading
import time

from recsys.contracts.errors import StoreError
from recsys.store.events import EventStore

_COMMAND = [sys.executable, "-m", __name__]
_NICE = 10
_REST = 1.0
"""How many times as long as it worked it leaves the store to those who write."""


class RecallCounter:
    """Brings the counts of a store up to date, in a process that starts with the first count. Thread-safe."""

    def __init__(self, store: EventStore, window_ms: int) -> None:
        """`window_ms` is how long after an answer an event may count for it."""
        self._greeting = f"{store.engine.url.render_as_string(hide_password=False)}\n{window_ms}\n".encode()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_closed = False
        self._lock = threading.Lock()

    def count(self) -> None:
        """Count now, unless it was closed; see `Attribution.update`.

        Raises:
            StoreError: the counts are as they were, or some answers are not counted yet. The next count does it.
        """
        with self._lock:
            if self._is_closed:
                return
            said = self._ask()
            if not said.endswith("\n") and not self._is_closed:
                self._end()
                raise StoreError("recall not counted: its process ended; it is started again")
        if said.strip():
            raise StoreError(said.strip())

    def close(self) -> None:
        """End the process; a count under way is left as it is, and done the next time."""
        self._is_closed = True
        under_way = self._process
        if under_way is not None:
            under_way.kill()
        with self._lock:
            self._end()

    def _ask(self) -> str:
        """What the process says after counting; no whole line if it ended."""
        process = self._process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(b"count\n")
            return process.stdout.readline().decode()
        except OSError:
            return ""

    def _start(self) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(_COMMAND, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603
        assert process.stdin is not None
        process.stdin.write(self._greeting)  # not an argument: those are everybody's to read
        return process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with process:  # closes the pipes and waits
                process.kill()  # what it had not committed is counted the next time


def _serve() -> None:
    """Count whenever a line comes; answer with an empty line, or with what went wrong."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the endpoint ends us
    os.nice(_NICE)
    url, window_ms = sys.stdin.readline().strip(), int(sys.stdin.readline())
    store: EventStore | None = None
    for _ in sys.stdin:
        said = ""
        try:
            store = store or EventStore.open(url)
            store.attribution.update(window_ms, lambda took_s: time.sleep(_REST * took_s))
        except StoreError as error:
            said = str(error).replace("\n", " ")
        sys.stdout.write(f"{said}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
