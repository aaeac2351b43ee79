"""Counts of what became of answers, on a log whose truth is worked out by hand."""

import json
import math
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.contracts.events import Event
from recsys.store import EventStore, Impression, recall
from recsys.store.counts import ArmCounts, wilson
from recsys.store.recall import HOUR_MS, SKEW_MS
from recsys.store.schema import documents, recall_hours

WINDOW_MS = 24 * HOUR_MS


class Clock:
    """Seconds since 1970, moved by hand."""

    def __init__(self) -> None:
        self.ms = 100 * HOUR_MS

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


def show(store: EventStore, request_id: str, user: str | None, *items: str, arm: str = "a") -> None:
    store.record_impressions(
        [Impression(request_id=request_id, user_id=user, release="r1", arm=arm, source="model", items=items)]
    )


def act(store: EventStore, user: str, item: str, at_ms: int, **fields) -> None:
    store.append([Event(user_id=user, item_id=item, timestamp_ms=at_ms, **fields)])


def test_the_figures_of_a_log_with_known_truth(ledger: EventStore, clock: Clock) -> None:
    start = clock.ms
    show(ledger, "q1", "ann", "x", "y", "z")
    show(ledger, "q2", "bob", "x", "y", "z")
    show(ledger, "q3", "cid", "x", "y", "z")
    show(ledger, "q4", None, "x", "y", "z")
    act(ledger, "ann", "x", start - 1)  # before the answer: not a target
    act(ledger, "ann", "y", start + 1, request_id="q1")
    act(ledger, "ann", "y", start + 2, event_type="purchase", value=3.5, request_id="q1")
    act(ledger, "ann", "other", start + 3)
    act(ledger, "bob", "other", start + WINDOW_MS)  # the last moment that counts
    act(ledger, "bob", "x", start + WINDOW_MS + 1)  # too late
    act(ledger, "someone", "z", start + 5, request_id="q4")
    clock.ms += 5 * 60_000
    assert ledger.attribution.update(WINDOW_MS) == 1
    counts = ledger.attribution.totals()["r1", "a"]
    # targets: ann {y, other}, bob {other}, cid none, q4 {z}; hits: y and z
    assert (counts.answers, counts.with_targets, counts.targets, counts.hits, counts.hit_answers) == (4, 3, 4, 2, 2)
    assert (counts.clicked, counts.converted, counts.revenue) == (2, 1, 3.5)
    assert counts.recall().value == 0.5


def test_what_is_sent_back_or_disliked_is_no_success(ledger: EventStore, clock: Clock) -> None:
    show(ledger, "q1", "ann", "x", "y")
    show(ledger, "q2", "bob", "x", "y")
    act(ledger, "ann", "x", clock.ms + 1, event_type="return", request_id="q1")
    act(ledger, "ann", "y", clock.ms + 2, event_type="dislike")
    act(ledger, "bob", "x", clock.ms + 3, event_type="purchase", request_id="q2")
    act(ledger, "bob", "x", clock.ms + 4, event_type="return")
    clock.ms += 5 * 60_000
    ledger.attribution.update(WINDOW_MS)
    counts = ledger.attribution.totals()["r1", "a"]
    assert (counts.answers, counts.with_targets, counts.targets, counts.hits, counts.clicked) == (2, 1, 1, 1, 1)


def test_a_count_that_is_interrupted_between_transactions_ends_right(ledger: EventStore, clock: Clock) -> None:
    shown = [
        Impression(request_id=f"q{n}", user_id=f"u{n % 7}", release="r1", arm="a", source="model", items=["x", "y"])
        for n in range(250)
    ]
    ledger.record_impressions(shown)
    act(ledger, "u3", "x", clock.ms + 1)
    clock.ms += 5

    def killed(_: float) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        ledger.attribution.update(WINDOW_MS, rest=killed)
    assert 0 < ledger.attribution.totals()["r1", "a"].answers < len(shown)
    rests: list[float] = []
    ledger.attribution.update(WINDOW_MS, rest=rests.append)
    counts = ledger.attribution.totals()["r1", "a"]
    of_u3 = len(range(3, len(shown), 7))
    assert (counts.answers, counts.targets, counts.hits) == (len(shown), of_u3, of_u3)
    assert len(rests) > 1


