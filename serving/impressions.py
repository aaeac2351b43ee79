"""What was shown, written behind the answers' backs, many at a time."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from recsys.contracts.errors import StoreError
from recsys.store import EventStore, Impression

logger = logging.getLogger(__name__)

_MAX_WAITING = 10_000
_MAX_BATCH = 500
_EVERY_S = 0.1
_MOST_WAIT_MS = 30_000
"""What waited longer, because the store stalled, is lost: recall looks back a minute for answers that are new."""


class ImpressionWriter:
    """A thread that stores impressions in batches, so that answers share a commit. None is lost unnoticed.

    It looks for work now and then: to be woken by each answer would take the interpreter from the next one.
    """

    def __init__(self, store: EventStore, lost: Callable[[int], object]) -> None:
        """`lost` is told how many impressions were not kept."""
        self._store = store
        self._lost = lost
        self._waiting: deque[Impression] = deque()
        self._writing = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="impressions", daemon=True)
        self._thread.start()

    def offer(self, impression: Impression) -> None:
        """Keep it some time, with the moment that it has, unless too many wait."""
        if len(self._waiting) < _MAX_WAITING:
            self._waiting.append(impression)
        else:
            self._lost(1)

    def close(self, wait_s: float) -> None:
        """Write what waits, for a while at most."""
        self._closing.set()
        self._thread.join(wait_s)

    def _work(self) -> None:
        while not self._closing.wait(_EVERY_S):
            self.write()
        self.write()

    def write(self) -> None:
        """Store all that waits; what another thread has taken is stored, too, when this returns."""
        with self._writing:
            while batch := [self._waiting.popleft() for _ in range(min(_MAX_BATCH, len(self._waiting)))]:
                self._write(batch)

    def _write(self, batch: list[Impression]) -> None:
        oldest_ms = time.time() * 1000 - _MOST_WAIT_MS
        fresh = [each for each in batch if each.served_ms is None or each.served_ms >= oldest_ms]
        try:
            if fresh:
                self._store.record_impressions(fresh)
        except StoreError as error:
            fresh = []
            logger.warning("%s", error)
        except Exception:  # one bad answer must not end the thread
            fresh = []
            logger.exception("impressions not kept")
        if len(fresh) < len(batch):
            self._lost(len(batch) - len(fresh))
