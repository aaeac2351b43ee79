"""What is old leaves the store, some rows at a time: events that come meanwhile wait for one step, not for all."""

from typing import Final

import sqlalchemy as sa

from recsys.store import users
from recsys.store.schema import answer_counts, displays, events, impressions

AT_ONCE: Final = 2_000
"""Rows deleted in one transaction."""


def prune(engine: sa.Engine, before_ms: int) -> int:
    """Delete events, answers and displays older than a moment; the number of events deleted."""
    deleted = 0
    while num := _events(engine, before_ms):
        deleted += num
    while _answers(engine, before_ms):
        pass
    with engine.begin() as connection:
        connection.execute(sa.delete(displays).where(displays.c.displayed_ms < before_ms))
    return deleted


def _events(engine: sa.Engine, before_ms: int) -> int:
    with engine.begin() as connection:
        old = sa.select(events.c.seq).where(events.c.timestamp_ms < before_ms).limit(AT_ONCE)
        some = events.c.seq.in_(connection.scalars(old).all())
        shortened = users.lock(connection, sa.select(events.c.user_id).where(some))
        deleted = connection.execute(sa.delete(events).where(some)).rowcount
        users.recount(connection, shortened)
    return deleted


def _answers(engine: sa.Engine, before_ms: int) -> int:
    """Of one request, all arms: a shadow answers at the same moment."""
    with engine.begin() as connection:
        old = sa.select(impressions.c.request_id).where(impressions.c.served_ms < before_ms).limit(AT_ONCE)
        some = set(connection.scalars(old))
        connection.execute(sa.delete(answer_counts).where(answer_counts.c.request_id.in_(some)))
        return connection.execute(sa.delete(impressions).where(impressions.c.request_id.in_(some))).rowcount
