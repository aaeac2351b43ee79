"""The pool alone: what is refused, what is dropped, what is bounded."""

import asyncio
import threading

import pytest

from serving.deadline import BoundedPool, DeadlineError, OverloadError
from serving.lag import LoopLag

LONG_S = 30.0


def test_a_result_and_an_exception_come_back() -> None:
    pool = BoundedPool(1, 1)

    def slow() -> None:
        raise TimeoutError("the database's own")

    assert asyncio.run(pool.run(lambda: 7, LONG_S)) == 7
    with pytest.raises(TimeoutError, match="the database's own"):
        asyncio.run(pool.run(slow, LONG_S))
    pool.close(wait_s=LONG_S)


def test_no_time_left_starts_no_work() -> None:
    pool, done = BoundedPool(1, 1), []
    with pytest.raises(DeadlineError):
        asyncio.run(pool.run(lambda: done.append(1), 0.0))
    pool.close(wait_s=LONG_S)
    assert done == []


def test_a_stall_fills_the_places_once_and_waiting_work_is_dropped() -> None:
    pool, stalled, go_on = BoundedPool(1, 2), threading.Event(), threading.Event()
    done: list[int] = []

    async def scenario() -> list[type[BaseException] | None]:
        def stall() -> None:
            stalled.set()
            go_on.wait(LONG_S)

        first = asyncio.ensure_future(pool.run(stall, LONG_S))
        await asyncio.to_thread(stalled.wait, LONG_S)
        late = [pool.run(lambda n=n: done.append(n), 0.001) for n in range(2)]
        outcomes = [type(o) for o in await asyncio.gather(*late, return_exceptions=True)]
        for _ in range(3):  # the two that gave up still hold their places
            outcomes.append(type((await asyncio.gather(pool.run(lambda: None, LONG_S), return_exceptions=True))[0]))
        go_on.set()
        await first
        return outcomes

    assert asyncio.run(scenario()) == [DeadlineError] * 2 + [OverloadError] * 3
    pool.close(wait_s=LONG_S)
    assert done == []  # nobody waited for them, so they were skipped


def test_places_come_back_after_a_stall() -> None:
    pool = BoundedPool(1, 0)
    for n in range(50):
        assert asyncio.run(pool.run(lambda n=n: n, LONG_S)) == n
    pool.close(wait_s=LONG_S)


def test_a_closed_pool_takes_nothing_and_finishes_what_waits() -> None:
    pool, done = BoundedPool(1, 5), []
    for n in range(5):
        assert pool.offer(lambda n=n: done.append(n))
    pool.close(wait_s=LONG_S)
    assert done == [0, 1, 2, 3, 4]
    assert not pool.offer(lambda: None)


def test_lag_is_the_worst_recent_delay_and_fades() -> None:
    now = [0.0]
    lag = LoopLag(lambda: now[0])
    lag.note(0.08)
    lag.note(0.01)  # a better moment does not hide the worse one
    assert lag.seconds == 0.08
    now[0] = 0.1
    assert lag.seconds == 0.02
    lag.note(0.03)
    assert lag.seconds == 0.03