def test_late_repeated_and_early_events_end_in_the_same_counts(ledger: EventStore, clock: Clock) -> None:
    at = clock.ms
    act(ledger, "ann", "x", at + 10, event_id="e1")  # its answer is written after it
    show(ledger, "q1", "ann", "x", "y")
    clock.ms += 10 * HOUR_MS
    ledger.attribution.update(WINDOW_MS)
    act(ledger, "ann", "x", at + 10, event_id="e1")
    act(ledger, "ann", "y", at + 5)  # told ten hours late
    clock.ms += 10 * HOUR_MS
    assert ledger.attribution.update(WINDOW_MS) == 1
    assert ledger.attribution.update(WINDOW_MS) == 0  # nothing new
    counts = ledger.attribution.totals()["r1", "a"]
    assert (counts.targets, counts.hits) == (2, 2)


def test_counts_survive_a_restart_and_pruning(url: str, clock: Clock) -> None:
    store = EventStore.open(url, clock)
    show(store, "q1", "ann", "x")
    act(store, "ann", "x", clock.ms + 1)
    store.attribution.update(WINDOW_MS)
    before = store.attribution.by_hour()
    assert store.prune(before_ms=clock.ms + HOUR_MS) == 1
    store.close()
    store = EventStore.open(url, clock)
    store.attribution.update(WINDOW_MS)
    act(store, "ann", "x", clock.ms + 2)
    store.attribution.update(WINDOW_MS)
    assert store.attribution.by_hour() == before == {(100, "r1", "a"): before[100, "r1", "a"]}
    store.close()


def test_arms_hours_and_displays_are_counted_apart_and_a_shadow_is_not_clicked(
    ledger: EventStore, clock: Clock
) -> None:
    show(ledger, "q1", "ann", "x")
    show(ledger, "q1", "ann", "y", arm="shadow")
    act(ledger, "ann", "x", clock.ms + 1, request_id="q1")
    clock.ms += HOUR_MS
    show(ledger, "q2", "bob", "x", arm="b")
    shown = Event(user_id="bob", item_id="x", timestamp_ms=clock.ms, event_type="impression", request_id="q2")
    assert ledger.append([], displayed=[shown]).stored == 1
    assert ledger.append([], displayed=[shown]).duplicates == 1
    ledger.attribution.update(WINDOW_MS)
    found = {key: (c.answers, c.displayed, c.hits, c.clicked) for key, c in ledger.attribution.by_hour().items()}
    assert found == {
        (100, "r1", "a"): (1, 0, 1, 1),
        (100, "r1", "shadow"): (1, 0, 0, 0),
        (101, "r1", "b"): (1, 1, 0, 0),
    }


def test_a_session_that_is_joined_to_a_user_is_counted_as_theirs(ledger: EventStore, clock: Clock) -> None:
    show(ledger, "q1", "ann", "x")
    act(ledger, "session-7", "x", clock.ms + 1)
    clock.ms += HOUR_MS
    ledger.attribution.update(WINDOW_MS)
    assert ledger.attribution.totals()["r1", "a"].hits == 0
    assert ledger.join("session-7", "ann") == 1
    ledger.attribution.update(WINDOW_MS)
    assert ledger.attribution.totals()["r1", "a"].hits == 1


