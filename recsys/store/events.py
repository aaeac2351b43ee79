"""Events of users: what the endpoint is told and what it reads for an answer."""

import json
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import sqlalchemy as sa

from recsys.contracts.events import Event
from recsys.store import contexts, histories, joining, removals, retention, stock, users
from recsys.store.histories import StoredHistory
from recsys.store.impressions import Impression, record, record_displays, stop_recording
from recsys.store.outcomes import Outcomes
from recsys.store.recall import Attribution
from recsys.store.removals import Removals
from recsys.store.schema import (
    INSERTS,
    documents,
    events,
    impressions,
    insert,
    open_engine,
    tombstones,
    trouble,
)
from recsys.store.schema import users as counts

HISTORY_CAP: Final = 20_000
"""Most events of one user that are read for an answer, newest first.

Windows are counted from the history's first event, so all of it is read up to here. Of a longer history
the windows are counted from the oldest event read: they shift with each new event, and are no longer the
ones the nightly job cuts.
"""


_IDENTITY: Final = "identity"
"""Name of the document that a store is known by."""
_FIELDS: Final = tuple(field.name for field in fields(Event))
# Built once: to build a statement takes longer than to run it.
_ADD: Final = {
    dialect: insert(events)
    .on_conflict_do_nothing(index_elements=["event_id"])
    .returning(events.c.user_id, events.c.seq, events.c.event_id, events.c.timestamp_ms)
    for dialect, insert in INSERTS.items()
}
_STONES: Final = sa.select(tombstones.c.user_id, tombstones.c.forgotten_ms).where(
    tombstones.c.user_id.in_(sa.bindparam("wanted", expanding=True))
)
_USERS_AT_ONCE: Final = 1_000


Place = tuple[int, int]
"""Of an event in its user's history: timestamp_ms and number."""


@dataclass(frozen=True, slots=True)
class AppendResult:
    """What an append did."""

    stored: int
    duplicates: int
    """Events whose id was there already, or that happened before their user was forgotten: told again, perhaps."""


@dataclass(frozen=True, slots=True)
class Glance:
    """What one cheap query says: whether a user's history or a document has changed since it was read."""

    num_events: int
    last_seq: int
    """Highest sequence number of the user's events, 0 without any."""
    revision: int
    """Grows with every change of a document."""


