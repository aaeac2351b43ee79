"""Appends that are done together: when, how many, and what becomes of each."""

import math
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest

from recsys.contracts.ids import Tokens
from recsys.contracts.precision import CacheFormat
from recsys.runtime.engine import EngineInfo, Session
from serving.batching import AppendBatcher, CostCurve
from serving.sessions import Sessions

FIXED_S, EACH_S = 0.010, 0.001
EVENT = np.ones(1, dtype=np.int32)


class SlowEngine:
    """A call takes a while whatever it does, and a little for each session. It can be held up."""

    def __init__(self, fixed_s: float = FIXED_S, each_s: float = EACH_S) -> None:
        self.info = EngineInfo(
            name="slow", precision="f32", width=1, num_threads=1, window_size=8, cache=CacheFormat.FLOAT32
        )
        self.now = 0.0
        self.calls: list[int] = []
        self.called = threading.Semaphore(0)
        self.go_on = threading.Event()
        self.go_on.set()
        self._costs = fixed_s, each_s

    def open(self, windows: Sequence[Tokens]) -> list[Session]:
        return [Session(np.zeros(1, dtype=np.float32), len(window), 1, None) for window in windows]

    def append(self, sessions: Sequence[Session], events: Sequence[Tokens]) -> list[Session]:
        self.calls.append(len(sessions))
        self.called.release()
        assert self.go_on.wait(30)
        self.now += self._costs[0] + self._costs[1] * len(sessions)
        if any(session.length < 0 for session in sessions):
            raise ValueError("a poisoned session")
        return [Session(s.vector_D, s.length + len(e), 1, None) for s, e in zip(sessions, events, strict=True)]


def session(length: int = 1) -> Session:
    return Session(np.zeros(1, dtype=np.float32), length, 1, None)


def gathered(
    engine: SlowEngine, sessions: list[Session], until: float | list[float] = math.inf
) -> tuple[AppendBatcher, list[Future[Session]]]:
    """All sessions wait behind one call that is under way, and then go on."""
    batcher = AppendBatcher(engine, clock=lambda: 0.0)  # type: ignore[arg-type]
    batcher._curve = CostCurve.measured(engine, lambda: engine.now)  # type: ignore[arg-type]
    engine.calls.clear()
    while engine.called.acquire(blocking=False):
        pass
    engine.go_on.clear()
    pool = ThreadPoolExecutor(len(sessions) + 1)
    first = pool.submit(batcher.append, session(), EVENT)
    assert engine.called.acquire(timeout=30)
    futures = []
    for place, each in enumerate(sessions):
        mine = until[place] if isinstance(until, list) else until
        futures.append(pool.submit(batcher.append, each, EVENT, mine))
        while len(batcher._waiting) <= place:
            pass
    engine.go_on.set()
    assert first.result(30).length == 2
    pool.shutdown()
    return batcher, futures


def test_a_batch_is_as_large_as_it_still_saves() -> None:
    engine = SlowEngine()
    curve = CostCurve.measured(engine, lambda: engine.now)  # type: ignore[arg-type]
    assert curve.most == 16  # 32 would save a fifth of each
    assert curve.seconds[4] == pytest.approx(FIXED_S + 4 * EACH_S)
    engine = SlowEngine(fixed_s=0.00005)  # as on a processor: ten together cost nearly ten times as much
    assert CostCurve.measured(engine, lambda: engine.now).most == 1  # type: ignore[arg-type]


def test_those_who_come_during_a_call_are_done_together_in_the_next() -> None:
    engine = SlowEngine()
    _, futures = gathered(engine, [session(length) for length in (1, 2, 3)])
    assert [future.result().length for future in futures] == [2, 3, 4]  # each its own
    assert engine.calls == [1, 3]


@pytest.mark.parametrize(("left_s", "calls"), [(0.0145, [1, 4, 2]), (0.0125, [1, 2, 2, 2]), (0.001, [1] * 7)])
def test_a_call_takes_no_longer_than_the_most_urgent_can_wait(left_s: float, calls: list[int]) -> None:
    engine = SlowEngine()
    gathered(engine, [session() for _ in range(6)], until=left_s)
    assert engine.calls == calls


@pytest.mark.parametrize(
    ("until", "calls"),
    [
        ([-1.0, -1.0, 1.0, 1.0, 1.0, 1.0], [1, 6]),
        ([-1.0, 0.0145, 0.0145, 0.0145, 0.0145, 1.0], [1, 4, 2]),
        ([-1.0, 0.0], [1, 2]),
    ],
)
def test_those_whose_time_is_over_hurry_nobody_and_are_done_too(until: list[float], calls: list[int]) -> None:
    engine = SlowEngine()
    _, futures = gathered(engine, [session(n) for n in range(len(until))], until)
    assert [future.result().length for future in futures] == [n + 1 for n in range(len(until))]
    assert engine.calls == calls


@pytest.mark.parametrize(("told", "most", "num_workers"), [(None, 1, 2), (None, 16, 16), (3, 16, 3)])
def test_there_are_as_many_workers_as_make_the_batches_that_pay(
    open_shop, monkeypatch, told: int | None, most: int, num_workers: int
) -> None:
    monkeypatch.setattr(Sessions, "most_together", most)
    assert len(open_shop(num_workers=told).endpoint.service.pool._threads) == num_workers


def test_what_fails_together_is_done_one_by_one() -> None:
    engine = SlowEngine()
    batcher, futures = gathered(engine, [session(), session(-1), session()])
    assert [future.result().length for future in (futures[0], futures[2])] == [2, 2]
    with pytest.raises(ValueError, match="poisoned"):
        futures[1].result()
    assert engine.calls == [1, 3, 1, 1, 1]
    assert batcher.append(session(), EVENT).length == 2  # the next ones are not held up


def test_an_engine_that_gains_nothing_is_called_by_everybody_at_once() -> None:
    engine = SlowEngine(fixed_s=0.0)
    engine.go_on.clear()
    batcher = AppendBatcher(engine)  # type: ignore[arg-type]
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(batcher.append, session(), EVENT) for _ in range(2)]
        assert engine.called.acquire(timeout=30)
        assert engine.called.acquire(timeout=30)  # both are under way
        engine.go_on.set()
        assert [future.result().length for future in futures] == [2, 2]
