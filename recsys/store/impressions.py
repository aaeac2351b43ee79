"""Answers that were given, one row each, and what shops displayed of them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from recsys.contracts.events import Event
from recsys.store.schema import displays, impressions, insert, tombstones


@dataclass(frozen=True, slots=True, kw_only=True)
class Impression:
    """What one answer recommended, to whom, and by which release."""

    request_id: str
    user_id: str | None
    release: str
    arm: str
    source: str
    items: Sequence[str]
    degraded: str | None = None
    """The trouble that kept the model from answering."""
    late: bool = False
    """Whether the answer took longer than its deadline."""
    served_ms: int | None = None
    """The moment of the answer; None for the one at which it is recorded."""


def record(connection: sa.Connection, batch: Sequence[Impression], now_ms: int) -> None:
    """Insert within the caller's transaction; what was answered before its user was forgotten is not kept."""
    rows = [
        {
            "request_id": each.request_id,
            "user_id": each.user_id,
            "release": each.release,
            "arm": each.arm,
            "source": each.source,
            "items": json.dumps(list(each.items)),
            "served_ms": now_ms if each.served_ms is None else each.served_ms,
            "degraded": each.degraded,
            "late": each.late,
        }
        for each in batch
    ]
    connection.execute(sa.insert(impressions), rows)
    # After the insert: from here on, whoever forgets a user waits for this transaction, or this one has waited for it.
    answered_before = sa.and_(
        tombstones.c.user_id == impressions.c.user_id, tombstones.c.forgotten_ms >= impressions.c.served_ms
    )
    mine = impressions.c.request_id.in_([each.request_id for each in batch])
    connection.execute(sa.delete(impressions).where(mine, sa.exists().where(answered_before)))


def stop_recording(connection: sa.Connection) -> None:
    """Let nobody record answers until the caller's transaction ends.

    SQLite has one writer at a time anyway; the caller has written, or will before it looks.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("lock table impressions in share row exclusive mode"))


def record_displays(engine: sa.Engine, connection: sa.Connection, batch: Sequence[Event], now_ms: int) -> int:
    """Insert what the shop says it displayed, within the caller's transaction; how many were new."""
    rows = [
        {"request_id": e.request_id, "item_id": e.item_id, "displayed_ms": e.timestamp_ms, "received_ms": now_ms}
        for e in batch
    ]
    statement = insert(engine, displays).on_conflict_do_nothing()
    stored: int = connection.execute(statement, rows, execution_options={"preserve_rowcount": True}).rowcount
    return stored