class EventStore:
    """Events of users and the answers they were shown. Thread-safe; several processes may share it."""

    def __init__(self, engine: sa.Engine, clock: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._clock = clock
        self.attribution = Attribution(engine, clock)
        self.outcomes = Outcomes(engine)
        self.removals = Removals(engine)
        self.stock = stock.Stock(engine)

    @property
    def engine(self) -> sa.Engine:
        """The database, for what reads other rows of it."""
        return self._engine

    @classmethod
    def open(cls, url: str, clock: Callable[[], float] = time.time) -> "EventStore":
        """Connect, and create the tables where they are missing.

        Raises:
            StoreError: a bad URL, a missing folder or driver, or no database there.
        """
        return cls(open_engine(url), clock)

    def append(
        self,
        batch: Sequence[Event],
        context_of: Mapping[int, Sequence[contexts.ContextValue]] | None = None,
        displayed: Sequence[Event] = (),
    ) -> AppendResult:
        """Store events in one transaction; they are durable when this returns. An event_id is stored once.

        What a user did up to the moment of being forgotten is not stored, so that no retry brings the user back; what
        they do later is, as anybody's.

        `context_of` holds the context of some events by their place in the batch: it is counted, not kept.
        `displayed` is what the shop says it displayed of an answer; each item of an answer once.

        Raises:
            StoreError: nothing was stored.
        """
        with trouble("events not stored"), self._engine.begin() as connection:
            stored = self._append(connection, batch, context_of or {}) if batch else 0
            stored += record_displays(self._engine, connection, displayed, self._now_ms()) if displayed else 0
        return AppendResult(stored, len(batch) + len(displayed) - stored)

    def _append(
        self,
        connection: sa.Connection,
        batch: Sequence[Event],
        context_of: Mapping[int, Sequence[contexts.ContextValue]],
    ) -> int:
        now_ms = self._now_ms()
        rows = [
            {name: getattr(event, name) for name in _FIELDS}
            | {"event_id": event.event_id or uuid.uuid4().hex, "received_ms": now_ms}
            for event in batch
        ]
        # What this statement wrote. A look afterwards would find what others wrote, too.
        found = connection.execute(_ADD[self._engine.dialect.name], rows).all()
        users.add(self._engine, connection, [(row.user_id, row.seq) for row in found])
        found = _without_forgotten(connection, found)
        if context_of:
            told = {rows[place]["event_id"]: (values, batch[place].item_id) for place, values in context_of.items()}
            contexts.add(self._engine, connection, told, {row.event_id for row in found})
        return len(found)

    def import_events(self, batches: Iterable[Sequence[Event]]) -> AppendResult:
        """Append many batches; safe to run again, as every event carries an id made from its place."""
        stored = duplicates = 0
        for batch in batches:
            result = self.append(batch)
            stored, duplicates = stored + result.stored, duplicates + result.duplicates
        return AppendResult(stored, duplicates)

    def glance(self, user_id: str) -> Glance:
        """How many events the user has, and the last one's number: one row of a table that is kept beside.

        Two answers that are equal mean that nothing has changed. Both figures are needed: a transaction may
        commit a lower number after a higher one was seen, and events may be forgotten.

        Raises:
            StoreError: the store cannot be read.
        """
        with trouble("history not read"), self._engine.connect() as connection:
            row = connection.execute(users.GLANCE, {"wanted": user_id}).one()
        return Glance(row.num_events or 0, row.last_seq or 0, int(row.revision))

    def events_after(
        self, user_id: str, seq: int = 0, limit: int = HISTORY_CAP, event_types: tuple[str, ...] = ()
    ) -> StoredHistory:
        """The user's last `limit` events with a higher sequence number; items of these types only, or of all types.

        Raises:
            StoreError: the store cannot be read.
        """
        with trouble("history not read"), self._engine.connect() as connection:
            return histories.read(connection, user_id, seq, limit, event_types)

    def history(self, user_id: str, limit: int = HISTORY_CAP) -> list[str]:
        """The user's last `limit` item_ids, oldest first, in the order (timestamp, arrival).

        Raises:
            StoreError: the store cannot be read.
        """
        return [item_id for item_id in self.events_after(user_id, limit=limit).item_ids if item_id is not None]

    def recent(self, user_id: str, limit: int) -> list[Event]:
        """The user's last events as they were told, oldest first.

        Raises:
            StoreError: the store cannot be read.
        """
        return self.page(user_id, limit)[0]

    def page(self, user_id: str, limit: int, before: Place | None = None) -> tuple[list[Event], Place | None]:
        """The user's last events before a place, oldest first, and the place of the first; None if none are before it.

        Raises:
            StoreError: the store cannot be read.
        """
        place = sa.tuple_(events.c.timestamp_ms, events.c.seq)
        newest_first = (
            sa.select(events)
            .where(events.c.user_id == user_id)
            .order_by(events.c.timestamp_ms.desc(), events.c.seq.desc())
            .limit(limit + 1)
        )
        if before is not None:
            newest_first = newest_first.where(place < before)
        with trouble("history not read"), self._engine.connect() as connection:
            found = connection.execute(newest_first).mappings().all()
        rows = found[:limit][::-1]
        told = [Event(**{k: v for k, v in row.items() if k not in {"seq", "received_ms"}}) for row in rows]
        return told, (rows[0]["timestamp_ms"], rows[0]["seq"]) if len(found) > limit else None

    def items_of_type(self, user_id: str, event_type: str) -> set[str]:
        """Items the user has events of one type on: what they purchased, for instance.

        Raises:
            StoreError: the store cannot be read.
        """
        mine = sa.and_(events.c.user_id == user_id, events.c.event_type == event_type)
        wanted = sa.select(events.c.item_id).where(mine).distinct()
        with trouble("history not read"), self._engine.connect() as connection:
            return set(connection.scalars(wanted))

    def forget(self, user_id: str) -> int:
        """Delete a user's events and answers, and leave a tombstone for the nightly job; the number of events deleted.

        Answers that were given before and are recorded later are not kept.

        Raises:
            StoreError: nothing was deleted.
        """
        stone = {"user_id": user_id, "forgotten_ms": self._now_ms()}
        statement = insert(self._engine, tombstones).values(stone)
        statement = statement.on_conflict_do_update(index_elements=["user_id"], set_=stone)
        with trouble("user not forgotten"), self._engine.begin() as connection:
            mine = users.lock(connection, [user_id])
            stop_recording(connection)
            deleted = connection.execute(sa.delete(events).where(events.c.user_id == user_id)).rowcount
            users.recount(connection, mine)
            connection.execute(sa.delete(impressions).where(impressions.c.user_id == user_id))
            connection.execute(statement)
            removals.note(connection, [user_id])
        return deleted

    def forgotten(self) -> dict[str, int]:
        """Users to leave out of logs: their events up to a moment (milliseconds) must not be used.

        Raises:
            StoreError: the store cannot be read.
        """
        with trouble("tombstones not read"), self._engine.connect() as connection:
            return {row.user_id: row.forgotten_ms for row in connection.execute(sa.select(tombstones))}

    def join(self, session_id: str, user_id: str) -> int:
        """Give an anonymous session's events and answers to a user who has signed in; the number of events moved.

        Raises:
            StoreError: nothing was moved.
            ValueError: both are the same.
        """
        if session_id == user_id:
            raise ValueError("a user cannot be joined to itself: give the id that the session had before")
        with trouble("session not joined"), self._engine.begin() as connection:
            both = users.lock(connection, [session_id, user_id])
            written = joining.move(connection, session_id, user_id, self._now_ms())
            users.add(self._engine, connection, written)
            users.recount(connection, both)
            removals.note(connection, [session_id])
        return len(written)

    def record_impressions(self, batch: Sequence[Impression]) -> None:
        """Keep what answers showed, for recall tracking.

        Raises:
            StoreError: none was kept.
        """
        with trouble("impression not kept"), self._engine.begin() as connection:
            record(connection, batch, self._now_ms())

    def document(self, name: str) -> Any:
        """A document that all workers share (rules, arms), or None.

        Raises:
            StoreError: the store cannot be read.
        """
        with trouble(f"{name} not read"), self._engine.connect() as connection:
            body = connection.scalar(sa.select(documents.c.body).where(documents.c.name == name))
        return None if body is None else json.loads(body)

    def identity(self) -> str:
        """What tells this store from any other, also from one that takes its place under the same URL.

        Raises:
            StoreError: it cannot be read, or, the first time, not be written.
        """
        mine = sa.select(documents.c.body).where(documents.c.name == _IDENTITY)
        # Revision 0: no document changes by it (see `Glance`).
        fresh = {"name": _IDENTITY, "revision": 0, "body": json.dumps(uuid.uuid4().hex)}
        with trouble("identity not read"), self._engine.begin() as connection:
            body = connection.scalar(mine)
            if body is None:
                connection.execute(insert(self._engine, documents).values(fresh).on_conflict_do_nothing())
                body = connection.scalars(mine).one()
        return str(json.loads(body))

    def revision(self, name: str) -> int:
        """How often a document was written.

        Raises:
            StoreError: the store cannot be read.
        """
        wanted = sa.select(documents.c.revision).where(documents.c.name == name)
        with trouble(f"{name} not read"), self._engine.connect() as connection:
            return connection.scalar(wanted) or 0

    def write_document(
        self, name: str, change: Callable[[Any], Any], unavailable: Collection[str] | None = None
    ) -> Any:
        """Replace a document by what `change` makes of it, or of None; nobody else changes it meanwhile.

        Where `unavailable` is given, exactly these items are out of stock afterwards, in the same transaction.

        Raises:
            StoreError: it is as it was.
        """
        with trouble(f"{name} not written"), self._engine.begin() as connection:
            stock.bumped(connection, name)
            mine = documents.c.name == name
            body = change(json.loads(connection.scalars(sa.select(documents.c.body).where(mine)).one()))
            connection.execute(sa.update(documents).where(mine).values(body=json.dumps(body)))
            if unavailable is not None:
                stock.replace(connection, unavailable)
        return body

    def prune(self, before_ms: int, *, full_vacuum: bool = False, rest: retention.Rest = time.sleep) -> int:
        """Delete events and answers older than a moment and give the room back; the number of events deleted.

        Counts of past hours stay. A history that loses its oldest events has its windows cut anew. Some rows at a time,
        so that events that come meanwhile do not wait for all of it; `rest` is called between these steps with the
        seconds that the last took. Room of a SQLite file that an older version made stays in it, for new rows, unless
        `full_vacuum` writes the file anew: events wait for all of that.

        Raises:
            StoreError: the store cannot be written; what was deleted before stays deleted.
        """
        with trouble("store not pruned"):
            with self._engine.begin() as connection:
                self.attribution.freeze(connection, before_ms)
                removals.prune(connection)
            deleted = retention.prune(self._engine, before_ms, rest)
        with trouble("store not vacuumed"):
            if full_vacuum:
                retention.vacuum_fully(self._engine)
            else:
                retention.give_room_back(self._engine, rest)
        return deleted

    @property
    def gives_room_back(self) -> bool:
        """Whether `prune` gives room back without a full vacuum.

        Raises:
            StoreError: the store cannot be read.
        """
        with trouble("store not read"):
            return retention.gives_room_back(self._engine)

    def num_events(self) -> int:
        """Events stored.

        Raises:
            StoreError: the store cannot be read.
        """
        with trouble("events not counted"), self._engine.connect() as connection:
            return connection.scalar(sa.select(sa.func.count()).select_from(events)) or 0

    def most_active(self, limit: int) -> list[str]:
        """Users with most events, most first.

        Raises:
            StoreError: the store cannot be read.
        """
        most_first = sa.select(counts.c.user_id).order_by(counts.c.num_events.desc(), counts.c.user_id).limit(limit)
        with trouble("users not read"), self._engine.connect() as connection:
            return list(connection.scalars(most_first))

    def popular_by_context(
        self, min_events: int, num_items: int
    ) -> dict[contexts.ContextValue, contexts.ContextPopularity]:
        """The most frequent items of each context value that has at least so many events.

        Raises:
            StoreError: the store cannot be read.
        """
        return contexts.popular(self._engine, min_events, num_items)

    def close(self) -> None:
        """Give connections back."""
        self._engine.dispose()

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


def _without_forgotten(connection: sa.Connection, written: Sequence[Any]) -> Sequence[Any]:
    """Rows that were written, less those of before their users were forgotten, which are deleted.

    After the insert: from here on, whoever forgets a user waits for this transaction, or this one has waited for it.
    """
    wanted = sorted({row.user_id for row in written})
    stones: dict[str, int] = {}
    for start in range(0, len(wanted), _USERS_AT_ONCE):
        found = connection.execute(_STONES, {"wanted": wanted[start : start + _USERS_AT_ONCE]})
        stones.update((row.user_id, row.forgotten_ms) for row in found)
    if not stones:
        return written
    gone = [row for row in written if row.user_id in stones and row.timestamp_ms <= stones[row.user_id]]
    if gone:
        deleted = sa.delete(events).where(events.c.seq == sa.bindparam("gone"))
        connection.execute(deleted, [{"gone": row.seq} for row in gone])
        users.recount(connection, sorted({row.user_id for row in gone}))
    deleted_seqs = {row.seq for row in gone}
    return [row for row in written if row.seq not in deleted_seqs]