@pytest.mark.parametrize(
    ("user", "after_ms", "is_credited"),
    [
        ("ann", -SKEW_MS, True),  # the clock of the shop's server is behind ours
        ("ann", -SKEW_MS - 1, False),
        ("ann", WINDOW_MS, True),
        ("ann", WINDOW_MS + 1, False),
        ("mallory", 1, False),
        ("mallory", -(100 * HOUR_MS), False),
    ],
)
def test_an_echo_counts_if_it_is_the_users_and_of_the_time_of_the_answer(
    ledger: EventStore, clock: Clock, user: str, after_ms: int, is_credited: bool
) -> None:
    show(ledger, "q1", "ann", "x", "y")
    act(ledger, user, "x", clock.ms + after_ms, request_id="q1", event_type="purchase", value=1e12)
    ledger.attribution.update(WINDOW_MS)
    counts = ledger.attribution.totals()["r1", "a"]
    found = (counts.clicked, counts.converted, counts.revenue, counts.targets, counts.hits)
    assert found == ((1, 1, 1e12, 1, 1) if is_credited else (0, 0, 0.0, 0, 0))


def test_a_session_and_the_user_it_became_echo_each_others_answers(ledger: EventStore, clock: Clock) -> None:
    act(ledger, "session-7", "w", clock.ms - HOUR_MS)
    show(ledger, "q1", "session-7", "x")
    act(ledger, "ann", "x", clock.ms + 1, request_id="q1")  # signed in, and nobody has said so yet
    act(ledger, "bob", "x", clock.ms + 1, request_id="q1")
    clock.ms += HOUR_MS
    ledger.attribution.update(WINDOW_MS)
    assert ledger.attribution.totals()["r1", "a"].clicked == 0
    ledger.join("session-7", "ann")
    ledger.attribution.update(WINDOW_MS)
    assert ledger.attribution.totals()["r1", "a"].clicked == 1
    show(ledger, "q2", "session-7", "x")  # the shop goes on asking for the session
    show(ledger, "q3", "ann", "x")
    act(ledger, "ann", "x", clock.ms + 1, request_id="q2")
    act(ledger, "session-7", "x", clock.ms + 1, request_id="q3")
    act(ledger, "bob", "x", clock.ms + 1, request_id="q3")
    ledger.attribution.update(WINDOW_MS)
    assert ledger.attribution.totals()["r1", "a"].clicked == 3


STEPS = st.lists(
    st.tuples(st.sampled_from(["answer", "own", "echo"]), st.integers(0, 3), st.integers(0, 30), st.integers(0, 4)),
    max_size=25,
)


@settings(max_examples=25, deadline=None)
@given(STEPS)
def test_counting_little_by_little_ends_as_counting_at_once_and_as_by_hand(tmp_path_factory, steps) -> None:
    """By hand: moments are laid out one by one, and each answer looks at what lies in its own stretch of them.

    Every event is a purchase of a value of its own bit, so that the revenue tells which ones were credited.
    """
    start, window_ms, skew_ms = Clock().ms, 7, 3
    clock, stores = Clock(), []
    for name in ("often", "once"):
        stores.append(EventStore.open(f"sqlite:///{tmp_path_factory.mktemp('r') / name}.db", clock))
    answers: list[tuple[str, str, int, set[str]]] = []
    line: dict[int, list[tuple[str, str, str | None, int]]] = {moment: [] for moment in range(-50, 90)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recall, "SKEW_MS", skew_ms)
        for n, (kind, user, moment, item) in enumerate(steps):
            if kind == "answer":
                clock.ms = start + moment
                answers.append((f"q{n}", f"u{user}", moment, {f"i{item}", f"i{item + 1}"}))
            else:
                echo = answers[item % len(answers)][0] if kind == "echo" and answers else None
                line[moment].append((f"u{user}", f"i{item}", echo, 2**n))
            for store in stores:
                if kind == "answer":
                    show(store, f"q{n}", f"u{user}", f"i{item}", f"i{item + 1}")
                else:
                    told = {"request_id": echo, "event_type": "purchase", "value": 2**n}
                    act(store, f"u{user}", f"i{item}", start + moment, **told)
            stores[0].attribution.update(window_ms)
        targets, hits, credited = 0, 0, 0
        for request_id, user, served, shown in answers:
            mine = {event for at in range(served - skew_ms, served + window_ms + 1) for event in line[at]}
            mine = {event for event in mine if event[0] == user}
            echoed = {event for event in mine if event[2] == request_id}
            too_early = {event for at in range(served - skew_ms, served + 1) for event in line[at]}
            touched = {item for _, item, _, _ in (mine - too_early) | echoed}
            targets, hits = targets + len(touched), hits + len(touched & shown)
            credited += sum(bit for _, item, _, bit in echoed if item in shown)
        for store in stores:
            store.attribution.update(window_ms)
            found = store.attribution.totals().get(("r1", "a"), ArmCounts())
            assert (found.answers, found.targets, found.hits) == (len(answers), targets, hits)
            assert found.revenue == credited
            store.close()


