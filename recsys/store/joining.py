"""An anonymous session whose events become a user's."""

from collections import defaultdict
from collections.abc import Collection
from typing import Any, Final

import sqlalchemy as sa

from recsys.store.schema import events, impressions, joins

_AT_ONCE: Final = 500
"""Users that are looked for by one statement."""


def move(connection: sa.Connection, session_id: str, user_id: str, now_ms: int) -> list[Any]:
    """Give events and answers away, within the caller's transaction; the (user_id, seq) that were written.

    Events are stored anew, as if they came now: recall is counted again, and the nightly job, which reads by
    number, finds them as this user's. Their order stays. That the session had them is noted for that job.
    """
    _count_again(connection, session_id, user_id, now_ms)
    shown = sa.update(impressions).where(impressions.c.user_id == session_id)
    connection.execute(shown.values(user_id=user_id))
    # What is deleted is what is stored again: a look before could miss an event that comes in between.
    taken = connection.execute(sa.delete(events).where(events.c.user_id == session_id).returning(events)).mappings()
    rows = [{**row, "user_id": user_id, "received_ms": now_ms} for row in sorted(taken, key=lambda row: row["seq"])]
    if not rows:
        return []
    for row in rows:
        del row["seq"]
    again = sa.insert(events).returning(events.c.user_id, events.c.seq, sort_by_parameter_order=True)
    written = list(connection.execute(again, rows))
    connection.execute(sa.insert(joins).values(session_id=session_id, last_seq=max(seq for _, seq in written)))
    return written


def _count_again(connection: sa.Connection, session_id: str, user_id: str, now_ms: int) -> None:
    """The user's own events count for answers that the session was given, too: they are as if they came now."""
    first_ms = sa.select(sa.func.min(impressions.c.served_ms)).where(impressions.c.user_id == session_id)
    own = sa.update(events).where(events.c.user_id == user_id)
    echoed = sa.select(impressions.c.request_id).where(impressions.c.user_id == session_id)
    later = sa.or_(events.c.timestamp_ms > first_ms.scalar_subquery(), events.c.request_id.in_(echoed))
    connection.execute(own.where(later).values(received_ms=now_ms))


def known_as(connection: sa.Connection, names: Collection[str]) -> dict[str, set[str]]:
    """For each of some users, whose sessions they were before they signed in, and which sessions were theirs.

    A join leaves a trace as long as the last of the session's events is there.
    """
    found: dict[str, set[str]] = defaultdict(set)
    wanted = sa.select(joins.c.session_id, events.c.user_id).where(joins.c.last_seq == events.c.seq)
    listed = sorted(names)
    for start in range(0, len(listed), _AT_ONCE):
        some = joins.c.session_id.in_(listed[start : start + _AT_ONCE])
        for session_id, user_id in connection.execute(wanted.where(some)):
            found[session_id].add(user_id)
            found[user_id].add(session_id)
    return found
