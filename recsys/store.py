"""The event store: histories for the endpoint, and what the endpoint saw. SQLite by default, PostgreSQL by URL."""

import json
import re
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from recsys.contracts.errors import StoreError
from recsys.contracts.events import Event

HISTORY_CAP: Final = 20_000
"""Most events of one user that are read for an answer, newest first.

Windows are counted from the history's first event, so all of it is read up to here. Of a longer history
the windows are counted from the oldest event read: they shift with each new event, and are no longer the
ones the nightly job cuts.
"""

_BUSY_TIMEOUT_S = 5
_EXPECTED: Final = "expected sqlite:///path or postgresql://…"
_metadata = sa.MetaData()
_BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # SQLite numbers rows by INTEGER keys only
_events = sa.Table(
    "events",
    _metadata,
    sa.Column("seq", _BIG, primary_key=True, autoincrement=True),
    sa.Column("event_id", sa.String(300), nullable=False, unique=True),
    sa.Column("user_id", sa.String(256), nullable=False),
    sa.Column("item_id", sa.String(256), nullable=False),
    sa.Column("event_type", sa.String(64), nullable=False),
    sa.Column("timestamp_ms", sa.BigInteger, nullable=False),
    sa.Column("request_id", sa.String(64)),
    sa.Column("received_ms", sa.BigInteger, nullable=False),
    # item_id at the end: a history is read from the index alone.
    sa.Index("events_by_user", "user_id", "timestamp_ms", "seq", "item_id"),
)
_impressions = sa.Table(
    "impressions",
    _metadata,
    sa.Column("request_id", sa.String(64), primary_key=True),
    sa.Column("user_id", sa.String(256)),
    sa.Column("release", sa.String(128), nullable=False),
    sa.Column("source", sa.String(32), nullable=False),
    sa.Column("items", sa.Text, nullable=False),
    sa.Column("served_ms", sa.BigInteger, nullable=False),
)


@dataclass(frozen=True, slots=True)
class AppendResult:
    """What an append did."""

    stored: int
    duplicates: int
    """Events whose id was there already."""


