"""Tables of the event store, and how a database is opened."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import OperationalError, ProgrammingError, SQLAlchemyError

from recsys.contracts.errors import StoreError

_BUSY_TIMEOUT_S = 5
_EXPECTED: Final = "expected sqlite:///path or postgresql://…"
_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "sqlite": {},
    "postgresql": {
        "pool_timeout": _BUSY_TIMEOUT_S,
        # A server that is gone without a word is noticed; libpq would wait for it for hours.
        "connect_args": {
            "client_encoding": "utf8",  # of a database that names no encoding, texts would be bytes
            "connect_timeout": _BUSY_TIMEOUT_S,
            "keepalives_idle": 30,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 2 * _BUSY_TIMEOUT_S * 1000,
        },
    },
}
_ENCODINGS: Final = frozenset({"UTF8", "SQL_ASCII"})
"""Of databases that hold every text; others refuse an event for a letter of its id."""
_metadata = sa.MetaData()
_BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # SQLite numbers rows by INTEGER keys only

events = sa.Table(
    "events",
    _metadata,
    sa.Column("seq", _BIG, primary_key=True, autoincrement=True),
    sa.Column("event_id", sa.String(300), nullable=False, unique=True),
    sa.Column("user_id", sa.String(256), nullable=False),
    sa.Column("item_id", sa.String(256), nullable=False),
    sa.Column("event_type", sa.String(64), nullable=False),
    sa.Column("timestamp_ms", sa.BigInteger, nullable=False),
    sa.Column("request_id", sa.String(64)),
    sa.Column("value", sa.Float),
    sa.Column("received_ms", sa.BigInteger, nullable=False),
    # item_id at the end: a history is read from the index alone.
    sa.Index("events_by_user", "user_id", "timestamp_ms", "seq", "item_id"),
    sa.Index("events_by_request", "request_id"),
    sa.Index("events_by_arrival", "received_ms"),
    sa.Index("events_by_time", "timestamp_ms"),
    sqlite_autoincrement=True,  # a number is never given twice, also after the last rows were deleted
)
impressions = sa.Table(
    "impressions",
    _metadata,
    sa.Column("request_id", sa.String(64), nullable=False),
    sa.Column("arm", sa.String(64), nullable=False),
    sa.Column("user_id", sa.String(256)),
    sa.Column("release", sa.String(128), nullable=False),
    sa.Column("source", sa.String(32), nullable=False),
    sa.Column("items", sa.Text, nullable=False),
    sa.Column("served_ms", sa.BigInteger, nullable=False),
    sa.Column("degraded", sa.String(32)),
    sa.Column("late", sa.Boolean),
    sa.PrimaryKeyConstraint("request_id", "arm"),  # a shadow answers the same request under an arm of its own
    sa.Index("impressions_by_time", "served_ms"),
    sa.Index("impressions_by_user", "user_id", "served_ms"),
)
displays = sa.Table(
    "displays",
    _metadata,
    sa.Column("request_id", sa.String(64), nullable=False),
    sa.Column("item_id", sa.String(256), nullable=False),
    sa.Column("displayed_ms", sa.BigInteger, nullable=False),
    sa.Column("received_ms", sa.BigInteger, nullable=False),
    sa.PrimaryKeyConstraint("request_id", "item_id"),
    sa.Index("displays_by_arrival", "received_ms"),
)
answer_counts = sa.Table(
    "answer_counts",
    _metadata,
    sa.Column("request_id", sa.String(64), nullable=False),
    sa.Column("arm", sa.String(64), nullable=False),
    sa.Column("num_targets", sa.Integer, nullable=False),
    sa.Column("num_hits", sa.Integer, nullable=False),
    sa.Column("displayed", sa.Integer, nullable=False),
    sa.Column("clicked", sa.Integer, nullable=False),
    sa.Column("converted", sa.Integer, nullable=False),
    sa.Column("revenue", sa.Float, nullable=False),
    sa.PrimaryKeyConstraint("request_id", "arm"),
)
context_counts = sa.Table(
    "context_counts",
    _metadata,
    sa.Column("field", sa.String(16), nullable=False),
    sa.Column("value", sa.String(64), nullable=False),
    sa.Column("item_id", sa.String(256), nullable=False),
    sa.Column("num_events", sa.BigInteger, nullable=False),
    sa.PrimaryKeyConstraint("field", "value", "item_id"),
)
recall_hours = sa.Table(
    "recall_hours",
    _metadata,
    sa.Column("hour", _BIG, nullable=False),
    sa.Column("release", sa.String(128), nullable=False),
    sa.Column("arm", sa.String(64), nullable=False),
    sa.Column("counts", sa.Text, nullable=False),
    sa.PrimaryKeyConstraint("hour", "release", "arm"),
)
users = sa.Table(
    "users",
    _metadata,
    sa.Column("user_id", sa.String(256), primary_key=True),
    sa.Column("num_events", sa.BigInteger, nullable=False),
    sa.Column("last_seq", sa.BigInteger, nullable=False),
)
stock = sa.Table(
    "stock",
    _metadata,
    sa.Column("item_id", sa.String(256), primary_key=True),
    sa.Column("is_available", sa.Boolean, nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Index("stock_by_revision", "revision"),
)
removals = sa.Table(
    "removals",
    _metadata,
    sa.Column("seq", _BIG, primary_key=True, autoincrement=True),
    sa.Column("user_id", sa.String(256), nullable=False),
    sqlite_autoincrement=True,
)
tombstones = sa.Table(
    "tombstones",
    _metadata,
    sa.Column("user_id", sa.String(256), primary_key=True),
    sa.Column("forgotten_ms", sa.BigInteger, nullable=False),
)
joins = sa.Table(
    "joins",
    _metadata,
    sa.Column("last_seq", _BIG, primary_key=True, autoincrement=False),
    sa.Column("session_id", sa.String(256), nullable=False),
    sa.Index("joins_by_session", "session_id"),
)
documents = sa.Table(
    "documents",
    _metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
)

INSERTS: Final[dict[str, Any]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


def insert(engine: sa.Engine, table: sa.Table) -> Any:
    """The database's own insert, which knows `on conflict`."""
    return INSERTS[engine.dialect.name](table)


