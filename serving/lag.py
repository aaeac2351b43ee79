"""What a deadline has to allow for: how long a request may have waited unseen, and how many were shed of late."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

_EVERY_S: Final = 0.005
_HALVED_AFTER_S: Final = 0.2


class LoopLag:
    """A heartbeat on the event loop.

    A request that is seen now came after the beat before the last: the loop looked at its sockets then, and
    accepting a connection takes it one look more.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._beats: tuple[float, float] | None = None
        self._worst_s = 0.0
        self._since: float | None = None
        self.backlog_since: float | None = None
        """The moment after which the first of those who wait for their turn has come; None while nobody waits."""

    @property
    def seconds(self) -> float:
        """The longest that a request which is seen now can have waited, less the usual distance of beats."""
        return self.waited_s(self.seen_since)

    def waited_s(self, since: float) -> float:
        """The longest that what came after this moment can have waited, less the usual distance of beats."""
        return 0.0 if self._beats is None else max(0.0, self._clock() - since - 2 * _EVERY_S)

    @property
    def behind_s(self) -> float:
        """The same of what is to be seen next, for other threads: the backlog counts, too."""
        beats, backlog_since = self._beats, self.backlog_since
        if beats is None:
            return 0.0
        since = beats[0] if backlog_since is None else min(beats[0], backlog_since)
        return max(0.0, self._clock() - since - 2 * _EVERY_S)

    @property
    def seen_since(self) -> float:
        """The moment after which a request that is seen now has come."""
        if self._since is not None:
            return self._since
        return self._clock() if self._beats is None else self._beats[0]

    @contextmanager
    def waited_since(self, moment: float) -> Iterator[None]:
        """What is seen in here came after `moment`: it has waited since."""
        self._since = moment
        try:
            yield
        finally:
            self._since = None

    @property
    def recent_s(self) -> float:
        """The worst delay of a beat, fading by half every 200 ms: what may happen again before the answer is out."""
        beats = self._beats
        return 0.0 if beats is None else self._worst_s * float(0.5 ** ((self._clock() - beats[1]) / _HALVED_AFTER_S))

    def beat(self) -> None:
        """The loop has come round."""
        now = self._clock()
        last = now if self._beats is None else self._beats[1]
        self._worst_s = max(self.recent_s, now - last - _EVERY_S)
        self._beats = last, now

    def start(self) -> None:
        """Beat on the running loop until `stop`."""
        self.beat()
        self._next = asyncio.get_running_loop().call_later(_EVERY_S, self.start)

    def stop(self) -> None:
        """Say nothing more."""
        self._next.cancel()
        self._beats = None


class RecentCount:
    """How often something happened of late: what happened counts half as much after every `half_life_s`."""

    def __init__(self, half_life_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._half_life_s = half_life_s
        self._clock = clock
        self._count = 0.0
        self._counted_at = clock()

    @property
    def value(self) -> float:
        """At the moment."""
        return self._count * float(0.5 ** ((self._clock() - self._counted_at) / self._half_life_s))

    def add(self, num: int = 1) -> None:
        """It happened once more, or so often."""
        self._count = self.value + num
        self._counted_at = self._clock()
