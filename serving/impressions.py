"""What was shown, written behind the answers' backs, many at a time."""

import logging
import threading
from collections import deque
from collections.abc import Callable

from recsys.contracts.errors import StoreError
from recsys.store import EventStore, Impression

logger = logging.getLogger(__name__)

_MAX_WAITING = 10_000
_MAX_BATCH = 500
_EVERY_S = 0.1


class ImpressionWriter:
    """A thread that stores impressions in batches, so that answers share a commit. None is lost unnoticed.

    It looks for work now and then: to be woken by each answer would take the interpreter from the next one.
    """

    def __init__(self, store: EventStore, lost: Callable[[int], object]) -> None:
        """`lost` is told how many impressions were not kept."""
        self._store = store
        self._lost = lost
        self._waiting: deque[Impression] = deque()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="impressions", daemon=True)
        self._thread.start()

    def offer(self, impression: Impression) -> None:
        """Keep it some time, unless too many wait."""
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
            self._write()
        self._write()

    def _write(self) -> None:
        """Store all that waits."""
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(_MAX_BATCH, len(self._waiting)))]
            try:
                self._store.record_impressions(batch)
            except StoreError as error:
                self._lost(len(batch))
                logger.warning("%s", error)
