"""What became of each user of an experiment, within a fixed time after their first answer in it."""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from recsys.contracts.events import NEGATIVE_TYPES
from recsys.store.recall import PURCHASE
from recsys.store.schema import events, impressions, trouble

_USERS_AT_ONCE: Final = 500


@dataclass(frozen=True, slots=True)
class Entry:
    """A user's first answer in an experiment."""

    user_id: str
    arm: str
    first_ms: int
    is_moved: bool
    """Answered by several arms: a session that became this user's, or weights that were changed."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One user's. Everything within `window_ms` of the first answer, which is why it never changes again."""

    hit: float
    """1: the user did anything with an item that had been recommended."""
    click: float
    """1: … and echoed the answer's request_id."""
    conversion: float
    """1: the user bought anything, recommended or not."""
    revenue: float
    """Value of all purchases."""
    degraded: float
    """1: an answer was degraded."""
    late: float
    """1: an answer came after its deadline."""


class Outcomes:
    """Users of an experiment and what they did, read from the rows themselves."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def entries(self, arms: Sequence[str], since_ms: int, until_ms: int) -> list[Entry]:
        """Users whom `arms` answered within [since_ms, until_ms), in the order in which they came.

        Raises:
            StoreError: the store cannot be read.
        """
        first = sa.func.min(impressions.c.served_ms)
        wanted = (
            sa.select(
                impressions.c.user_id,
                sa.func.min(impressions.c.arm).label("arm"),
                sa.func.count(sa.distinct(impressions.c.arm)).label("num_arms"),
                first.label("first_ms"),
            )
            .where(impressions.c.served_ms >= since_ms, impressions.c.served_ms < until_ms)
            .where(impressions.c.arm.in_(arms), impressions.c.user_id.is_not(None))
            .group_by(impressions.c.user_id)
            .order_by(first, impressions.c.user_id)
        )
        with trouble("experiment not read"), self._engine.connect() as connection:
            return [Entry(r.user_id, r.arm, r.first_ms, r.num_arms > 1) for r in connection.execute(wanted)]

    def of(self, entries: Sequence[Entry], window_ms: int) -> Iterator[tuple[Entry, Outcome]]:
        """The outcome of each user, in order.

        Raises:
            StoreError: the store cannot be read.
        """
        for start in range(0, len(entries), _USERS_AT_ONCE):
            some = entries[start : start + _USERS_AT_ONCE]
            with trouble("experiment not read"), self._engine.connect() as connection:
                answers = _rows_by_user(connection, impressions, impressions.c.served_ms, some, window_ms)
                told = _rows_by_user(connection, events, events.c.timestamp_ms, some, window_ms)
            for entry in some:
                yield entry, _outcome(entry, answers[entry.user_id], told[entry.user_id], window_ms)


def _rows_by_user(
    connection: sa.Connection, table: sa.Table, moment: Any, some: Sequence[Entry], window_ms: int
) -> dict[str, list[Any]]:
    """Rows of these users between the first one's first answer and the end of the last one's window."""
    first, last = min(e.first_ms for e in some), max(e.first_ms for e in some) + window_ms
    wanted = sa.select(table).where(table.c.user_id.in_([e.user_id for e in some]), moment.between(first, last))
    found: dict[str, list[Any]] = defaultdict(list)
    for row in connection.execute(wanted):
        found[row.user_id].append(row)
    return found


def _outcome(entry: Entry, answers: list[Any], told: list[Any], window_ms: int) -> Outcome:
    end_ms = entry.first_ms + window_ms
    mine = [row for row in answers if row.arm == entry.arm and entry.first_ms <= row.served_ms <= end_ms]
    done = [row for row in told if row.event_type not in NEGATIVE_TYPES]
    after = [row for row in done if entry.first_ms < row.timestamp_ms <= end_ms]
    items = {row.request_id: set(json.loads(row.items)) for row in mine}
    recommended_ms: dict[str, int] = {}
    for row in sorted(mine, key=lambda row: row.served_ms, reverse=True):
        recommended_ms |= dict.fromkeys(items[row.request_id], row.served_ms)
    purchases = [row for row in after if row.event_type == PURCHASE]
    return Outcome(
        hit=float(any(row.timestamp_ms > recommended_ms.get(row.item_id, end_ms) for row in after)),
        click=float(any(row.item_id in items.get(row.request_id, ()) for row in after)),
        conversion=float(bool(purchases)),
        revenue=sum(row.value or 0.0 for row in purchases),
        degraded=float(any(row.degraded is not None for row in mine)),
        late=float(any(row.late for row in mine)),
    )
