"""Answers that were given, one row each."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from recsys.store.schema import impressions


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


def record(connection: sa.Connection, batch: Sequence[Impression], served_ms: int) -> None:
    """Insert within the caller's transaction."""
    rows = [
        {
            "request_id": each.request_id,
            "user_id": each.user_id,
            "release": each.release,
            "arm": each.arm,
            "source": each.source,
            "items": json.dumps(list(each.items)),
            "served_ms": served_ms,
            "degraded": each.degraded,
            "late": each.late,
        }
        for each in batch
    ]
    connection.execute(sa.insert(impressions), rows)
