"""What became of users of an experiment, on logs whose truth is worked out by hand; on both databases."""

import sqlite3
from pathlib import Path

import pytest

from recsys.contracts.events import Event
from recsys.store import Entry, EventStore, Impression, Outcome

WINDOW_MS = 1_000


class Clock:
    """Milliseconds, moved by hand."""

    ms = 10_000

    def __call__(self) -> float:
        return self.ms / 1000


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(url: str, clock: Clock):
    store = EventStore.open(url, clock)
    yield store
    store.close()


def show(store: EventStore, request_id: str, user: str | None, *items: str, arm: str = "a", **fields) -> None:
    shown = {"request_id": request_id, "user_id": user, "release": "r1", "arm": arm, "source": "model", "items": items}
    store.record_impressions([Impression(**shown, **fields)])


def act(store: EventStore, user: str, item: str, at_ms: int, **fields) -> None:
    store.append([Event(user_id=user, item_id=item, timestamp_ms=at_ms, **fields)])


def outcome_of(store: EventStore, user: str) -> Outcome:
    entries = [entry for entry in store.outcomes.entries(["a", "b"], 0, 10**9) if entry.user_id == user]
    return next(found for _, found in store.outcomes.of(entries, WINDOW_MS))


def test_users_enter_with_their_first_answer_of_an_arm_and_may_be_moved(ledger: EventStore, clock: Clock) -> None:
    show(ledger, "q0", "early", "x", arm="other")
    for ms, user, arm in ((1, "ann", "a"), (2, "bob", "b"), (3, "ann", "a"), (4, "bob", "a"), (9, "late", "a")):
        clock.ms = 10_000 + ms
        show(ledger, f"q{ms}", user, "x", arm=arm)
    show(ledger, "q10", None, "x")
    assert ledger.outcomes.entries(["a", "b"], 10_000, 10_009) == [
        Entry("ann", "a", 10_001, is_moved=False),
        Entry("bob", "a", 10_002, is_moved=True),
    ]


def test_an_outcome_counts_what_happened_within_the_window_and_after_the_answer(
    ledger: EventStore, clock: Clock
) -> None:
    start = clock.ms
    show(ledger, "q1", "ann", "x", "y")
    act(ledger, "ann", "x", start)  # not after it
    act(ledger, "ann", "x", start + WINDOW_MS + 1)  # too late
    act(ledger, "ann", "z", start + 1)  # not recommended
    act(ledger, "bob", "x", start + 1)
    assert outcome_of(ledger, "ann") == Outcome(hit=0, click=0, conversion=0, revenue=0, degraded=0, late=0)
    act(ledger, "ann", "z", start + 2, event_type="purchase", value=2.5)
    act(ledger, "ann", "y", start + WINDOW_MS, event_type="purchase", value=4)
    assert outcome_of(ledger, "ann") == Outcome(hit=1, click=0, conversion=1, revenue=6.5, degraded=0, late=0)
    act(ledger, "ann", "z", start + 3, request_id="q1")  # echoed, but not an item of the answer
    assert outcome_of(ledger, "ann").click == 0
    act(ledger, "ann", "y", start + 4, request_id="q1")
    assert outcome_of(ledger, "ann").click == 1


def test_who_sends_an_item_back_has_not_taken_it(ledger: EventStore, clock: Clock) -> None:
    show(ledger, "q1", "ann", "x", "y")
    act(ledger, "ann", "x", clock.ms + 1, event_type="return", request_id="q1")
    assert outcome_of(ledger, "ann") == Outcome(hit=0, click=0, conversion=0, revenue=0, degraded=0, late=0)


def test_a_hit_needs_the_item_to_have_been_recommended_before(ledger: EventStore, clock: Clock) -> None:
    show(ledger, "q1", "ann", "x")
    act(ledger, "ann", "y", clock.ms + 5)
    clock.ms += 10
    show(ledger, "q2", "ann", "y")
    assert outcome_of(ledger, "ann").hit == 0
    act(ledger, "ann", "y", clock.ms + 1)
    assert outcome_of(ledger, "ann").hit == 1


def test_degraded_and_late_answers_of_the_window_are_noted(ledger: EventStore, clock: Clock) -> None:
    show(ledger, "q1", "ann", "x")
    show(ledger, "q2", "bob", "x", degraded="deadline", late=True)
    clock.ms += WINDOW_MS + 1
    show(ledger, "q3", "ann", "x", degraded="overload", late=True)
    assert (outcome_of(ledger, "ann").degraded, outcome_of(ledger, "ann").late) == (0, 0)
    assert (outcome_of(ledger, "bob").degraded, outcome_of(ledger, "bob").late) == (1, 1)


def test_more_users_than_are_read_at_once_keep_their_order(ledger: EventStore, clock: Clock) -> None:
    for n in range(3):
        clock.ms += 1
        users = [f"u{n}-{m:03d}" for m in range(400)]
        made = {"release": "r1", "source": "model", "items": ["x"]}
        ledger.record_impressions([Impression(request_id=f"q-{u}", user_id=u, arm="a", **made) for u in users])
        act(ledger, users[n], "x", clock.ms + 1)
    entries = ledger.outcomes.entries(["a"], 0, 10**9)
    found = list(ledger.outcomes.of(entries, WINDOW_MS))
    assert [entry for entry, _ in found] == entries
    assert [entry.user_id for entry, outcome in found if outcome.hit] == ["u0-000", "u1-001", "u2-002"]


def test_a_store_of_before_has_its_missing_columns_added(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    store = EventStore.open(url, Clock())
    show(store, "q1", "ann", "x")
    store.close()
    with sqlite3.connect(tmp_path / "store.db") as connection:
        connection.execute("alter table impressions drop column degraded")
        connection.execute("alter table impressions drop column late")
    connection.close()
    store = EventStore.open(url, Clock())
    show(store, "q2", "bob", "x", degraded="deadline")
    assert (outcome_of(store, "ann").degraded, outcome_of(store, "bob").degraded) == (0, 1)
    store.close()