@contextmanager
def trouble(what: str) -> Iterator[None]:
    """Turn the database's errors into one line that begins with `what`.

    Raises:
        StoreError: whatever the database raised.
    """
    try:
        yield
    except SQLAlchemyError as error:
        raise StoreError(f"store: {what}: {_first_line(error)}") from error


def open_engine(url: str) -> sa.Engine:
    """Connect, and create the tables where they are missing.

    Raises:
        StoreError: a bad URL, a missing folder or driver, or no database there.
    """
    shown = re.sub(r"(?<=://)[^/]*@", "***@", url)  # a password never gets into a message or a log
    parsed = _checked_url(url, shown)
    try:
        engine = sa.create_engine(parsed, **_OPTIONS[parsed.get_backend_name()])
    except ModuleNotFoundError as error:
        raise StoreError(f"store {shown}: driver {error.name} is missing; install recsys[postgres]") from None
    except SQLAlchemyError as error:
        raise StoreError(f"store {shown}: {_first_line(error)}; {_EXPECTED}") from None
    set_up = _set_up_sqlite if engine.dialect.name == "sqlite" else _set_up_postgresql
    sa.event.listen(engine, "connect", set_up)
    try:
        encoding = _encoding(engine)
        if encoding in _ENCODINGS:
            _create_tables(engine)
            return engine
    except SQLAlchemyError as error:
        engine.dispose()
        raise StoreError(f"store {shown}: cannot be opened: {_first_line(error)}") from None
    engine.dispose()
    raise StoreError(f"store {shown}: the database keeps texts as {encoding}; create one with ENCODING 'UTF8'")


def _encoding(engine: sa.Engine) -> str:
    if engine.dialect.name == "sqlite":
        return "UTF8"
    with engine.connect() as connection:
        return str(connection.scalar(sa.text("SHOW server_encoding")))


def _checked_url(url: str, shown: str) -> sa.URL:
    """The URL, if it is of a kind that keeps what it is given."""
    try:
        parsed = sa.make_url(url)
    except (SQLAlchemyError, ValueError) as error:
        reason = _first_line(error).replace(url, shown)
        raise StoreError(f"store {shown}: {reason}; {_EXPECTED}") from None
    backend = parsed.get_backend_name()
    if backend not in INSERTS:
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
    for _ in _metadata.tables:
        with suppress(SQLAlchemyError):  # another process created one between our look and our creation
            _metadata.create_all(engine)
            break
    else:
        _metadata.create_all(engine)
    _add_columns(engine)
    _add_indexes(engine)
    with engine.begin() as connection:
        for table in _metadata.sorted_tables:
            connection.execute(sa.select(table).limit(0))
        if connection.scalar(sa.select(users.c.user_id).limit(1)) is None:
            count_users(engine, connection)


def count_users(engine: sa.Engine, connection: sa.Connection) -> None:
    """Fill `users` with those who have events and are not in it: of a database from before it had that table, say."""
    counted = sa.select(events.c.user_id, sa.func.count(), sa.func.max(events.c.seq)).group_by(events.c.user_id)
    statement = insert(engine, users).from_select(["user_id", "num_events", "last_seq"], counted.where(sa.true()))
    connection.execute(statement.on_conflict_do_nothing())


def _add_columns(engine: sa.Engine) -> None:
    """Give a database that an older version made the columns that came later, which may be null in its rows."""
    for table in _metadata.sorted_tables:
        there = {column["name"] for column in sa.inspect(engine).get_columns(table.name)}
        missing = [column for column in table.columns if column.name not in there]
        if not all(column.nullable for column in missing):
            continue  # no table of ours: the look at its columns that follows says so
        for column in missing:
            kind = column.type.compile(engine.dialect)
            # Another process may be first.
            with suppress(OperationalError, ProgrammingError), engine.begin() as connection:
                connection.exec_driver_sql(f"alter table {table.name} add column {column.name} {kind}")


def _add_indexes(engine: sa.Engine) -> None:
    """The same for indexes."""
    for table in _metadata.sorted_tables:
        there = {index["name"] for index in sa.inspect(engine).get_indexes(table.name)}
        for index in table.indexes:
            if index.name not in there:
                # Another process may be first.
                with suppress(OperationalError, ProgrammingError):
                    index.create(engine)


def _set_up_sqlite(connection: Any, _record: Any) -> None:
    """Readers do not wait for the writer; a commit is on disk before it is acknowledged; room can be given back."""
    connection.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_S * 1000}")
    if connection.execute("PRAGMA page_count").fetchone() == (0,):  # new: later only a full vacuum could change it
        connection.execute("PRAGMA auto_vacuum = incremental")
    for pragma in ("journal_mode = WAL", "synchronous = FULL"):
        connection.execute(f"PRAGMA {pragma}")


def _set_up_postgresql(connection: Any, _record: Any) -> None:
    """A commit is on disk before it is acknowledged, whatever the server's default is."""
    connection.execute("SET synchronous_commit = on")
    connection.commit()


def _first_line(error: Exception) -> str:
    cause = getattr(error, "orig", None) or error
    return (str(cause).splitlines() or [type(cause).__name__])[0]
