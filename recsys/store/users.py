"""How many events each user has: a row a user, changed by the transactions that change events.

Counting 2,000 rows for each answer took longer than anything else about a user whom nothing had happened to.
"""

from collections.abc import Iterable
from typing import Any, Final

import sqlalchemy as sa

from recsys.store.schema import INSERTS, documents, events, users

# Built once: to build a statement takes longer than to run it.
_MINE: Final = users.c.user_id == sa.bindparam("wanted")
GLANCE: Final = sa.select(
    sa.select(sa.func.coalesce(sa.func.sum(documents.c.revision), 0)).scalar_subquery().label("revision"),
    sa.select(users.c.num_events).where(_MINE).scalar_subquery().label("num_events"),
    sa.select(users.c.last_seq).where(_MINE).scalar_subquery().label("last_seq"),
)
_OWN: Final = events.c.user_id == sa.bindparam("wanted")
_RECOUNT: Final = (
    sa.update(users)
    .where(_MINE)
    .values(
        num_events=sa.select(sa.func.count()).select_from(events).where(_OWN).scalar_subquery(),
        last_seq=sa.select(sa.func.coalesce(sa.func.max(events.c.seq), 0)).where(_OWN).scalar_subquery(),
    )
)


def _counting(new: Any) -> Any:
    """An insert into `users` that adds to the rows there are."""
    higher = sa.case((users.c.last_seq > new.excluded.last_seq, users.c.last_seq), else_=new.excluded.last_seq)
    total = {"num_events": users.c.num_events + new.excluded.num_events, "last_seq": higher}
    return new.on_conflict_do_update(index_elements=["user_id"], set_=total)


_ADD: Final = {dialect: _counting(insert(users)) for dialect, insert in INSERTS.items()}


def lock(connection: sa.Connection, which: Any) -> list[str]:
    """Those of the users `which` who have events; nobody else changes theirs until the transaction ends."""
    rows = sa.select(users.c.user_id).where(users.c.user_id.in_(which))
    return list(connection.scalars(rows.order_by(users.c.user_id).with_for_update()))


def add(engine: sa.Engine, connection: sa.Connection, written: Iterable[Any]) -> None:
    """Count rows (user_id, seq) that were written, users in order so that two batches never wait for each other."""
    added: dict[str, tuple[int, int]] = {}
    for user_id, seq in written:
        num, last = added.get(user_id, (0, 0))
        added[user_id] = num + 1, max(last, seq)
    rows = [{"user_id": user, "num_events": num, "last_seq": last} for user, (num, last) in sorted(added.items())]
    if rows:
        connection.execute(_ADD[engine.dialect.name], rows)


def recount(connection: sa.Connection, user_ids: Iterable[str]) -> None:
    """Count anew the events of users whom `lock` holds; those without any are gone."""
    rows = [{"wanted": user_id} for user_id in user_ids]
    if rows:
        connection.execute(_RECOUNT, rows)
        connection.execute(sa.delete(users).where(users.c.num_events == 0))
