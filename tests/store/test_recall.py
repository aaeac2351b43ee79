"""Counts of what became of answers, on a log whose truth is worked out by hand."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.contracts.events import Event
from recsys.store import EventStore, Impression
from recsys.store.counts import ArmCounts, wilson
from recsys.store.recall import HOUR_MS

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


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 30), st.integers(0, 4)), max_size=25))
def test_counting_little_by_little_ends_as_counting_at_once_and_as_by_hand(tmp_path_factory, steps) -> None:
    clock, stores = Clock(), []
    for name in ("often", "once"):
        stores.append(EventStore.open(f"sqlite:///{tmp_path_factory.mktemp('r') / name}.db", clock))
    start, window_ms, answers, told = clock.ms, 7, [], []
    for n, (kind, user, moment, item) in enumerate(steps):
        if kind == 0:
            clock.ms = start + moment
            answers.append((f"q{n}", user, clock.ms, {f"i{item}", f"i{item + 1}"}))
        else:
            echo = answers[item % len(answers)][0] if kind == 2 and answers else None
            told.append((user, f"i{item}", start + moment, echo))
        for store in stores:
            if kind == 0:
                show(store, f"q{n}", f"u{user}", f"i{item}", f"i{item + 1}")
            else:
                act(store, f"u{user}", f"i{item}", start + moment, request_id=told[-1][3])
        stores[0].attribution.update(window_ms)
    targets = [
        {i for u, i, at, echo in told if at - served <= window_ms and (echo == q or (u == user and at > served))}
        for q, user, served, _ in answers
    ]
    for store in stores:
        store.attribution.update(window_ms)
        found = store.attribution.totals().get(("r1", "a"), ArmCounts())
        assert (found.answers, found.targets) == (len(answers), sum(map(len, targets)))
        assert found.hits == sum(len(t & items) for t, (_, _, _, items) in zip(targets, answers, strict=True))
        store.close()


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