class EventStore:
    """Events of users and the answers they were shown. Thread-safe; several processes may share it."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    @classmethod
    def open(cls, url: str) -> "EventStore":
        """Connect, and create the tables where they are missing.

        Raises:
            StoreError: a bad URL, a missing folder or driver, or no database there.
        """
        shown = re.sub(r"(?<=://)[^/]*@", "***@", url)  # a password never gets into a message or a log
        parsed = _checked_url(url, shown)
        try:
            engine = sa.create_engine(parsed)
        except ModuleNotFoundError as error:
            raise StoreError(f"store {shown}: driver {error.name} is missing; install recsys[postgres]") from None
        except SQLAlchemyError as error:
            raise StoreError(f"store {shown}: {_first_line(error)}; {_EXPECTED}") from None
        if engine.dialect.name == "sqlite":
            sa.event.listen(engine, "connect", _set_up_sqlite)
        try:
            _create_tables(engine)
        except SQLAlchemyError as error:
            engine.dispose()
            raise StoreError(f"store {shown}: cannot be opened: {_first_line(error)}") from None
        return cls(engine)

    def append(self, events: Sequence[Event]) -> AppendResult:
        """Store events in one transaction; they are durable when this returns. An event_id is stored once.

        Raises:
            StoreError: nothing was stored.
        """
        if not events:
            return AppendResult(0, 0)
        now_ms = int(time.time() * 1000)
        rows = [{**asdict(e), "event_id": e.event_id or uuid.uuid4().hex, "received_ms": now_ms} for e in events]
        statement = _INSERTS[self._engine.dialect.name](_events).on_conflict_do_nothing(index_elements=["event_id"])
        try:
            with self._engine.begin() as connection:
                # The number of rows this statement wrote. A count afterwards would include those of others.
                stored = connection.execute(statement, rows, execution_options={"preserve_rowcount": True}).rowcount
        except SQLAlchemyError as error:
            raise StoreError(f"store: events not stored: {_first_line(error)}") from error
        return AppendResult(stored, len(events) - stored)

    def import_events(self, batches: Iterable[Sequence[Event]]) -> AppendResult:
        """Append many batches; safe to run again, as every event carries an id made from its place."""
        stored = duplicates = 0
        for batch in batches:
            result = self.append(batch)
            stored, duplicates = stored + result.stored, duplicates + result.duplicates
        return AppendResult(stored, duplicates)

    def history(self, user_id: str, limit: int = HISTORY_CAP) -> list[str]:
        """The user's last `limit` item_ids, oldest first, in the order (timestamp, arrival).

        Raises:
            StoreError: the store cannot be read.
        """
        newest_first = (
            sa.select(_events.c.item_id)
            .where(_events.c.user_id == user_id)
            .order_by(_events.c.timestamp_ms.desc(), _events.c.seq.desc())
            .limit(limit)
        )
        try:
            with self._engine.connect() as connection:
                return list(connection.scalars(newest_first))[::-1]
        except SQLAlchemyError as error:
            raise StoreError(f"store: history not read: {_first_line(error)}") from error

    def record_impression(
        self, *, request_id: str, user_id: str | None, release: str, source: str, items: Sequence[str]
    ) -> None:
        """Keep what an answer showed, for recall tracking.

        Raises:
            StoreError: not kept.
        """
        row = {
            "request_id": request_id,
            "user_id": user_id,
            "release": release,
            "source": source,
            "items": json.dumps(list(items)),
            "served_ms": int(time.time() * 1000),
        }
        try:
            with self._engine.begin() as connection:
                connection.execute(sa.insert(_impressions), row)
        except SQLAlchemyError as error:
            raise StoreError(f"store: impression not kept: {_first_line(error)}") from error

    def num_events(self) -> int:
        """Events stored.

        Raises:
            StoreError: the store cannot be read.
        """
        try:
            with self._engine.connect() as connection:
                return connection.scalar(sa.select(sa.func.count()).select_from(_events)) or 0
        except SQLAlchemyError as error:
            raise StoreError(f"store: events not counted: {_first_line(error)}") from error

    def most_active(self, limit: int) -> list[str]:
        """Users with most events, most first.

        Raises:
            StoreError: the store cannot be read.
        """
        count = sa.func.count().desc()
        users = sa.select(_events.c.user_id).group_by(_events.c.user_id).order_by(count, _events.c.user_id).limit(limit)
        try:
            with self._engine.connect() as connection:
                return list(connection.scalars(users))
        except SQLAlchemyError as error:
            raise StoreError(f"store: users not read: {_first_line(error)}") from error

    def close(self) -> None:
        """Give connections back."""
        self._engine.dispose()


_INSERTS: Final[dict[str, Any]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


def _checked_url(url: str, shown: str) -> sa.URL:
    """The URL, if it is of a kind that keeps what it is given."""
    try:
        parsed = sa.make_url(url)
    except (SQLAlchemyError, ValueError) as error:
        reason = _first_line(error).replace(url, shown)
        raise StoreError(f"store {shown}: {reason}; {_EXPECTED}") from None
    backend = parsed.get_backend_name()
    if backend not in _INSERTS:
        raise StoreError(f"store {shown}: {_EXPECTED}")
    if backend == "postgresql":
        return parsed.set(drivername="postgresql+psycopg") if parsed.drivername == "postgresql" else parsed
    if parsed.database in {None, "", ":memory:"}:
        raise StoreError(f"store {shown}: a database in memory would be lost; expected sqlite:///path")
    folder = Path(str(parsed.database)).parent
    if not folder.is_dir():
        raise StoreError(f"store {shown}: no folder {folder}; create it first")
    return parsed


def _create_tables(engine: sa.Engine) -> None:
    """Create the tables where they are missing; they have our columns when this returns."""
    try:
        _metadata.create_all(engine)
    except SQLAlchemyError:
        _metadata.create_all(engine)  # another process created one between our look and our creation
    with engine.connect() as connection:
        for table in _metadata.sorted_tables:
            connection.execute(sa.select(table).limit(0))


def _set_up_sqlite(connection: Any, _record: Any) -> None:
    """Readers do not wait for the writer; a commit is on disk before it is acknowledged."""
    for pragma in (f"busy_timeout = {_BUSY_TIMEOUT_S * 1000}", "journal_mode = WAL", "synchronous = FULL"):
        connection.execute(f"PRAGMA {pragma}")


def _first_line(error: Exception) -> str:
    cause = getattr(error, "orig", None) or error
    return (str(cause).splitlines() or [type(cause).__name__])[0]
