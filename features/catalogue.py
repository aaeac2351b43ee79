"""The items of a log: stable numbers, counts, first and last day, and their first and last known description."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from features.numbering import Numbering
from features.totals import NEVER, Totals

DESCRIPTIONS: Final[Mapping[str, Any]] = {"title": pl.String, "category": pl.String, "price": pl.Float64}
SCHEMA: Final[Mapping[str, Any]] = {
    "item_index": pl.UInt32,
    "item_id": pl.String,
    "num_events": pl.UInt32,
    "num_events_by_type": pl.List(pl.UInt32),
    "first_ms": pl.Int64,
    "last_ms": pl.Int64,
    **DESCRIPTIONS,
    **{f"{name}_ms": pl.Int64 for name in DESCRIPTIONS},
    **{f"first_{name}": kind for name, kind in DESCRIPTIONS.items()},
    **{f"first_{name}_ms": pl.Int64 for name in DESCRIPTIONS},
}
"""`title_ms` and so on: moment of the event that the description is from. Item i is in row i - 1."""


def with_first(items: pl.DataFrame) -> pl.DataFrame:
    """The table with first descriptions.

    In tables of before the last ones stand for them, as if the item's first event had said so: no others are known.
    """
    if f"first_{next(iter(DESCRIPTIONS))}" in items.columns:
        return items
    said = {name: pl.col(f"{name}_ms").is_not_null() for name in DESCRIPTIONS}
    return items.with_columns(
        *(pl.col(name).alias(f"first_{name}") for name in DESCRIPTIONS),
        *(pl.when(said[name]).then("first_ms").alias(f"first_{name}_ms") for name in DESCRIPTIONS),
    )


class Catalogue:
    """Numbers the items of a run on top of those known, and collects what events say about them."""

    def __init__(self, known: pl.DataFrame) -> None:
        self._known = known
        self._numbering = Numbering(known["item_id"])
        self._said: dict[str, list[pl.DataFrame]] = {name: [] for name in DESCRIPTIONS}

    def number(self, events: pl.DataFrame) -> pl.Series:
        """item_index of each event. An item keeps its number for ever; new ones are appended as they come."""
        item_index = (self._numbering.codes(events["item_id"]) + 1).alias("item_index")
        for name in DESCRIPTIONS:
            if events[name].null_count() < len(events):
                rows = pl.DataFrame([item_index, events[name], events["timestamp_ms"]]).drop_nulls(name)
                moment = pl.col("timestamp_ms")
                said = rows.group_by("item_index", name).agg(moment.min().alias("first"), moment.max().alias("last"))
                self._said[name].append(said)
        return item_index

    def item_ids(self) -> pl.Series:
        """All items, in order of item_index."""
        return self._numbering.names()

    def table(self, totals: Totals, titles: pl.DataFrame) -> pl.DataFrame:
        """Columns of SCHEMA; counts are those of the state and of `totals` together.

        The description of an item is that of its last event that has one; of several at that moment, the
        greatest. The first description is that of its first such event, of several the least. `titles` (item_id,
        title, category) fill in where no event says anything.
        """
        ids = self.item_ids()
        before = Counts.of(self._known, len(ids), totals.by_type.shape[1])
        by_type = before.by_type + totals.by_type[1:]
        first = np.minimum(before.first_ms, totals.first_ms[1:])
        last = np.maximum(before.last_ms, totals.last_ms[1:])
        seen = by_type.sum(axis=1) > 0
        table = pl.DataFrame(
            {
                "item_index": np.arange(1, len(ids) + 1),
                "item_id": ids,
                "num_events": by_type.sum(axis=1),
                "num_events_by_type": pl.Series(by_type.astype(np.uint32)).arr.to_list(),
                "first_ms": pl.select(pl.when(pl.Series(seen)).then(pl.Series(first))).to_series(),
                "last_ms": pl.select(pl.when(pl.Series(seen)).then(pl.Series(last))).to_series(),
            }
        )
        for name in DESCRIPTIONS:
            for found in (self._said_of(name, name, "last"), self._said_of(name, f"first_{name}", "first")):
                table = table.join(found, on="item_index", how="left", maintain_order="left")
        titles = titles.rename({"title": "title_file", "category": "category_file"})
        filled = table.join(titles, on="item_id", how="left", maintain_order="left").with_columns(
            pl.when(pl.col(f"{column}_ms").is_null())
            .then(pl.coalesce(f"{name}_file", column))
            .otherwise(column)
            .alias(column)
            for name in ("title", "category")
            for column in (name, f"first_{name}")
        )
        return filled.select(SCHEMA.keys()).cast(SCHEMA)  # type: ignore[arg-type]

    def _said_of(self, name: str, column: str, end: Literal["first", "last"]) -> pl.DataFrame:
        """Per item what its first or last event with such a description says, as `column`, and the moment of that."""
        moment = f"{column}_ms"
        known = self._known.select("item_index", column, moment).drop_nulls(column)
        said = [
            part.select(pl.col("item_index").cast(pl.UInt32), pl.col(name).alias(column), pl.col(end).alias(moment))
            for part in self._said[name]
        ]
        is_first = end == "first"  # without a moment: a file of titles said so, which any event corrects
        in_order = pl.concat([known, *said]).sort(moment, column, nulls_last=is_first)
        by_item = in_order.group_by("item_index", maintain_order=True)
        found = by_item.first() if is_first else by_item.last()
        return found.with_columns(pl.col("item_index").cast(pl.Int64))


def counts_by_type(items: pl.DataFrame) -> npt.NDArray[np.int64]:
    """Events by item and type, shape [items, types]; all lists of a table are of one length."""
    return items["num_events_by_type"].explode().to_numpy().astype(np.int64).reshape(len(items), -1)


@dataclass(frozen=True, slots=True)
class Counts:
    """What the state knows about the first items, as arrays of the size of tonight's tables."""

    by_type: npt.NDArray[np.int64]
    first_ms: npt.NDArray[np.int64]
    last_ms: npt.NDArray[np.int64]

    @classmethod
    def of(cls, known: pl.DataFrame, num_items: int, num_types: int) -> Self:
        """Zero, never and -1 where nothing is known."""
        by_type = np.zeros((num_items, num_types), dtype=np.int64)
        first, last = np.full(num_items, NEVER), np.full(num_items, -1)
        if len(known):
            counted = counts_by_type(known)
            by_type[: len(known), : counted.shape[1]] = counted
            first[: len(known)] = known["first_ms"].fill_null(NEVER).to_numpy()
            last[: len(known)] = known["last_ms"].fill_null(-1).to_numpy()
        return cls(by_type, first, last)
