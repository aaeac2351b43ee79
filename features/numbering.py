"""Strings to integers: item numbers that never change their meaning, user numbers, forgotten users left out."""

import polars as pl

from features.tombstones import Tombstones
from recsys.histories import NUM_BUCKETS

BUCKET_SEED = 20_260_102
_FEW = 4
"""So many strings are told apart by comparison."""
USERS_SCHEMA = {"user_index": pl.UInt32, "user_id": pl.String, "bucket": pl.UInt16, "num_events": pl.UInt32}


def bucket_of(user_id: pl.Expr) -> pl.Expr:
    """The bucket of a user, the same in every run with this polars (see `ledger.fingerprint`)."""
    return (user_id.hash(BUCKET_SEED) % NUM_BUCKETS).cast(pl.UInt16)


class Numbering:
    """Numbers from 0 in the order of first sight; strings that are known keep theirs."""

    def __init__(self, known: pl.Series | None = None) -> None:
        self._type = pl.Categorical(pl.Categories.random())
        self._known = (pl.Series([], dtype=pl.String) if known is None else known).cast(self._type)
        self._size = len(self._known)

    def __len__(self) -> int:
        return self._size

    def codes(self, strings: pl.Series) -> pl.Series:
        """One number per string; none is null."""
        if 0 < self._size <= _FEW and not (codes := self._among_few(strings)).has_nulls():
            return codes
        codes = strings.cast(self._type).to_physical().cast(pl.UInt32)
        self._size = max(self._size, int(codes.max() or 0) + 1 if len(codes) else 0)  # type: ignore[arg-type]
        return codes

    def _among_few(self, strings: pl.Series) -> pl.Series:
        """Numbers of known strings, found by comparison: a quarter of the work of looking them up."""
        text = pl.lit(strings)
        each = (pl.when(text == name).then(pl.lit(number, pl.UInt32)) for number, name in enumerate(self.names()))
        return pl.select(pl.coalesce(*each)).to_series()

    def names(self) -> pl.Series:
        """All strings, in order of their numbers."""
        return pl.int_range(self._size, dtype=pl.UInt32, eager=True).cat.to(self._type).cast(pl.String)


class Users:
    """The users of the state and of this run."""

    def __init__(self, known: pl.DataFrame, tombstones: Tombstones) -> None:
        self._tables = [known]
        self._known = known.select("user_id", "user_index")
        self._tombstones = tombstones
        self._next = int(known["user_index"].max() or 0) + 1  # type: ignore[arg-type]

    def number(self, events: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame, int]:
        """The events with `user_index` in place of `user_id`, their users, and how many of forgotten ones were dropped.

        A user who is not in the state must be in one call only.
        """
        local = Numbering()
        codes = local.codes(events["user_id"])
        names = pl.DataFrame({"user_id": local.names()})
        names = names.join(self._known, on="user_id", how="left", maintain_order="left")
        new = names.filter(pl.col("user_index").is_null()).select("user_id")
        new = self._tombstones.without_forgotten(new)
        if len(new):
            table = new.select(
                pl.int_range(self._next, self._next + pl.len(), dtype=pl.UInt32).alias("user_index"),
                "user_id",
                bucket_of(pl.col("user_id")).alias("bucket"),
                pl.lit(0, pl.UInt32).alias("num_events"),
            )
            self._next += len(new)
            self._tables.append(table)
            both = names.join(
                table.select("user_id", new="user_index"), on="user_id", how="left", maintain_order="left"
            )
            names = both.with_columns(pl.coalesce("user_index", "new"))
        numbered = events.drop("user_id").with_columns(user_index=names["user_index"].gather(codes))
        kept = numbered.filter(pl.col("user_index").is_not_null()) if names["user_index"].has_nulls() else numbered
        return kept, names.select("user_index", "user_id").drop_nulls(), len(numbered) - len(kept)

    def table(self) -> pl.DataFrame:
        """All users, those of the state first."""
        return pl.concat(self._tables)