def test_hours_that_an_older_version_counted_get_what_it_did_not_keep(url: str, clock: Clock) -> None:
    store = EventStore.open(url, clock)
    for n, value in enumerate([3.0, 5.0]):
        show(store, f"q{n}", "ann", "x")
        act(store, "ann", "x", clock.ms + 1, request_id=f"q{n}", event_type="purchase", value=value)
    store.attribution.update(WINDOW_MS)
    pruned = asdict(ArmCounts(answers=9, revenue=9.0))
    with store.engine.begin() as connection:
        connection.execute(recall_hours.insert().values(hour=1, release="r0", arm="a", counts=json.dumps(pruned)))
        for row in connection.execute(recall_hours.select()).all():
            old = {name: value for name, value in json.loads(row.counts).items() if name != "revenue_squared"}
            mine = recall_hours.c.hour == row.hour
            connection.execute(recall_hours.update().where(mine).values(counts=json.dumps(old)))
        state = {"cursor_ms": clock.ms, "frozen_before_ms": 50 * HOUR_MS}
        connection.execute(documents.update().where(documents.c.name == "attribution").values(body=json.dumps(state)))
    store.close()
    store = EventStore.open(url, clock)
    store.attribution.update(WINDOW_MS)
    found = {hour: counts for (hour, _, _), counts in store.attribution.by_hour().items()}
    assert found[100].revenue_squared == 3.0**2 + 5.0**2
    assert math.isnan(found[1].revenue_squared)  # its answers are gone
    assert (found[1].revenue_per_answer().value, math.isnan(found[1].revenue_per_answer().low)) == (1.0, True)
    store.close()


def test_revenue_of_an_answer_by_hand() -> None:
    assert math.isnan(ArmCounts().revenue_per_answer().value)
    assert math.isnan(ArmCounts(answers=1, revenue=3.0, revenue_squared=9.0).revenue_per_answer().low)
    share = ArmCounts(answers=4, revenue=8.0, revenue_squared=34.0).revenue_per_answer()  # 0, 0, 3 and 5
    assert share.value == 2.0
    assert share.high - share.value == pytest.approx(1.959964 * math.sqrt(6 / 4))  # variance 6
    assert share.low == 0.0  # not below it


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    import numpy as np

    generator, covered = np.random.default_rng(0), 0
    for _ in range(400):
        counts = ArmCounts()
        for _ in range(200):
            targets = {f"i{n}" for n in range(generator.integers(1, 6))}
            counts.add(len(targets), sum(generator.random() < 0.2 for _ in targets))
        share = counts.recall()
        covered += share.low <= 0.2 <= share.high
    assert 0.92 <= covered / 400 <= 0.98


def test_wilson_by_hand_and_without_trials() -> None:
    share = wilson(0, 10)
    assert (share.value, share.low) == (0.0, 0.0)
    assert share.high == pytest.approx(1.959964**2 / (10 + 1.959964**2))  # z² / (n + z²)
    assert math.isnan(wilson(0, 0).value)
    assert math.isnan(ArmCounts().recall().value)
