"""Each stage stalled in turn, with real worker threads and a clock that moves only once the worker is stuck.

So the moment of every answer is known exactly, on any machine.
"""

import asyncio
import selectors
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from recsys.contracts.events import Event
from recsys.runtime.recommender import Recommender
from recsys.store import EventStore
from serving.answers import AnswerService
from serving.config import ServeConfig
from serving.live import Releases
from serving.metrics import Metrics
from serving.rules import Rules
from serving.schemas import RecommendationAnswer, RecommendationRequest
from serving.sessions import SessionCache
from serving.work import Work
from tests.serving.conftest import FakeEngine, fake_release

DEADLINE_MS, RESERVE_MS = 100, 10


class StuckClock(selectors.DefaultSelector):
    """Time of an event loop: it stands still while a thread may still finish, and jumps once one is stuck."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.is_stuck = threading.Event()

    def __call__(self) -> float:
        return self.now

    def select(self, timeout: float | None = None):
        found = super().select(0)
        if found or timeout == 0:
            return found
        if timeout is not None and self.is_stuck.is_set():
            self.now += timeout
            return []
        return super().select(0.01)  # threads run meanwhile, and wake the loop when they are done


class Counter:
    """A shop with one user, who has been answered once."""

    def __init__(self, folder: Path) -> None:
        self.clock = StuckClock()
        self.engine = FakeEngine()
        self.store = EventStore.open(f"sqlite:///{folder / 'store.db'}")
        self.releases = Releases(Recommender(fake_release(self.engine)), self.store, SessionCache(10**7))
        config = ServeConfig(deadline_ms=DEADLINE_MS, reserve_ms=RESERVE_MS, num_workers=1, max_waiting=1)
        self.service = AnswerService(config, self.releases, self.store, Metrics(), self.clock)
        self.loop = asyncio.SelectorEventLoop(self.clock)
        self.loop.time = self.clock
        self.go_on = threading.Event()

    def tell(self, item: str, user: str = "ann") -> None:
        self.store.append([Event(user_id=user, item_id=item, timestamp_ms=1)])

    def ask(self, user: str = "ann", arrived: float | None = None, **wishes) -> RecommendationAnswer:
        request = RecommendationRequest(user_id=user, k=2, **wishes)
        moment = self.clock.now if arrived is None else arrived
        return self.loop.run_until_complete(self.service.answer(request, moment))

    def stall(self, target, name: str) -> None:
        """Make a method hold its thread until the end of the test."""
        true = getattr(target, name)

        def stalled(*args, **kwargs):
            self.clock.is_stuck.set()
            self.go_on.wait(30)
            return true(*args, **kwargs)

        setattr(target, name, stalled)

    def close(self) -> None:
        self.go_on.set()
        self.service.close()
        self.store.close()
        self.loop.close()


@pytest.fixture
def counter(tmp_path: Path) -> Iterator[Counter]:
    opened = Counter(tmp_path)
    opened.tell("sku-3")
    yield opened
    opened.close()


def stage(counter: Counter, name: str) -> tuple[object, str]:
    release = counter.releases.current.recommender.release
    return {
        "store: glance": (counter.store, "glance"),
        "store: documents": (counter.store, "document"),
        "store: purchases": (counter.store, "items_of_type"),
        "store: events": (counter.store, "events_after"),
        "index: neighbours": (release.index, "cosines"),
        "engine: open": (counter.engine, "open"),
        "engine: append": (counter.engine, "append"),
        "index: ranking": (release.index, "all_scores"),
        "index: reasons": (release.index, "vectors"),
    }[name]


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("store: glance", "popular"),
        ("store: documents", "popular"),
        ("store: purchases", "popular"),
        ("store: events", "popular"),
        ("index: neighbours", "popular_in_category"),
        ("engine: open", "nearest"),
    ],
)
def test_a_new_user_is_answered_at_the_deadline_whatever_stalls(counter: Counter, name: str, source: str) -> None:
    counter.stall(*stage(counter, name))
    answer = counter.ask(exclude_purchased=True)
    assert (answer.degraded, answer.source, len(answer.items)) == ("deadline", source, 2)
    assert answer.timings_ms["total"] == pytest.approx(DEADLINE_MS - RESERVE_MS)


@pytest.mark.parametrize(
    "name",
    ["store: glance", "store: purchases", "store: events", "engine: append", "index: ranking", "index: reasons"],
)
def test_a_known_user_gets_the_last_answer_at_the_deadline_whatever_stalls(counter: Counter, name: str) -> None:
    first = counter.ask()
    assert (first.degraded, first.source) == (None, "model")
    counter.tell("sku-5")
    counter.stall(*stage(counter, name))
    answer = counter.ask(exclude_purchased=True)
    assert (answer.degraded, answer.source) == ("deadline", "last_answer")
    shown = [item.item_id for item in first.items]
    if name in {"store: glance", "store: purchases"}:  # whatever was seen may have been purchased
        shown.remove("sku-3")
    assert [item.item_id for item in answer.items][: len(shown)] == shown
    assert len(answer.items) == 2
    assert answer.timings_ms["total"] == pytest.approx(DEADLINE_MS - RESERVE_MS)


def test_what_was_spent_before_the_answer_began_is_not_spent_again(counter: Counter) -> None:
    counter.clock.now = 0.06
    counter.stall(counter.store, "glance")
    answer = counter.ask(arrived=0.0)
    assert answer.timings_ms["total"] == pytest.approx(DEADLINE_MS - RESERVE_MS)
    counter.clock.now = 0.2
    late = counter.ask(arrived=0.0)  # nothing is left: answered at once
    assert (late.degraded, late.timings_ms["total"]) == ("deadline", pytest.approx(200))


def test_purchases_that_are_learned_while_a_list_at_hand_is_made_are_not_shown() -> None:
    class Vocabulary:
        def tokens(self, named: list[str]) -> np.ndarray:
            work.purchased = {"sku-1"}  # by a worker that is late
            return np.array([2 for _ in named], dtype=np.int32)

    release = SimpleNamespace(vocabulary=Vocabulary())
    live = SimpleNamespace(recommender=SimpleNamespace(release=release))
    request = RecommendationRequest(user_id="ann", exclude_purchased=True)
    work = Work(request, live, "all", time.monotonic, seen=np.array([2], dtype=np.int32))
    named, seen = work.hidden()
    assert 2 in {*named, *seen}


def test_of_a_request_that_gives_less_time_less_is_kept_back(counter: Counter) -> None:
    counter.stall(counter.store, "glance")
    answer = counter.ask(deadline_ms=DEADLINE_MS / 10)
    assert answer.timings_ms["total"] == pytest.approx((DEADLINE_MS - RESERVE_MS) / 10)


def test_a_loop_that_was_late_a_moment_ago_keeps_back_a_reserve(counter: Counter) -> None:
    lag = counter.service.lag
    lag._clock = counter.clock
    for moment in (0.0, 0.005, 0.030):  # one beat was 20 ms late
        counter.clock.now = moment
        lag.beat()
    counter.stall(counter.store, "glance")
    answer = counter.ask()
    assert answer.timings_ms["total"] == pytest.approx(DEADLINE_MS - RESERVE_MS - 20)


def test_behind_a_stall_nothing_waits_that_cannot_be_done_in_time(counter: Counter) -> None:
    counter.stall(counter.store, "glance")
    answers = [counter.ask(user=f"new-{n}") for n in range(4)]
    assert [answer.degraded for answer in answers] == ["deadline", "deadline", "overload", "overload"]
    waited_ms = [answer.timings_ms["wait"] for answer in answers]
    assert waited_ms == pytest.approx([0.0, DEADLINE_MS - RESERVE_MS, 0.0, 0.0])  # the second got no worker at all


def test_a_request_with_its_own_events_is_answered_at_its_own_deadline(counter: Counter) -> None:
    counter.stall(counter.engine, "encode")
    request = RecommendationRequest(events=[{"item_id": "sku-3"}], k=2, deadline_ms=40)
    answer = counter.loop.run_until_complete(counter.service.answer(request, counter.clock.now))
    assert (answer.degraded, answer.source) == ("deadline", "nearest")
    assert answer.timings_ms["total"] == pytest.approx(40 * (1 - RESERVE_MS / DEADLINE_MS))


def shown(answer: RecommendationAnswer) -> list[str]:
    return [item.item_id for item in answer.items]


@pytest.mark.parametrize(
    "wishes",
    [
        {"filters": {"category": ["cups"]}},
        {"exclude": ["sku-3"]},
        {"exclude_seen": True},
        {"min_confidence": 1.0},
    ],
    ids=str,
)
def test_an_answer_to_a_wish_does_not_stand_in_for_another(counter: Counter, wishes: dict) -> None:
    plain = shown(counter.ask())
    assert shown(counter.ask(**wishes)) != plain
    counter.stall(counter.store, "glance")
    answer = counter.ask()
    assert (answer.source, shown(answer)) == ("last_answer", plain)


@pytest.mark.parametrize("wishes", [{"exclude_purchased": True}, {"exclude_seen": True}], ids=str)
def test_while_nobody_knows_what_was_had_the_last_answer_is_not_given(counter: Counter, wishes: dict) -> None:
    """It begins with sku-3, which may have been purchased: nobody can look, and the session is gone."""
    assert shown(counter.ask())[0] == "sku-3"
    counter.releases._cache.forget({"ann"})
    counter.stall(counter.store, "glance")
    answer = counter.ask(**wishes)
    assert (answer.source, shown(answer)) == ("popular", ["sku-19", "sku-18"])


def test_neighbours_that_are_kept_are_given_where_there_is_no_time_to_look(counter: Counter) -> None:
    near = counter.releases.current.neighbours
    assert near.kept(4) is None
    counter.ask(exclude=["sku-3"])
    counter.stall(counter.store, "glance")
    answer = counter.ask()
    assert (answer.source, answer.items[0].item_id) == ("nearest", f"sku-{near.kept(4)[0][0] - 1}")


def test_pins_hold_in_every_list_and_boosts_among_popular_items(counter: Counter) -> None:
    """sku-n has n + 1 events: twice the odds take sku-10 (22) before sku-19 (20)."""
    pins = [{"item_id": "sku-0", "position": 2}]
    counter.releases.set_rules(Rules(pins=pins, boosts=[{"item_id": "sku-10", "weight": 0.7}]))
    nobody = counter.ask("nobody")
    assert (nobody.source, shown(nobody)) == ("popular", ["sku-10", "sku-0"])
    assert shown(counter.ask("nobody", exclude=["sku-0"])) == ["sku-10", "sku-19"]
    assert shown(counter.ask())[1] == "sku-0"
    counter.releases.set_rules(Rules(pins=[{"item_id": "sku-6", "position": 1}]))
    counter.stall(counter.engine, "append")
    counter.tell("sku-5")
    stalled = counter.ask()
    assert (stalled.source, stalled.degraded, shown(stalled)[0]) == ("last_answer", "deadline", "sku-6")


def test_members_of_a_batch_that_wait_for_their_turn_are_each_in_time(counter: Counter) -> None:
    users = [f"u{n}" for n in range(6)]
    for user in users:
        counter.tell("sku-3", user)
    counter.stall(counter.engine, "open")
    requests = [
        RecommendationRequest(user_id=user, k=2, deadline_ms=100 if n < 3 else 50) for n, user in enumerate(users)
    ]
    began = counter.clock.now
    answers = counter.loop.run_until_complete(counter.service.answer_all(requests, began))
    assert [answer.timings_ms["total"] for answer in answers] == [100 - RESERVE_MS] * 3 + [50 - RESERVE_MS / 2] * 3
    assert {answer.degraded for answer in answers} == {"deadline"}
    assert {turns._value for turns in counter.service._turns.values()} == {2}


def finish(counter: Counter) -> None:
    """What was begun goes on to its end."""
    counter.go_on.set()
    is_done = threading.Event()
    assert counter.service.cold_pool.offer(is_done.set)
    assert is_done.wait(30)


def test_what_is_late_ends_after_the_stage_that_is_kept_for_the_next_request(counter: Counter) -> None:
    counter.stall(counter.engine, "open")
    assert counter.ask().degraded == "deadline"
    live = counter.releases.current
    finish(counter)
    assert live.sessions.peek("ann").tokens_L.tolist() == [4]
    assert counter.service.last_answers.get(live.name, "ann") is None  # nobody would have seen a list
    assert counter.service.cold_pool._typical_s > 0  # what a request is expected to take is learned from such work, too


def test_what_is_late_and_would_be_kept_by_nobody_ends_at_once(counter: Counter) -> None:
    sessions = counter.releases.current.sessions
    counter.stall(sessions, "known")
    request = RecommendationRequest(events=[{"item_id": "sku-1"}], k=2)
    asking = counter.loop.create_task(counter.service.answer(request, counter.clock.now))
    counter.loop.call_later(0.05, delattr, sessions, "known")  # the fallback needs it
    assert counter.loop.run_until_complete(asking).degraded == "deadline"
    finish(counter)
    assert counter.engine.encoded == []
