"""Answers joined to what their users did next: counts by hour, release and arm, kept in the store.

An answer is counted anew from the rows themselves whenever it may have changed, and what it counted for before is
taken off. So the counts are exact whatever comes late, twice or out of order, and the work grows with what is new.
Hours whose rows have been pruned are left as they are.
"""

import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, fields
from itertools import groupby
from typing import Any, Final

import sqlalchemy as sa

from recsys.contracts.events import NEGATIVE_TYPES
from recsys.store import joining
from recsys.store.counts import ArmCounts
from recsys.store.schema import (
    answer_counts,
    displays,
    documents,
    events,
    impressions,
    insert,
    recall_hours,
    trouble,
)

HOUR_MS: Final = 3_600_000
PURCHASE: Final = "purchase"
SHADOW_ARM: Final = "shadow"
"""The arm of answers that nobody saw: what users did next counts, clicks and purchases are not theirs."""
SKEW_MS: Final = 300_000
"""An event that echoes an answer may be dated so long before it: clocks of shops' servers differ from ours."""
_OVERLAP_MS: Final = 60_000
"""Looked at again each time: a transaction may become visible some time after the moment written in its rows."""
_STATE: Final = "attribution"
_IS_NO_RETURN: Final = events.c.event_type.not_in(NEGATIVE_TYPES)
"""Who sends an item back has not taken it."""

_AT_ONCE: Final = 100
"""Answers that are counted in one transaction: events that come meanwhile wait for it."""

_Key = tuple[str, str]  # request_id, arm
_Hour = tuple[int, str, str]  # hour since 1970, release, arm


@dataclass(frozen=True, slots=True)
class _Answer:
    """A row of `impressions`."""

    request_id: str
    arm: str
    user_id: str | None
    release: str
    items: list[str]
    served_ms: int

    @property
    def key(self) -> _Key:
        return self.request_id, self.arm


@dataclass(frozen=True, slots=True)
class _Found:
    """What one answer counts for: a row of `answer_counts`."""

    num_targets: int
    num_hits: int
    displayed: int = 0
    clicked: int = 0
    converted: int = 0
    revenue: float = 0.0

    def counts(self) -> ArmCounts:
        """As counts of one answer."""
        counts = ArmCounts(
            displayed=self.displayed,
            clicked=self.clicked,
            converted=self.converted,
            revenue=self.revenue,
            revenue_squared=self.revenue**2,
        )
        counts.add(self.num_targets, self.num_hits)
        return counts


_FIELDS: Final = tuple(field.name for field in fields(_Found))


