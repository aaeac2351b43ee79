"""An anonymous session whose events become a user's."""

from typing import Any

import sqlalchemy as sa

from recsys.store.schema import events, impressions, joins


def move(connection: sa.Connection, session_id: str, user_id: str, now_ms: int) -> list[Any]:
    """Give events and answers away, within the caller's transaction; the (user_id, seq) that were written.

    Events are stored anew, as if they came now: recall is counted again, and the nightly job, which reads by
    number, finds them as this user's. Their order stays. That the session had them is noted for that job.
    """
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
