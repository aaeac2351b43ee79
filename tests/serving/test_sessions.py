"""A user's state: what is appended, what is encoded again, and that warm equals cold."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.contracts.events import Event
from recsys.contracts.ids import Floats, Tokens
from recsys.contracts.precision import CacheFormat
from recsys.runtime.engine import EngineInfo, Session
from recsys.store import EventStore
from recsys.windows import WindowConfig
from serving.sessions import SessionCache, Sessions, UserState
from tests.serving.conftest import KNOWN, fake_release

WINDOW = WindowConfig(size=8, overlap_share=0.25)  # stride 6: window k covers events 6k … 6k + 8
DECAY = np.float32(0.5)


class DecayEngine:
    """vector = sum of 0.5^age · one-hot(item): every event of the window matters, and so does its order."""

    def __init__(self) -> None:
        self.info = EngineInfo(
            name="decay", precision="f32", width=len(KNOWN), num_threads=1, window_size=8, cache=CacheFormat.FLOAT32
        )
        self.opened: list[int] = []
        self.appended: list[int] = []

    def open(self, windows: list[Tokens]) -> list[Session]:
        self.opened += [len(window) for window in windows]
        return [self._after(np.zeros(len(KNOWN), np.float32), 0, window) for window in windows]

    def append(self, sessions: list[Session], events: list[Tokens]) -> list[Session]:
        self.appended += [len(more) for more in events]
        return [self._after(s.vector_D, s.length, more) for s, more in zip(sessions, events, strict=True)]

    def encode(self, windows: list[Tokens]) -> Floats:
        return np.stack([self._after(np.zeros(len(KNOWN), np.float32), 0, window).vector_D for window in windows])

    def warm_up(self) -> None:
        pass

    def _after(self, vector_D: Floats, length: int, events: Tokens) -> Session:
        for token in events:
            vector_D = vector_D * DECAY
            vector_D[token - 1] += 1
        assert length + len(events) <= WINDOW.size
        return Session(vector_D, length + len(events), 1_000, None)


class Worker:
    """One process's sessions over a shared store."""

    def __init__(self, store: EventStore, limit_bytes: int = 10**6, release: str = "r1") -> None:
        self.store = store
        self.engine = DecayEngine()
        self.cache = SessionCache(limit_bytes)
        self.release = fake_release(self.engine, release, WINDOW)
        self.sessions = Sessions(self.release, store, self.cache)

    def state(self, user: str = "ann") -> UserState:
        return self.sessions.state(user, self.store.glance(user))[0]

    def outcome(self, user: str = "ann") -> str:
        return self.sessions.state(user, self.store.glance(user))[1]


@pytest.fixture
def store(tmp_path: Path):
    opened = EventStore.open(f"sqlite:///{tmp_path / 'store.db'}")
    yield opened
    opened.close()


@pytest.fixture
def worker(store: EventStore) -> Worker:
    return Worker(store)


def tell(store: EventStore, *numbers: int, at: int | None = None, user: str = "ann") -> None:
    for number in numbers:
        moment = store.num_events() + 1_000 if at is None else at
        store.append([Event(user_id=user, item_id=f"sku-{number}", timestamp_ms=moment)])


def assert_as_if_cold(worker: Worker, user: str = "ann") -> None:
    warm, cold = worker.state(user), Worker(worker.store).state(user)
    assert warm.tokens_L.tolist() == cold.tokens_L.tolist()
    assert (warm.k, warm.digest, warm.glance, warm.last_ms) == (cold.k, cold.digest, cold.glance, cold.last_ms)
    assert warm.session is not None
    assert cold.session is not None
    np.testing.assert_array_equal(warm.session.vector_D, cold.session.vector_D)


def test_a_history_is_made_of_the_event_types_that_the_release_was_trained_on(store: EventStore) -> None:
    worker = Worker(store)
    worker.release = replace(worker.release, history_types=("purchase",))
    worker.sessions = Sessions(worker.release, store, worker.cache)
    kinds = ["view", "purchase", "view", "purchase"]

    def tell_each(start: int) -> None:
        store.append(
            [
                Event(user_id="ann", item_id=f"sku-{start + n}", timestamp_ms=start + n, event_type=kind)
                for n, kind in enumerate(kinds)
            ]
        )

    tell_each(0)
    state = worker.state()
    assert state.tokens_L.tolist() == state.seen.tolist() == [2, 4]
    tell_each(4)
    assert worker.outcome() == "appended"
    state = worker.state()
    assert state.tokens_L.tolist() == [2, 4, 6, 8]
    assert (worker.engine.opened, worker.engine.appended) == ([2], [2])
    store.append([Event(user_id="ann", item_id="sku-0", timestamp_ms=99, event_type="view")])
    assert worker.outcome() == "unchanged"
    assert worker.state().tokens_L.tolist() == [2, 4, 6, 8]


def test_new_events_cost_a_step_each_and_no_event_costs_nothing(worker: Worker) -> None:
    tell(worker.store, 1, 2, 3)
    assert worker.outcome() == "opened"
    assert worker.outcome() == "unchanged"
    tell(worker.store, 4, 5)
    assert worker.outcome() == "appended"
    assert (worker.engine.opened, worker.engine.appended) == ([3], [2])
    assert_as_if_cold(worker)


def test_a_full_window_closes_and_the_next_one_opens_with_its_overlap(worker: Worker) -> None:
    tell(worker.store, *range(8))
    worker.state()
    tell(worker.store, 8)  # the first event that does not fit: window 1 begins at event 6
    assert worker.outcome() == "opened"
    assert worker.engine.opened == [8, 3]
    tell(worker.store, 9)
    assert worker.outcome() == "appended"
    assert worker.state().k == 1
    assert_as_if_cold(worker)


