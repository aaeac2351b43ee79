"""Work that is waited for only until its deadline."""

import asyncio
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, TypeVar

T = TypeVar("T")
_Job = Callable[[], None]
_WEIGHT_OF_NEWEST: Final = 0.1
"""In the moving average of how long work takes."""
_GIVES_WAY_S: Final = 0.001
_MOST_S: Final = 0.05
"""How long a worker gives way at a time, and in all before it begins all the same."""
_LOOK_AGAIN_S: Final = 0.02
"""How often whoever waits asks whether there still is time."""


class OverloadError(Exception):
    """Too many requests wait already."""


class DeadlineError(Exception):
    """No result in time. Not a `TimeoutError`, which the work itself may raise."""


class BoundedPool:
    """Worker threads off the event loop, with a bounded number of requests in and before them.

    A request holds its place until a worker is done with it or has skipped it, also when nobody waits for
    it any more: a stalled engine fills the places once, then the next requests are refused at once. The
    threads are daemons, so a stalled engine does not keep the process from ending.
    """

    def __init__(
        self,
        num_workers: int,
        max_waiting: int,
        name: str = "answer",
        clock: Callable[[], float] = time.monotonic,
        gives_way: Callable[[], bool] = lambda: False,
    ) -> None:
        """`gives_way` says whether work that has not begun is to wait a little: others need the interpreter more."""
        self.name = name
        self._gives_way = gives_way
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._places = threading.BoundedSemaphore(num_workers + max_waiting)
        self.size = num_workers + max_waiting
        """Places there are."""
        self._num_workers = num_workers
        self._clock = clock
        self._typical_s = 0.0
        self._waiting_since: deque[float] = deque()
        """Of each piece of work that has not begun, dropped ones too, in their order."""
        self._closed = False
        self._threads = [
            threading.Thread(target=self._serve, name=f"{name}-{n}", daemon=True) for n in range(num_workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def taken(self) -> int:
        """Places in use."""
        return self.size - self._places._value

    def expected_s(self, num_before: int | None = None) -> float:
        """How long work that comes now would take to be done, waiting included.

        As things went lately, or as they go: whoever comes now waits about as long as the first in the queue has
        waited, and when much comes at once each piece of work takes longer than it did alone. `num_before` is how many
        come before it, those in the pool if it is left out. 0 where a worker is free: it is always tried, so one long
        stall does not shut the pool for good.
        """
        ahead = (self.taken if num_before is None else num_before) - self._num_workers + 1
        if ahead <= 0:
            return 0.0
        return max(ahead / self._num_workers * self._typical_s, self._waited_s()) + self._typical_s

    async def run(self, work: Callable[[], T], timeout_s: float, still_s: Callable[[], float] = lambda: math.inf) -> T:
        """The result of `work` in a worker thread, or what it raised.

        `still_s` may say later that there is less time from then on than was thought.

        Raises:
            OverloadError: no place is left, or too many are ahead for the time that is.
            DeadlineError: no result in time. Work that has begun goes on; work that has not is dropped.
        """
        if timeout_s <= 0:
            raise DeadlineError
        future = self._submit(work) if self.expected_s() <= timeout_s else None
        if future is None:
            raise OverloadError
        wrapped = asyncio.wrap_future(future)
        clock = asyncio.get_running_loop().time
        until = clock() + timeout_s
        while not wrapped.done():
            left_s = min(until - clock(), still_s())
            if left_s <= 0:
                wrapped.cancel()
                raise DeadlineError
            await asyncio.wait({wrapped}, timeout=min(left_s, _LOOK_AGAIN_S))
        return wrapped.result()

    def offer(self, work: Callable[[], object]) -> bool:
        """Do `work` some time, unless no place is left."""
        return self._submit(work) is not None

    def close(self, *, wait_s: float = 0) -> None:
        """Take no more work. What waits is dropped, unless it is done within `wait_s`."""
        self._closed = True
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join(wait_s)

    def _submit(self, work: Callable[[], T]) -> "Future[T] | None":
        if self._closed or not self._places.acquire(blocking=False):
            return None
        future: Future[T] = Future()
        self._waiting_since.append(self._clock())
        self._jobs.put(lambda: self._do(work, future))
        return future

    def _do(self, work: Callable[[], T], future: "Future[T]") -> None:
        until = time.monotonic() + _MOST_S
        while not future.cancelled() and self._gives_way() and time.monotonic() < until:
            time.sleep(_GIVES_WAY_S)
        self._waiting_since.popleft()
        if not future.set_running_or_notify_cancel():
            self._places.release()
            return
        started = self._clock()
        try:
            result = work()
        except BaseException as error:  # whoever waits for the future gets it
            if isinstance(error, DeadlineError):  # it took as long as it was given, and more
                self._learn(started)
            self._places.release()
            future.set_exception(error)
        else:
            self._learn(started)
            self._places.release()
            future.set_result(result)

    def _waited_s(self) -> float:
        try:
            return self._clock() - self._waiting_since[0]
        except IndexError:  # a worker has just taken it
            return 0.0

    def _learn(self, started: float) -> None:
        self._typical_s += _WEIGHT_OF_NEWEST * (self._clock() - started - self._typical_s)

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