class Attribution:
    """The join of answers and later events."""

    def __init__(self, engine: sa.Engine, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._clock = clock

    def update(self, window_ms: int, rest: Callable[[float], object] = lambda _: None) -> int:
        """Bring the counts up to date; the number of hours that were looked at. Several workers may call it.

        An answer's targets are the items of its user's events after it and within `window_ms`, and those of
        the user's events that echo its request_id, which may be dated up to `SKEW_MS` before it. Who echoes an
        answer to nobody in particular is its user; so is a session that became the user's, and the other way
        round. `rest` is called between transactions with the seconds that the last took.

        Raises:
            StoreError: some answers are not counted yet; they are the next time.
        """
        now_ms = int(self._clock() * 1000)
        hours: set[int] = set()
        with trouble("recall not counted"):
            with self._engine.begin() as connection:
                state = _complete(connection, _locked_state(self._engine, connection))
                since_ms = state["cursor_ms"] - _OVERLAP_MS
            with self._engine.connect() as connection:
                touched = _touched(connection, since_ms, window_ms)
            for start in range(0, len(touched), _AT_ONCE):
                started = time.monotonic()
                with self._engine.begin() as connection:
                    hours |= self._count(connection, touched[start : start + _AT_ONCE], window_ms)
                rest(time.monotonic() - started)
            with self._engine.begin() as connection:  # last: a killed update is done again
                state = _locked_state(self._engine, connection)
                _save_state(connection, state | {"cursor_ms": max(now_ms, state["cursor_ms"])})
        return len(hours)

    def _count(self, connection: sa.Connection, request_ids: Sequence[str], window_ms: int) -> set[int]:
        """Note what each answer counts for now, and change the counts by the difference; the hours looked at."""
        frozen_before_ms = _locked_state(self._engine, connection)["frozen_before_ms"]
        answers = _answers(connection, request_ids, frozen_before_ms)
        before = _noted(connection, answers)
        changes: dict[_Hour, ArmCounts] = defaultdict(ArmCounts)
        rows = []
        for answer, found in _found(connection, answers, window_ms):
            change = changes[answer.served_ms // HOUR_MS, answer.release, answer.arm]
            change += found.counts()
            if answer.key in before:
                change -= before[answer.key].counts()
                if found == before[answer.key]:
                    continue
            rows.append({"request_id": answer.request_id, "arm": answer.arm, **asdict(found)})
        if rows:
            statement = insert(self._engine, answer_counts)
            fresh = {name: statement.excluded[name] for name in _FIELDS}
            connection.execute(statement.on_conflict_do_update(index_elements=["request_id", "arm"], set_=fresh), rows)
            _change(self._engine, connection, changes)
        return {hour for hour, _, _ in changes}

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
        return {(row.hour, row.release, row.arm): ArmCounts.from_json(row.counts) for row in rows}

    def totals(self, since_ms: int = 0) -> dict[tuple[str, str], ArmCounts]:
        """Counts by (release, arm) over all hours from the one of `since_ms` on.

        Raises:
            StoreError: the store cannot be read.
        """
        sums: dict[tuple[str, str], ArmCounts] = defaultdict(ArmCounts)
        for (_, release, arm), counts in self.by_hour(since_ms).items():
            sums[release, arm] += counts
        return dict(sums)


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


def _complete(connection: sa.Connection, state: dict[str, int]) -> dict[str, int]:
    """Hours that an older version counted get their `revenue_squared` from their answers, if these are there still."""
    if "has_squares" in state:
        return state
    hour, frozen = impressions.c.served_ms // HOUR_MS, state["frozen_before_ms"]
    of_answer = sa.and_(
        answer_counts.c.request_id == impressions.c.request_id, answer_counts.c.arm == impressions.c.arm
    )
    by_hour = (hour, impressions.c.release, impressions.c.arm)
    squares = sa.select(*by_hour, sa.func.sum(answer_counts.c.revenue * answer_counts.c.revenue))
    rows = connection.execute(squares.join_from(impressions, answer_counts, of_answer).group_by(*by_hour))
    found = {(row[0], row[1], row[2]): float(row[3]) for row in rows}
    for row in connection.execute(sa.select(recall_hours).where(recall_hours.c.hour * HOUR_MS >= frozen)).all():
        key = (row.hour, row.release, row.arm)
        text = json.dumps({"revenue_squared": found.get(key, 0.0), **json.loads(row.counts)})
        mine = sa.and_(*(recall_hours.c[name] == getattr(row, name) for name in ("hour", "release", "arm")))
        connection.execute(sa.update(recall_hours).where(mine).values(counts=text))
    state = state | {"has_squares": 1}
    _save_state(connection, state)
    return state


def _touched(connection: sa.Connection, since_ms: int, window_ms: int) -> list[str]:
    """request_ids of answers that are new, or that have new events or displays; a user's together."""
    answer, new_event = (impressions.c.user_id, impressions.c.request_id), events.c.received_ms >= since_ms
    after = events.c.timestamp_ms - impressions.c.served_ms
    by_user = sa.and_(impressions.c.user_id == events.c.user_id, after > 0, after <= window_ms)
    by_echo = sa.and_(impressions.c.request_id == events.c.request_id, after.between(-SKEW_MS, window_ms))
    looks = [
        sa.select(*answer).where(impressions.c.served_ms >= since_ms),
        sa.select(*answer).where(new_event, by_user),
        sa.select(*answer).where(new_event, by_echo),
        sa.select(*answer).where(displays.c.received_ms >= since_ms, displays.c.request_id == impressions.c.request_id),
    ]
    found = {(row.user_id or "", row.request_id) for look in looks for row in connection.execute(look.distinct())}
    return [request_id for _, request_id in sorted(found)]


def _answers(connection: sa.Connection, request_ids: Sequence[str], frozen_before_ms: int) -> list[_Answer]:
    """The answers of some requests, a user's together, the latest first; not of hours that are frozen."""
    mine = impressions.c.request_id.in_(request_ids)
    rows = connection.execute(sa.select(impressions).where(mine)).all()
    found = [
        _Answer(r.request_id, r.arm, r.user_id, r.release, json.loads(r.items), r.served_ms)
        for r in rows
        if r.served_ms // HOUR_MS * HOUR_MS >= frozen_before_ms
    ]
    return sorted(found, key=lambda answer: (answer.user_id or "", -answer.served_ms))


def _noted(connection: sa.Connection, answers: Sequence[_Answer]) -> dict[_Key, _Found]:
    """What the answers counted for when they were counted last."""
    mine = answer_counts.c.request_id.in_({answer.request_id for answer in answers})
    rows = connection.execute(sa.select(answer_counts).where(mine)).all()
    return {(row.request_id, row.arm): _Found(**{name: getattr(row, name) for name in _FIELDS}) for row in rows}


def _found(connection: sa.Connection, answers: Sequence[_Answer], window_ms: int) -> Iterator[tuple[_Answer, _Found]]:
    """What became of each answer, from the rows."""
    request_ids = {answer.request_id for answer in answers}
    echoes: dict[str, list[Any]] = defaultdict(list)
    for event in connection.execute(sa.select(events).where(events.c.request_id.in_(request_ids), _IS_NO_RETURN)):
        echoes[event.request_id].append(event)
    known_as = joining.known_as(connection, _strangers(answers, echoes))
    displayed = set(connection.scalars(sa.select(displays.c.request_id).where(displays.c.request_id.in_(request_ids))))
    for user_id, of_user in groupby(answers, key=lambda answer: answer.user_id):
        own = list(of_user)
        following = _following(connection, user_id, own, window_ms)
        for answer, items in zip(own, following, strict=True):
            names = {answer.user_id, *known_as.get(answer.user_id or "", ())}
            echoed = [
                e
                for e in echoes[answer.request_id]
                if -SKEW_MS <= e.timestamp_ms - answer.served_ms <= window_ms
                and (answer.user_id is None or e.user_id in names)
            ]
            yield answer, _became(answer, items, echoed, is_displayed=answer.request_id in displayed)


def _strangers(answers: Sequence[_Answer], echoes: Mapping[str, Sequence[Any]]) -> set[str]:
    """Users of answers and of events that echo them under another name."""
    return {
        name
        for answer in answers
        for event in echoes.get(answer.request_id, ())
        if answer.user_id is not None and answer.user_id != event.user_id
        for name in (answer.user_id, event.user_id)
    }


def _following(
    connection: sa.Connection, user_id: str | None, answers: list[_Answer], window_ms: int
) -> Iterator[Set[str]]:
    """For each answer of a user, the latest first, the items of the user's events within its window.

    One pass over answers and events: the window moves back, events enter at its beginning and leave at its end.
    """
    inside: Counter[str] = Counter()
    rows: list[Any] = []
    if user_id is not None:
        first_ms, last_ms = answers[-1].served_ms, answers[0].served_ms + window_ms
        wanted = sa.select(events.c.item_id, events.c.timestamp_ms)
        mine = sa.and_(events.c.user_id == user_id, events.c.timestamp_ms.between(first_ms, last_ms))
        rows = list(connection.execute(wanted.where(mine, _IS_NO_RETURN).order_by(events.c.timestamp_ms.desc())))
    entered = left = 0
    for answer in answers:
        while entered < len(rows) and rows[entered].timestamp_ms > answer.served_ms:
            inside[rows[entered].item_id] += 1
            entered += 1
        while left < entered and rows[left].timestamp_ms > answer.served_ms + window_ms:
            inside[rows[left].item_id] -= 1
            if not inside[rows[left].item_id]:
                del inside[rows[left].item_id]
            left += 1
        yield inside.keys()


def _became(answer: _Answer, items: Set[str], echoes: list[Any], *, is_displayed: bool) -> _Found:
    """Each event is credited to the one answer that it names, so revenue is counted once; a shadow is not credited."""
    shown = set(answer.items)
    echoed = {event.item_id for event in echoes}
    num_targets = len(items) + len(echoed - items)
    num_hits = sum(item in items or item in echoed for item in shown)
    if answer.arm == SHADOW_ARM:
        return _Found(num_targets, num_hits)
    credited = [event for event in echoes if event.item_id in shown]
    purchases = [event for event in credited if event.event_type == PURCHASE]
    revenue = sum(event.value or 0.0 for event in purchases)
    return _Found(num_targets, num_hits, int(is_displayed), int(bool(credited)), int(bool(purchases)), revenue)


def _change(engine: sa.Engine, connection: sa.Connection, changes: dict[_Hour, ArmCounts]) -> None:
    """Add differences to the counts by hour."""
    for (hour, release, arm), change in sorted(changes.items()):
        mine = sa.and_(recall_hours.c.hour == hour, recall_hours.c.release == release, recall_hours.c.arm == arm)
        known = connection.scalar(sa.select(recall_hours.c.counts).where(mine))
        counts = ArmCounts() if known is None else ArmCounts.from_json(known)
        counts += change
        counts.revenue = round(counts.revenue, 6)  # what was taken off leaves nothing behind
        counts.revenue_squared = round(counts.revenue_squared, 6)
        row = {"hour": hour, "release": release, "arm": arm, "counts": json.dumps(asdict(counts))}
        statement = insert(engine, recall_hours).values(row)
        connection.execute(
            statement.on_conflict_do_update(index_elements=["hour", "release", "arm"], set_={"counts": row["counts"]})
        )
