"""What was shown, written behind the answers' backs, many at a time."""

import logging
import queue
import threading
from collections.abc import Callable

from recsys.contracts.errors import StoreError
from recsys.store import EventStore, Impression

logger = logging.getLogger(__name__)

_MAX_WAITING = 10_000
_MAX_BATCH = 500


class ImpressionWriter:
    """A thread that stores impressions in batches, so that answers share a commit. None is lost unnoticed."""

    def __init__(self, store: EventStore, lost: Callable[[int], object]) -> None:
        """`lost` is told how many impressions were not kept."""
        self._store = store
        self._lost = lost
        self._waiting: queue.Queue[Impression | None] = queue.Queue(_MAX_WAITING)
        self._thread = threading.Thread(target=self._write, name="impressions", daemon=True)
        self._thread.start()

    def offer(self, impression: Impression) -> None:
        """Keep it some time, unless too many wait."""
        try:
            self._waiting.put_nowait(impression)
        except queue.Full:
            self._lost(1)

    def close(self, wait_s: float) -> None:
        """Write what waits, for a while at most."""
        try:
            self._waiting.put(None, timeout=wait_s)
        except queue.Full:
            return
        self._thread.join(wait_s)

    def _write(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch, ended = [first], False
            while len(batch) < _MAX_BATCH and not self._waiting.empty():
                more = self._waiting.get()
                if more is None:
                    ended = True
                    break
                batch.append(more)
            try:
                self._store.record_impressions(batch)
            except StoreError as error:
                self._lost(len(batch))
                logger.warning("%s", error)
            if ended:
                return
