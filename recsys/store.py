"""The event store: histories for the endpoint, and what the endpoint saw. SQLite by default, PostgreSQL by URL."""

import json
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
"""Most events of one user that are read for an answer, newest first."""

_BUSY_TIMEOUT_S = 5
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
    sa.Index("events_by_user", "user_id", "timestamp_ms", "seq"),
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
        try:
            parsed = sa.make_url(url)
            if parsed.drivername == "postgresql":
                parsed = parsed.set(drivername="postgresql+psycopg")
            if parsed.get_backend_name() == "sqlite" and parsed.database:
                folder = Path(parsed.database).parent
                if not folder.is_dir():
                    raise StoreError(f"store {url}: no folder {folder}; create it first")
            engine = sa.create_engine(parsed)
        except ModuleNotFoundError as error:
            raise StoreError(f"store {url}: driver {error.name} is missing; install recsys[postgres]") from None
        except SQLAlchemyError as error:
            raise StoreError(f"store {url}: {_first_line(error)}; expected sqlite:///path or postgresql://…") from None
        if engine.dialect.name not in _INSERTS:
            raise StoreError(f"store {url}: expected sqlite:///path or postgresql://…")
        if engine.dialect.name == "sqlite":
            sa.event.listen(engine, "connect", _set_up_sqlite)
        try:
            _metadata.create_all(engine)
        except SQLAlchemyError as error:
            raise StoreError(f"store {parsed.render_as_string()}: cannot be opened: {_first_line(error)}") from None
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
                before = connection.scalar(sa.select(sa.func.max(_events.c.seq))) or 0
                connection.execute(statement, rows)
                mine = sa.and_(_events.c.seq > before, _events.c.event_id.in_([r["event_id"] for r in rows]))
                stored = connection.scalar(sa.select(sa.func.count()).where(mine)) or 0
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
        """Events stored."""
        with self._engine.connect() as connection:
            return connection.scalar(sa.select(sa.func.count()).select_from(_events)) or 0

    def most_active(self, limit: int) -> list[str]:
        """Users with most events, most first."""
        count = sa.func.count().desc()
        users = sa.select(_events.c.user_id).group_by(_events.c.user_id).order_by(count, _events.c.user_id).limit(limit)
        with self._engine.connect() as connection:
            return list(connection.scalars(users))

    def close(self) -> None:
        """Give connections back."""
        self._engine.dispose()


_INSERTS: Final[dict[str, Any]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


def _set_up_sqlite(connection: Any, _record: Any) -> None:
    """Readers do not wait for the writer; a commit is on disk before it is acknowledged."""
    for pragma in ("journal_mode = WAL", "synchronous = FULL", f"busy_timeout = {_BUSY_TIMEOUT_S * 1000}"):
        connection.execute(f"PRAGMA {pragma}")


def _first_line(error: SQLAlchemyError) -> str:
    cause = getattr(error, "orig", None) or error
    return str(cause).splitlines()[0]
