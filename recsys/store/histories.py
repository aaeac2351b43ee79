"""One user's events, read as one row: their number costs the database, not the threads of this process.

A driver hands rows over one by one, and between two of them every other thread may take its turn. While other
requests were answered, 2,000 rows took several times as long as alone.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import aggregate_order_by

from recsys.store.schema import events


@dataclass(frozen=True, slots=True)
class StoredHistory:
    """Some of a user's events, oldest first, in the order (timestamp, arrival)."""

    item_ids: list[str | None]
    """None where the event's type is not asked for."""
    last_seq: int
    """Highest sequence number among them, 0 without any."""
    first_ms: int
    last_ms: int


@cache  # to build a statement takes longer than to run it
def _statement(dialect: str, event_types: tuple[str, ...]) -> Any:
    item_id: Any = events.c.item_id
    if event_types:
        item_id = sa.case((events.c.event_type.in_(event_types), item_id)).label("item_id")
    newest = (
        sa.select(item_id, events.c.seq, events.c.timestamp_ms)
        .where(events.c.user_id == sa.bindparam("wanted"), events.c.seq > sa.bindparam("after"))
        .order_by(events.c.timestamp_ms.desc(), events.c.seq.desc())
        .limit(sa.bindparam("most"))
        .subquery()
    )
    times = newest.c.timestamp_ms
    if dialect == "sqlite":
        # It reads the rows as the inner query orders them, which it does not leave out because of the limit.
        item_ids: Any = sa.func.json_group_array(newest.c.item_id)
    else:
        in_order = aggregate_order_by(newest.c.item_id, times.desc(), newest.c.seq.desc())
        item_ids = sa.cast(sa.func.json_agg(in_order), sa.Text)
    return sa.select(item_ids, sa.func.max(newest.c.seq), sa.func.min(times), sa.func.max(times))


def read(
    connection: sa.Connection, user_id: str, after: int, most: int, event_types: tuple[str, ...] = ()
) -> StoredHistory:
    """The user's last events with a higher number than `after`, `most` at most, oldest first.

    `event_types` are those whose items are asked for; none: all.

    Raises:
        SQLAlchemyError: the database cannot be read.
    """
    found = {"wanted": user_id, "after": after, "most": most}
    statement = _statement(connection.dialect.name, event_types)
    item_ids, last_seq, first_ms, last_ms = connection.execute(statement, found).one()
    if last_seq is None:
        return StoredHistory([], 0, 0, 0)
    return StoredHistory(orjson.loads(item_ids)[::-1], last_seq, first_ms, last_ms)
