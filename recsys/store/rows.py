"""Events as the nightly job reads them: all users', in the order of their numbers."""

from collections.abc import Iterator
from typing import Final, NamedTuple

import sqlalchemy as sa

from recsys.store.events import EventStore
from recsys.store.schema import events, joins, trouble

SETTLED_MS: Final = 60_000
"""A transaction is visible at the latest so long after the moment that is written in its rows."""
_BATCH: Final = 50_000


class StoredEvent(NamedTuple):
    """One event and its number."""

    seq: int
    user_id: str
    item_id: str
    event_type: str
    timestamp_ms: int


def last_settled(store: EventStore, before_ms: int) -> int:
    """The highest number received before a moment, 0 without any: lower ones are all visible, if it is long past.

    Raises:
        StoreError: the store cannot be read.
    """
    wanted = sa.select(sa.func.max(events.c.seq)).where(events.c.received_ms < before_ms)
    with trouble("events not read"), store.engine.connect() as connection:
        return connection.scalar(wanted) or 0


def event_rows(store: EventStore, after: int, last: int) -> Iterator[list[StoredEvent]]:
    """Events numbered from `after` (not included) to `last` (included), some at a time.

    Raises:
        StoreError: the store cannot be read.
    """
    columns = (events.c.seq, events.c.user_id, events.c.item_id, events.c.event_type, events.c.timestamp_ms)
    wanted = sa.select(*columns).order_by(events.c.seq).limit(_BATCH)
    while True:
        with trouble("events not read"), store.engine.connect() as connection:
            found = connection.execute(wanted.where(events.c.seq > after, events.c.seq <= last)).all()
        if not found:
            return
        yield [StoredEvent(*row) for row in found]
        after = found[-1].seq


def joined_sessions(store: EventStore, after: int, last: int) -> list[str]:
    """Sessions whose events became a user's, under numbers that end between `after` (not included) and `last`.

    Raises:
        StoreError: the store cannot be read.
    """
    wanted = sa.select(joins.c.session_id).where(joins.c.last_seq > after, joins.c.last_seq <= last).distinct()
    with trouble("joins not read"), store.engine.connect() as connection:
        return sorted(connection.scalars(wanted))
