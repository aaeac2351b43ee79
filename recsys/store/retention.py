"""What is old leaves the store, some rows at a time: events that come meanwhile wait for one step, not for all."""

import sqlite3
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from recsys.contracts.errors import StoreError
from recsys.store import contexts, users
from recsys.store.schema import answer_counts, displays, events, impressions, joins

T = TypeVar("T")
AT_ONCE: Final = 1_000
"""Rows deleted in one transaction."""
_PAGES_AT_ONCE: Final = 1_000
"""Pages (of 4,096 bytes) that SQLite gives back in one transaction."""
Rest = Callable[[float], object]
"""Told the seconds that a step took, between steps: others write meanwhile."""


def prune(engine: sa.Engine, before_ms: int, rest: Rest) -> int:
    """Delete events, answers and displays older than a moment, and what has grown beside them.

    Returns the number of events deleted.
    """
    deleted = 0
    while num := _rested(lambda: _events(engine, before_ms), rest):
        deleted += num
    while _rested(lambda: _answers(engine, before_ms), rest):
        pass
    last: str | None = ""
    while last is not None:
        last = _rested(partial(_displays, engine, before_ms, last), rest)
    while _rested(lambda: _rare_contexts(engine), rest):
        pass
    _rested(lambda: _joins(engine), rest)
    return deleted


def gives_room_back(engine: sa.Engine) -> bool:
    """Whether room of deleted rows can be given back step by step; not in SQLite files of before this was set."""
    if engine.dialect.name != "sqlite":
        return True
    with engine.connect() as connection:
        return bool(connection.exec_driver_sql("PRAGMA auto_vacuum").scalar())


def give_room_back(engine: sa.Engine, rest: Rest) -> None:
    """SQLite: to the disk, some pages at a time. PostgreSQL: to the tables, in one go that nobody waits for."""
    if engine.dialect.name != "sqlite":
        _vacuum(engine)
    elif gives_room_back(engine):
        while _rested(lambda: _free_pages(engine), rest):
            pass


def vacuum_fully(engine: sa.Engine) -> None:
    """Write the whole SQLite file anew; whoever writes meanwhile waits. From then on, room is given back in steps."""
    _vacuum(engine)


def _vacuum(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        outside = connection.execution_options(isolation_level="AUTOCOMMIT")
        if engine.dialect.name == "sqlite":
            outside.exec_driver_sql("PRAGMA auto_vacuum = incremental")
        outside.execute(sa.text("vacuum"))


def _rested(step: Callable[[], T], rest: Rest) -> T:
    started = time.monotonic()
    done = step()
    rest(time.monotonic() - started)
    return done


def _free_pages(engine: sa.Engine) -> int:
    """Give some pages back; how many are left."""
    with engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        try:
            # Not `execute`: it takes the first step of the statement only, which is one page.
            driver.executescript(f"PRAGMA incremental_vacuum({_PAGES_AT_ONCE})")
        except sqlite3.Error as error:
            raise StoreError(f"store: room not given back: {error}; prune again") from error
        return connection.exec_driver_sql("PRAGMA freelist_count").scalar() or 0


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


def _displays(engine: sa.Engine, before_ms: int, after: str) -> str | None:
    """Of requests after one, in the order of their ids: no index tells the old ones. The last one, None at the end."""
    with engine.begin() as connection:
        old = displays.c.displayed_ms < before_ms
        ids = sa.select(displays.c.request_id).where(old, displays.c.request_id > after)
        some = connection.scalars(ids.order_by(displays.c.request_id).limit(AT_ONCE)).all()
        connection.execute(sa.delete(displays).where(old, displays.c.request_id.in_(set(some))))
    return some[-1] if some else None


def _rare_contexts(engine: sa.Engine) -> int:
    with engine.begin() as connection:
        return contexts.prune(connection, AT_ONCE)


def _joins(engine: sa.Engine) -> None:
    """Those that are older than every event: nothing is left to which they lead."""
    first = sa.select(sa.func.min(events.c.seq)).scalar_subquery()
    with engine.begin() as connection:
        connection.execute(sa.delete(joins).where(joins.c.last_seq < first))
