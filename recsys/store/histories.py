"""One user's events, read as one row: their number costs the database, not the threads of this process.

A driver hands rows over one by one, and between two of them every other thread may take its turn. While other
requests were answered, 2,000 rows took several times as long as alone.
"""

from dataclasses import dataclass
from typing import Any, Final

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import aggregate_order_by

from recsys.store.schema import events


@dataclass(frozen=True, slots=True)
class StoredHistory:
    """Some of a user's events, oldest first, in the order (timestamp, arrival)."""

    item_ids: list[str]
    last_seq: int
    """Highest sequence number among them, 0 without any."""
    first_ms: int
    last_ms: int


# Built once: to build a statement takes longer than to run it.
_NEWEST: Final = (
    sa.select(events.c.item_id, events.c.seq, events.c.timestamp_ms)
    .where(events.c.user_id == sa.bindparam("wanted"), events.c.seq > sa.bindparam("after"))
    .order_by(events.c.timestamp_ms.desc(), events.c.seq.desc())
    .limit(sa.bindparam("most"))
    .subquery()
)


def _row(item_ids: Any) -> Any:
    times = _NEWEST.c.timestamp_ms
    return sa.select(item_ids, sa.func.max(_NEWEST.c.seq), sa.func.min(times), sa.func.max(times))


_IN_ORDER: Final = aggregate_order_by(_NEWEST.c.item_id, _NEWEST.c.timestamp_ms.desc(), _NEWEST.c.seq.desc())
_READ: Final = {
    # It reads the rows as the inner query orders them, which it does not leave out because of the limit.
    "sqlite": _row(sa.func.json_group_array(_NEWEST.c.item_id)),
    "postgresql": _row(sa.cast(sa.func.json_agg(_IN_ORDER), sa.Text)),
}


def read(connection: sa.Connection, user_id: str, after: int, most: int) -> StoredHistory:
    """The user's last events with a higher number than `after`, `most` at most, oldest first.

    Raises:
        SQLAlchemyError: the database cannot be read.
    """
    found = {"wanted": user_id, "after": after, "most": most}
    item_ids, last_seq, first_ms, last_ms = connection.execute(_READ[connection.dialect.name], found).one()
    if last_seq is None:
        return StoredHistory([], 0, 0, 0)
    return StoredHistory(orjson.loads(item_ids)[::-1], last_seq, first_ms, last_ms)
