"""What is popular where: events counted by the context they came in, and by item. Nobody's name is in it."""

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from recsys.store.schema import context_counts, insert, trouble

MOST_VALUES: Final = 10_000
"""Values whose counts are kept when the store is pruned: a shop may send texts that never come twice."""
ContextValue = tuple[str, str]
"""(field, value), such as (country, de)."""


@dataclass(frozen=True, slots=True)
class ContextPopularity:
    """Of one value of one field."""

    num_events: int
    """Of all items."""
    item_ids: list[str]
    """Most events first."""


def add(
    engine: sa.Engine,
    connection: sa.Connection,
    told: Mapping[str, tuple[Sequence[ContextValue], str]],
    written: Container[str],
) -> None:
    """Count those events (context and item by event_id) that were written, within the caller's transaction.

    Counts are written in order, so that two transactions never wait for each other.
    """
    counted = Counter(
        (value, item_id) for event_id, (values, item_id) in told.items() if event_id in written for value in values
    )
    rows = [
        {"field": field, "value": value, "item_id": item_id, "num_events": num}
        for ((field, value), item_id), num in sorted(counted.items())
    ]
    if rows:
        new = insert(engine, context_counts)
        total = {"num_events": context_counts.c.num_events + new.excluded.num_events}
        connection.execute(new.on_conflict_do_update(index_elements=["field", "value", "item_id"], set_=total), rows)


def popular(engine: sa.Engine, min_events: int, num_items: int) -> dict[ContextValue, ContextPopularity]:
    """The `num_items` most frequent items of each value that has at least so many events.

    Raises:
        StoreError: the store cannot be read.
    """
    of_value = (context_counts.c.field, context_counts.c.value)
    most_first = (context_counts.c.num_events.desc(), context_counts.c.item_id)
    ranked = sa.select(
        *context_counts.c,
        sa.func.sum(context_counts.c.num_events).over(partition_by=of_value).label("total"),
        sa.func.row_number().over(partition_by=of_value, order_by=most_first).label("place"),
    ).subquery()
    wanted = sa.select(ranked).where(ranked.c.total >= min_events, ranked.c.place <= num_items)
    found: dict[ContextValue, ContextPopularity] = {}
    with trouble("contexts not read"), engine.connect() as connection:
        for row in connection.execute(wanted.order_by(ranked.c.field, ranked.c.value, ranked.c.place)):
            known = found.setdefault((row.field, row.value), ContextPopularity(int(row.total), []))
            known.item_ids.append(row.item_id)
    return found


def prune(connection: sa.Connection, most_at_once: int) -> int:
    """Delete the counts of some values beyond the `MOST_VALUES` with most events; how many values."""
    value = context_counts.c.field, context_counts.c.value
    most_first = sa.func.sum(context_counts.c.num_events).desc(), *value
    beyond = sa.select(*value).group_by(*value).order_by(*most_first).offset(MOST_VALUES).limit(most_at_once)
    gone = [tuple(row) for row in connection.execute(beyond)]
    if gone:
        connection.execute(sa.delete(context_counts).where(sa.tuple_(*value).in_(gone)))
    return len(gone)
