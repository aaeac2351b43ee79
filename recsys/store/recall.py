"""Answers joined to what their users did next: counts by hour, release and arm, kept in the store.

An hour is counted anew from the rows themselves whenever something of it has changed, so the counts are exact
whatever comes late, twice or out of order. Hours whose rows have been pruned are left as they are.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, Final

import sqlalchemy as sa

from recsys.store.counts import ArmCounts
from recsys.store.schema import displays, documents, events, impressions, insert, recall_hours, trouble

HOUR_MS: Final = 3_600_000
PURCHASE: Final = "purchase"
SHADOW_ARM: Final = "shadow"
"""The arm of answers that nobody saw: what users did next counts, clicks and purchases are not theirs."""
_OVERLAP_MS: Final = 60_000
"""Looked at again each time: a transaction may become visible some time after the moment written in its rows."""
_STATE: Final = "attribution"

_Key = tuple[str, str]  # request_id, arm


class Attribution:
    """The join of answers and later events."""

    def __init__(self, engine: sa.Engine, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._clock = clock

    def update(self, window_ms: int) -> int:
        """Bring the counts up to date; the number of hours counted anew. Several workers may call it.

        An answer's targets are the items of its user's events after it and within `window_ms`, and those of
        events that echo its request_id.

        Raises:
            StoreError: the counts are as they were.
        """
        now_ms = int(self._clock() * 1000)
        with trouble("recall not counted"), self._engine.begin() as connection:
            state = _locked_state(self._engine, connection)
            since_ms = state["cursor_ms"] - _OVERLAP_MS
            hours = _touched_hours(connection, since_ms, window_ms)
            hours = {hour for hour in hours if hour * HOUR_MS >= state["frozen_before_ms"]}
            for hour in sorted(hours):
                self._write(connection, hour, _count(connection, hour, window_ms))
            _save_state(connection, state | {"cursor_ms": now_ms})
        return len(hours)

    def freeze(self, connection: sa.Connection, before_ms: int) -> None:
        """Hours that begin before a moment are about to lose rows: never count them again."""
        state = _locked_state(self._engine, connection)
        _save_state(connection, state | {"frozen_before_ms": max(before_ms, state["frozen_before_ms"])})

    def by_hour(self, since_ms: int = 0) -> dict[tuple[int, str, str], ArmCounts]:
        """Counts by (hour since 1970, release, arm).

        Raises:
            StoreError: the store cannot be read.
        """
        wanted = sa.select(recall_hours).where(recall_hours.c.hour >= since_ms // HOUR_MS)
        with trouble("recall not read"), self._engine.connect() as connection:
            rows = connection.execute(wanted.order_by(recall_hours.c.hour)).all()
        return {(row.hour, row.release, row.arm): ArmCounts(**json.loads(row.counts)) for row in rows}

    def totals(self, since_ms: int = 0) -> dict[tuple[str, str], ArmCounts]:
        """Counts by (release, arm) over all hours from the one of `since_ms` on.

        Raises:
            StoreError: the store cannot be read.
        """
        sums: dict[tuple[str, str], ArmCounts] = defaultdict(ArmCounts)
        for (_, release, arm), counts in self.by_hour(since_ms).items():
            sums[release, arm] += counts
        return dict(sums)

    def _write(self, connection: sa.Connection, hour: int, counted: dict[tuple[str, str], ArmCounts]) -> None:
        connection.execute(sa.delete(recall_hours).where(recall_hours.c.hour == hour))
        rows = [
            {"hour": hour, "release": release, "arm": arm, "counts": json.dumps(asdict(counts))}
            for (release, arm), counts in counted.items()
        ]
        if rows:
            connection.execute(sa.insert(recall_hours), rows)


def _locked_state(engine: sa.Engine, connection: sa.Connection) -> dict[str, int]:
    """How far the counts are, locked until the transaction ends. Not a revision that workers look at."""
    first = {"name": _STATE, "revision": 0, "body": '{"cursor_ms": 0, "frozen_before_ms": 0}'}
    connection.execute(insert(engine, documents).values(first).on_conflict_do_nothing())
    mine = documents.c.name == _STATE
    connection.execute(sa.update(documents).where(mine).values(revision=0))
    state: dict[str, int] = json.loads(connection.scalars(sa.select(documents.c.body).where(mine)).one())
    return state


def _save_state(connection: sa.Connection, state: dict[str, int]) -> None:
    connection.execute(sa.update(documents).where(documents.c.name == _STATE).values(body=json.dumps(state)))


def _by_user(window_ms: int) -> Any:
    """Whether an event is one of its user's inside an answer's window."""
    after = events.c.timestamp_ms - impressions.c.served_ms
    return sa.and_(impressions.c.user_id == events.c.user_id, after > 0, after <= window_ms)


def _by_echo(window_ms: int) -> Any:
    """Whether an event echoes an answer's id. It may carry an earlier moment: the sender's clock is its own."""
    after = events.c.timestamp_ms - impressions.c.served_ms
    return sa.and_(impressions.c.request_id == events.c.request_id, after <= window_ms)


def _touched_hours(connection: sa.Connection, since_ms: int, window_ms: int) -> set[int]:
    """Hours with answers that are new, or that have new events or displays."""
    hour = impressions.c.served_ms // HOUR_MS
    new_event = events.c.received_ms >= since_ms
    looks = [
        sa.select(hour).where(impressions.c.served_ms >= since_ms),
        sa.select(hour).where(new_event, _by_user(window_ms)),
        sa.select(hour).where(new_event, _by_echo(window_ms)),
        sa.select(hour).where(displays.c.received_ms >= since_ms, displays.c.request_id == impressions.c.request_id),
    ]
    return {int(found) for look in looks for found in connection.scalars(look.distinct())}


def _count(connection: sa.Connection, hour: int, window_ms: int) -> dict[tuple[str, str], ArmCounts]:
    """Counts of one hour by (release, arm), from the rows."""
    in_hour = impressions.c.served_ms.between(hour * HOUR_MS, (hour + 1) * HOUR_MS - 1)
    targets: dict[_Key, set[str]] = defaultdict(set)
    echoes: dict[_Key, list[Any]] = defaultdict(list)
    for key, row in _events_of(connection, in_hour, _by_user(window_ms)):
        targets[key].add(row.item_id)
    for key, row in _events_of(connection, in_hour, _by_echo(window_ms)):
        targets[key].add(row.item_id)
        echoes[key].append(row)
    displayed = set(
        connection.scalars(
            sa.select(displays.c.request_id).where(in_hour, displays.c.request_id == impressions.c.request_id)
        )
    )
    sums: dict[tuple[str, str], ArmCounts] = defaultdict(ArmCounts)
    for answer in connection.execute(sa.select(impressions).where(in_hour)):
        key, counts = (answer.request_id, answer.arm), sums[answer.release, answer.arm]
        items = json.loads(answer.items)
        counts.add(targets[key], items)
        if answer.arm != SHADOW_ARM:
            counts.displayed += answer.request_id in displayed
            _count_echoes(counts, echoes[key], items)
    return dict(sums)


def _events_of(connection: sa.Connection, in_hour: Any, matches: Any) -> Iterator[tuple[_Key, Any]]:
    columns = (impressions.c.request_id, impressions.c.arm, events.c.item_id, events.c.event_type, events.c.value)
    for row in connection.execute(sa.select(*columns).where(in_hour, matches)):
        yield (row.request_id, row.arm), row


def _count_echoes(counts: ArmCounts, echoes: list[Any], items: list[str]) -> None:
    """Each event is credited to the one answer that it names, so revenue is counted once."""
    shown = [event for event in echoes if event.item_id in items]
    purchases = [event for event in shown if event.event_type == PURCHASE]
    counts.clicked += bool(shown)
    counts.converted += bool(purchases)
    counts.revenue += sum(event.value or 0.0 for event in purchases)
