"""The pool alone: what is refused, what is dropped, what is bounded."""

import asyncio
import math
import threading

import pytest

from serving.deadline import BoundedPool, DeadlineError, OverloadError
from serving.lag import LoopLag, RecentCount

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


def test_whoever_waits_is_told_when_there_is_less_time_than_was_thought() -> None:
    pool, stalled, go_on = BoundedPool(1, 1), threading.Event(), threading.Event()
    left_s = iter([LONG_S, LONG_S, 0.0])

    async def scenario() -> None:
        waits = asyncio.ensure_future(
            pool.run(lambda: (stalled.set(), go_on.wait(LONG_S)), LONG_S, lambda: next(left_s))
        )
        with pytest.raises(DeadlineError):
            await waits
        assert stalled.is_set()
        go_on.set()

    asyncio.run(scenario())
    assert list(left_s) == []
    pool.close(wait_s=LONG_S)


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


def test_work_that_would_wait_too_long_is_refused_at_once_and_a_free_worker_is_always_tried() -> None:
    now = [0.0]
    pool, stalled, go_on = BoundedPool(1, 9, clock=lambda: now[0]), threading.Event(), threading.Event()

    def slow() -> None:
        now[0] += 1.0

    async def scenario() -> None:
        for _ in range(100):  # the moving average comes to a second
            await pool.run(slow, LONG_S)
        assert pool.expected_s() == 0
        await pool.run(lambda: None, 0.5)  # free: tried, though it is expected to take longer
        first = asyncio.ensure_future(pool.run(lambda: (stalled.set(), go_on.wait(LONG_S)), LONG_S))
        await asyncio.to_thread(stalled.wait, LONG_S)
        assert 1.7 < pool.expected_s() < 2.0  # one ahead, then its own
        with pytest.raises(OverloadError):
            await pool.run(lambda: None, 1.7)
        go_on.set()
        await first

    asyncio.run(scenario())
    pool.close(wait_s=LONG_S)


def test_what_comes_now_waits_as_long_as_the_first_in_the_queue_has_waited() -> None:
    now = [0.0]
    pool, begun, go_on = BoundedPool(1, 9, clock=lambda: now[0]), threading.Event(), threading.Event()
    pool.offer(lambda: (begun.set(), go_on.wait(LONG_S)))
    assert begun.wait(LONG_S)
    pool.offer(lambda: None)
    assert pool.expected_s() == 0  # nothing has taken any time so far
    now[0] = 3.0
    assert pool.expected_s() == 3
    go_on.set()
    pool.close(wait_s=LONG_S)
    assert pool.expected_s(1) < 3  # the queue is empty again


def test_a_worker_gives_way_before_it_begins_and_not_for_good() -> None:
    asked: list[int] = []

    async def scenario(stops_after: float) -> int:
        asked.clear()
        pool = BoundedPool(1, 1, gives_way=lambda: (asked.append(1), len(asked) <= stops_after)[1])
        assert await pool.run(lambda: len(asked), LONG_S) == len(asked)
        pool.close(wait_s=LONG_S)
        return len(asked)

    assert asyncio.run(scenario(3)) == 4
    assert asyncio.run(scenario(math.inf)) > 1


def test_a_worker_gives_way_for_nobody_who_has_gone() -> None:
    free, asked = threading.Event(), []

    def gives_way() -> bool:
        asked.append(1)
        free.wait(LONG_S)
        return False

    async def scenario() -> None:
        pool = BoundedPool(1, 4, clock=lambda: 0.0, gives_way=gives_way)
        first = asyncio.ensure_future(pool.run(lambda: None, LONG_S))
        while not asked:
            await asyncio.sleep(0)
        with pytest.raises(DeadlineError):
            await pool.run(lambda: None, 0.01)
        await asyncio.sleep(0.01)  # the loop tells the pool
        free.set()
        await first
        pool.close(wait_s=LONG_S)
        assert (len(asked), pool.taken) == (1, 0)

    asyncio.run(scenario())


def test_a_request_may_have_waited_since_the_beat_before_the_last() -> None:
    now = [0.0]
    lag = LoopLag(lambda: now[0])
    assert lag.seconds == 0
    for moment in (0.0, 0.005, 0.010):
        now[0] = moment
        lag.beat()
    assert (lag.seconds, lag.recent_s) == (0, 0)
    now[0] = 0.095  # the loop did not come round for 85 ms
    assert lag.seconds == pytest.approx(0.080)
    lag.beat()
    assert lag.seconds == pytest.approx(0.075)
    assert lag.recent_s == pytest.approx(0.080)
    now[0] = 0.100
    lag.beat()
    assert lag.seconds == 0  # who comes now has not waited
    now[0] = 0.150
    assert lag.recent_s == pytest.approx(0.080 * 0.5 ** (55 / 200), rel=0.01)


def test_what_happened_of_late_fades() -> None:
    now = [100.0]
    count = RecentCount(0.1, lambda: now[0])
    assert count.value == 0
    count.add()
    count.add()
    assert count.value == 2
    now[0] += 0.1
    assert count.value == pytest.approx(1)
    count.add()
    now[0] += 0.2
    assert count.value == pytest.approx(0.5)