def test_a_late_event_changes_the_digest_and_encodes_again(worker: Worker) -> None:
    tell(worker.store, 1, 2, 3)
    before = worker.state()
    tell(worker.store, 7, at=0)
    after = worker.state()
    assert after.tokens_L.tolist() == [8, 2, 3, 4]
    assert after.digest != before.digest
    assert worker.engine.appended == []
    assert_as_if_cold(worker)


def test_events_of_one_moment_follow_in_order_of_arrival(worker: Worker) -> None:
    tell(worker.store, 1, at=5)
    worker.state()
    tell(worker.store, 2, at=5)
    assert worker.outcome() == "appended"
    assert_as_if_cold(worker)


def test_a_user_whose_events_are_all_unknown_has_no_vector_until_one_is_known(worker: Worker) -> None:
    worker.store.append([Event(user_id="ann", item_id="elsewhere", timestamp_ms=1)])
    state = worker.state()
    assert (state.session, state.glance.num_events) == (None, 1)
    tell(worker.store, 3)
    assert worker.outcome() == "opened"
    assert_as_if_cold(worker)


def test_what_another_worker_stored_is_appended_here(worker: Worker) -> None:
    other = Worker(EventStore(worker.store._engine))
    tell(worker.store, 1, 2)
    worker.state()
    other.state()
    tell(other.store, 3)
    assert other.outcome() == "appended"
    assert worker.outcome() == "appended"
    assert_as_if_cold(worker)


def test_a_forgotten_user_is_forgotten_by_every_worker(worker: Worker) -> None:
    tell(worker.store, 1, 2)
    other = Worker(worker.store)
    other.state()
    worker.store.forget("ann")
    assert other.state().session is None
    tell(worker.store, 5, at=10**13)  # after that: what was before is not taken any more
    assert other.state().tokens_L.tolist() == [6]


def test_an_event_committed_under_a_lower_number_is_not_missed(worker: Worker) -> None:
    class Delayed:
        """PostgreSQL may show number 2 before number 1."""

        def __init__(self) -> None:
            self.hidden = True

        def glance(self, user_id: str):
            seen = worker.store.glance(user_id)
            return type(seen)(seen.num_events - self.hidden, seen.last_seq, seen.revision)

        def events_after(self, user_id: str, seq: int = 0, **of):
            found = worker.store.events_after(user_id, seq, **of)
            if self.hidden and seq == 0:
                return type(found)([found.item_ids[1]], found.last_seq, found.last_ms, found.last_ms)
            return found

    tell(worker.store, 1, 2)
    delayed = Delayed()
    sessions = Sessions(worker.release, delayed, worker.cache)
    assert sessions.state("ann", delayed.glance("ann"))[0].tokens_L.tolist() == [3]
    delayed.hidden = False
    assert sessions.state("ann", delayed.glance("ann"))[0].tokens_L.tolist() == [2, 3]


def test_releases_keep_their_own_sessions(store: EventStore) -> None:
    cache = SessionCache(10**6)
    workers = [Worker(store, release=name) for name in ("r1", "r2")]
    for each in workers:
        each.sessions = Sessions(each.release, store, cache)
    tell(store, 1)
    assert [each.outcome() for each in workers] == ["opened", "opened"]
    assert [each.outcome() for each in workers] == ["unchanged", "unchanged"]
    assert cache.latest_users({"r1"}) == ["ann"]
    cache.drop(release="r1")
    assert [each.outcome() for each in workers] == ["opened", "unchanged"]


def test_the_least_recently_used_leave_when_bytes_run_out(store: EventStore) -> None:
    users = ["a", "b", "c"]
    for user in users:
        tell(store, 1, user=user)
    size = Worker(store).state("a").size_bytes
    worker = Worker(store, limit_bytes=2 * size)
    for user in users:
        worker.state(user)
    assert (len(worker.cache), worker.cache.size_bytes, worker.cache.evictions) == (2, 2 * size, 1)
    assert worker.cache.latest_users({"r1"}) == ["c", "b"]
    assert worker.outcome("a") == "opened"
    tiny = Worker(store, limit_bytes=size - 1)
    assert [tiny.outcome("a"), tiny.outcome("a"), tiny.cache.size_bytes] == ["opened", "opened", 0]


def test_concurrent_requests_and_events_of_one_user_end_as_if_cold(worker: Worker) -> None:
    tell(worker.store, 0)
    start = threading.Barrier(6)

    def work(n: int) -> list[int]:
        start.wait(30)
        lengths = []
        for step in range(6):
            if n % 2:
                tell(worker.store, (n + step) % 20, at=5_000 + step)
            lengths.append(len(worker.state().tokens_L))
        return lengths

    with ThreadPoolExecutor(6) as pool:
        for lengths in pool.map(work, range(6)):
            assert lengths == sorted(lengths)  # nobody sees events disappear
    assert len(worker.state().tokens_L) == 1 + 3 * 6
    assert worker.sessions._locks == {}
    assert_as_if_cold(worker)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 25), st.integers(0, 30), st.booleans()), min_size=1, max_size=40))
def test_warm_equals_cold_whatever_comes_in_whatever_order(tmp_path_factory, steps) -> None:
    store = EventStore.open(f"sqlite:///{tmp_path_factory.mktemp('s') / 'store.db'}")
    worker = Worker(store)
    for number, moment, asks in steps:  # sku-20 … sku-25 are unknown
        store.append([Event(user_id="ann", item_id=f"sku-{number}", timestamp_ms=moment)])
        if asks:
            worker.state()
    if len(worker.state().tokens_L):
        assert_as_if_cold(worker)
    store.close()
