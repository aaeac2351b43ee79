"""Items that are out of stock: a row an item, so that a change costs what it changes, however many are out of stock."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from recsys.store.schema import INSERTS, documents, stock, trouble

STOCK_DOCUMENT: Final = "stock"
"""Has no body: its revision numbers the changes, and says in every glance that there was one."""
_AT_ONCE: Final = 5_000
"""Items that one statement names."""


_NAMED: Final = {"sqlite": sa.func.json_each, "postgresql": sa.func.json_array_elements_text}
"""Rows of a JSON list: hundreds of thousands of items go into one statement, for a fifth of the time."""


def _setting(dialect: str) -> Any:
    """Write that the items of the list `named` are in stock, or are not."""
    listed = _NAMED[dialect](sa.cast(sa.bindparam("named", type_=sa.Text), sa.Text if dialect == "sqlite" else sa.JSON))
    there: Any = sa.bindparam("there", type_=sa.Boolean)
    revision: Any = sa.bindparam("of", type_=sa.BigInteger)
    rows = sa.select(listed.table_valued("value").c.value, there, revision).where(sa.true())
    new = INSERTS[dialect](stock).from_select(["item_id", "is_available", "revision"], rows)
    values = {"is_available": new.excluded.is_available, "revision": new.excluded.revision}
    return new.on_conflict_do_update(index_elements=["item_id"], set_=values)


# Built once: to build a statement takes longer than to run it.
_SET: Final = {dialect: _setting(dialect) for dialect in INSERTS}
_AFTER: Final = sa.select(stock).where(stock.c.revision > sa.bindparam("known")).order_by(stock.c.revision)
_UNAVAILABLE: Final = (
    sa.select(stock.c.item_id)
    .where(~stock.c.is_available, stock.c.item_id > sa.bindparam("after"))
    .order_by(stock.c.item_id)
    .limit(sa.bindparam("most"))
)


@dataclass(frozen=True, slots=True)
class StockChanges:
    """What has changed up to a revision."""

    revision: int
    available: dict[str, bool]
    """By item_id: whether it is in stock now."""


class Stock:
    """What is out of stock; whatever was never told is in stock. Several processes may share it."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def set(self, available: Mapping[str, bool]) -> dict[str, bool]:
        """Change the stock of some items, and leave all others; those that were not so before.

        Raises:
            StoreError: nothing has changed.
        """
        with trouble("stock not written"), self._engine.begin() as connection:
            return change(connection, available)

    def after(self, revision: int) -> StockChanges:
        """What changed after a revision: 0 for all that was ever told.

        Raises:
            StoreError: the store cannot be read.
        """
        with trouble("stock not read"), self._engine.connect() as connection:
            rows = connection.execute(_AFTER, {"known": revision}).all()
        return StockChanges(rows[-1].revision if rows else revision, {row.item_id: row.is_available for row in rows})

    def unavailable(self, after: str, limit: int) -> list[str]:
        """Items that are out of stock, by item_id from `after` (not included) on.

        Raises:
            StoreError: the store cannot be read.
        """
        with trouble("stock not read"), self._engine.connect() as connection:
            return list(connection.scalars(_UNAVAILABLE, {"after": after, "most": limit}))


def change(connection: sa.Connection, available: Mapping[str, bool]) -> dict[str, bool]:
    """Write what is not so already, within the caller's transaction; nobody else changes stock until it ends."""
    revision = _next_revision(connection)
    return _write(connection, revision, available, _out_of_stock(connection, list(available)))


def replace(connection: sa.Connection, unavailable: Collection[str]) -> None:
    """Let exactly these be out of stock, within the caller's transaction; nobody else changes stock until it ends."""
    revision = _next_revision(connection)
    before = set(connection.scalars(sa.select(stock.c.item_id).where(~stock.c.is_available)))
    wanted = dict.fromkeys(before, True) | dict.fromkeys(unavailable, False)
    _write(connection, revision, wanted, before)


def bumped(connection: sa.Connection, name: str) -> int:
    """The new revision of a document, which is locked until the caller's transaction ends."""
    first = {"name": name, "revision": 0, "body": "null"}
    connection.execute(INSERTS[connection.dialect.name](documents).values(first).on_conflict_do_nothing())
    mine = sa.update(documents).where(documents.c.name == name)
    return int(connection.scalars(mine.values(revision=documents.c.revision + 1).returning(documents.c.revision)).one())


def _next_revision(connection: sa.Connection) -> int:
    return bumped(connection, STOCK_DOCUMENT)


def _out_of_stock(connection: sa.Connection, item_ids: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for some in _pieces(item_ids):
        found.update(
            connection.scalars(sa.select(stock.c.item_id).where(~stock.c.is_available, stock.c.item_id.in_(some)))
        )
    return found


def _write(
    connection: sa.Connection, revision: int, wanted: Mapping[str, bool], out_of_stock: set[str]
) -> dict[str, bool]:
    changed = {item_id: there for item_id, there in wanted.items() if there == (item_id in out_of_stock)}
    for there in (True, False):
        named = [item_id for item_id, now in changed.items() if now == there]
        if named:
            values = {"named": json.dumps(named, ensure_ascii=False), "there": there, "of": revision}
            connection.execute(_SET[connection.dialect.name], values)
    return changed


def _pieces(item_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (item_ids[start : start + _AT_ONCE] for start in range(0, len(item_ids), _AT_ONCE))
