"""Appends of users who come at once, in one call of the engine where that costs less than one after another.

Nobody waits for others to come: those who come while a call is under way gather, and the next call takes them
together, as many as the engine was measured to do for less each and the most urgent of them has time for. On a
processor that is one, on a GPU a call costs about the same for one and for many.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Self

import numpy as np

from recsys.contracts.ids import Tokens
from recsys.runtime.engine import Engine, Session

_SIZES: Final = (1, 2, 4, 8, 16, 32)
_PAYS: Final = 0.75
"""Share of what half as many cost each, up to which a larger batch is worth it."""
_NUM_ROUNDS: Final = 5


@dataclass(frozen=True, slots=True)
class CostCurve:
    """Seconds of one call by the number of sessions in it, as far as more at once cost less each."""

    seconds: dict[int, float]

    @classmethod
    def measured(cls, engine: Engine, clock: Callable[[], float] = time.perf_counter) -> Self:
        """Least seconds of some rounds that append one event to full windows."""
        event = np.ones(1, dtype=np.int32)
        session = engine.open([np.ones(engine.info.window_size - 1, dtype=np.int32)])[0]
        seconds: dict[int, float] = {}
        for size in _SIZES:
            rounds = []
            for _ in range(_NUM_ROUNDS):
                started = clock()
                engine.append([session] * size, [event] * size)
                rounds.append(clock() - started)
            half = seconds.get(size // 2, math.inf) / max(1, size // 2)
            if min(rounds) / size > _PAYS * half:
                break
            seconds[size] = min(rounds)
        return cls(seconds)

    @property
    def most(self) -> int:
        """The largest batch that is worth it."""
        return max(self.seconds)

    def num_within(self, num_waiting: int, left_s: float) -> int:
        """How many of those who wait one call should take to be done in the time that is left; at least one."""
        in_time = [size for size, seconds in self.seconds.items() if seconds <= left_s]
        return min(num_waiting, max(in_time, default=1))


@dataclass(slots=True, eq=False)
class _Waiting:
    """One append, and what became of it."""

    session: Session
    events: Tokens
    until: float
    turn: threading.Event = field(default_factory=threading.Event)
    """Set when it is done, or when it is to make the next call."""
    outcome: Session | Exception | None = None


class AppendBatcher:
    """Continues sessions, in batches where the engine's cost curve says so. Thread-safe."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` is the one that `until` is told by."""
        self._engine = engine
        self._clock = clock
        self._curve = CostCurve({1: 0.0})
        self._waiting: deque[_Waiting] = deque()
        self._is_calling = False
        self._lock = threading.Lock()

    def measure(self) -> None:
        """Find out what batches cost on this machine; until then there are none."""
        self._curve = CostCurve.measured(self._engine)

    @property
    def most(self) -> int:
        """How many are worth doing together."""
        return self._curve.most

    def append(self, session: Session, events: Tokens, until: float = math.inf) -> Session:
        """The session with its new events, wanted before the moment `until`. See `Engine.append`."""
        if self._curve.most == 1:
            return self._engine.append([session], [events])[0]
        mine = _Waiting(session, events, until)
        with self._lock:
            self._waiting.append(mine)
            must_wait, self._is_calling = self._is_calling, True
        if must_wait:
            mine.turn.wait()
        if mine.outcome is None:
            self._call(self._next_batch())
        if isinstance(mine.outcome, Exception):
            raise mine.outcome
        assert mine.outcome is not None
        return mine.outcome

    def _next_batch(self) -> list[_Waiting]:
        """Those who have waited longest: whoever makes the call is the first of them.

        Whose time is over is in no hurry: the session is kept for the next request.
        """
        with self._lock:
            now = self._clock()
            left_s = min((each.until for each in self._waiting if each.until > now), default=math.inf) - now
            num = self._curve.num_within(len(self._waiting), left_s)
            return [self._waiting.popleft() for _ in range(num)]

    def _call(self, batch: list[_Waiting]) -> None:
        try:
            self._continue(batch)
        finally:
            for each in batch:
                each.turn.set()
            with self._lock:
                self._is_calling = bool(self._waiting)
                if self._waiting:
                    self._waiting[0].turn.set()

    def _continue(self, batch: list[_Waiting]) -> None:
        """Note what becomes of each. What the engine cannot do together it is asked to do one by one."""
        try:
            longer = self._engine.append([each.session for each in batch], [each.events for each in batch])
        except Exception as error:
            if len(batch) == 1:
                batch[0].outcome = error
                return
            for each in batch:
                self._continue([each])
        else:
            for each, session in zip(batch, longer, strict=True):
                each.outcome = session
