"""Work that is waited for only until its deadline."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class OverloadError(Exception):
    """Too many requests wait already."""


class BoundedPool:
    """Worker threads off the event loop, with a bounded number of requests in and before them."""

    def __init__(self, num_workers: int, max_waiting: int) -> None:
        self._pool = ThreadPoolExecutor(num_workers, thread_name_prefix="answer")
        self._places = threading.BoundedSemaphore(num_workers + max_waiting)

    async def run(self, work: Callable[[], T], timeout_s: float) -> T:
        """The result of `work` in a worker thread.

        Raises:
            OverloadError: no place is left.
            TimeoutError: no result in time. Work that has begun goes on and keeps its place until it
                ends; work that has not is dropped.
        """
        future = self._submit(work)
        if future is None:
            raise OverloadError
        wrapped = asyncio.wrap_future(future)
        done, _ = await asyncio.wait({wrapped}, timeout=max(0.0, timeout_s))
        if not done:
            wrapped.cancel()
            raise TimeoutError
        return wrapped.result()

    def offer(self, work: Callable[[], object]) -> bool:
        """Do `work` some time, unless no place is left."""
        return self._submit(work) is not None

    def _submit(self, work: Callable[[], T]) -> "Future[T] | None":
        if not self._places.acquire(blocking=False):
            return None
        future = self._pool.submit(work)
        future.add_done_callback(lambda _: self._places.release())
        return future

    def close(self, *, wait: bool = False) -> None:
        """Take no more work; what is under way or waiting is finished first only if `wait`."""
        self._pool.shutdown(wait=wait, cancel_futures=not wait)
