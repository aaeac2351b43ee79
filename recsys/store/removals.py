"""Users whose events were deleted or given away, in order: for processes that keep something of them in memory."""

from collections.abc import Sequence
from typing import Final

import sqlalchemy as sa

from recsys.store.schema import removals, trouble

_LAST: Final = sa.select(sa.func.coalesce(sa.func.max(removals.c.seq), 0))
_KEPT: Final = 100_000
_AFTER: Final = (
    sa.select(removals.c.seq, removals.c.user_id).where(removals.c.seq > sa.bindparam("after")).order_by(removals.c.seq)
)


def note(connection: sa.Connection, user_ids: Sequence[str]) -> None:
    """Note users, at the end of the caller's transaction: until it ends nobody else is given a number.

    So a higher number is never visible before a lower one. SQLite has one writer at a time anyway.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("lock table removals in share row exclusive mode"))
    connection.execute(sa.insert(removals), [{"user_id": user_id} for user_id in user_ids])


def prune(connection: sa.Connection) -> None:
    """Keep the last ones: as many as no process is ever behind."""
    last = connection.scalar(_LAST) or 0
    connection.execute(sa.delete(removals).where(removals.c.seq <= last - _KEPT))


class Removals:
    """A look at them from one number to the next."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def last(self) -> int:
        """The highest number, 0 without any.

        Raises:
            StoreError: the store cannot be read.
        """
        with trouble("removals not read"), self._engine.connect() as connection:
            return connection.scalar(_LAST) or 0

    def after(self, seq: int) -> tuple[int, list[str]]:
        """The highest number now, and the users under numbers above `seq`.

        Raises:
            StoreError: the store cannot be read.
        """
        with trouble("removals not read"), self._engine.connect() as connection:
            rows = connection.execute(_AFTER, {"after": seq}).all()
        return (rows[-1].seq if rows else seq), [row.user_id for row in rows]
