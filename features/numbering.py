"""Strings to integers: item numbers that never change their meaning, user numbers, forgotten users left out."""

import numpy as np
import polars as pl

from features.digest import string_hashes
from features.tombstones import Tombstones
from recsys.histories import NUM_BUCKETS, Integers, parted

BUCKET_SEED = 20_260_102
_FEW = 4
"""So many strings are told apart by comparison."""
CONTENT_HASH = "content_hash"
"""What an id adds to the content sum (see `digest`), kept since it takes longer to find than to read."""
USERS_SCHEMA = {
    "user_index": pl.UInt32,
    "user_id": pl.String,
    "bucket": pl.UInt16,
    "num_events": pl.UInt32,
    CONTENT_HASH: pl.UInt64,
}


def bucket_of(user_id: pl.Expr) -> pl.Expr:
    """The bucket of a user, the same in every run with this polars (see `ledger.fingerprint`)."""
    return (user_id.hash(BUCKET_SEED) % NUM_BUCKETS).cast(pl.UInt16)


def hashed(users: pl.DataFrame) -> pl.DataFrame:
    """The users with their content hashes, which tables of before there were any lack."""
    if CONTENT_HASH in users.columns:
        return users
    return users.with_columns(pl.Series(CONTENT_HASH, string_hashes(users["user_id"], "user"), dtype=pl.UInt64))


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
        self._known = [known]
        """Users of the state by partition, of as many as there are frames."""
        self._tombstones = tombstones
        self._next = int(known["user_index"].max() or 0) + 1  # type: ignore[arg-type]

    def number(
        self, events: pl.DataFrame, partition: int = 0, num_partitions: int = 1
    ) -> tuple[pl.DataFrame, pl.DataFrame, int]:
        """The events of a partition with `user_index` in place of `user_id`; its users; how many events were dropped.

        The users are all that the partition has, with or without an event here; those dropped are of forgotten ones.
        Each call is of another partition of so many.
        """
        known = self._known_in(partition, num_partitions)
        ids = events.select("user_id")
        index = np.zeros(len(ids), dtype=np.uint32)
        if len(known):
            named = known.select("user_id", "user_index")
            index = (
                ids.join(named, on="user_id", how="left", maintain_order="left")["user_index"]
                .fill_null(0)
                .to_numpy(writable=True)
            )
        is_new = index == 0
        of_new, added = self._add(ids["user_id"] if is_new.all() else ids["user_id"].filter(pl.Series(is_new)))
        index[is_new] = of_new
        numbered = events.drop("user_id").with_columns(user_index=pl.Series(index))
        kept = numbered if index.all() else numbered.filter(pl.col("user_index") > 0)
        return kept, pl.concat([known, added]), len(numbered) - len(kept)

    def _add(self, ids: pl.Series) -> tuple[Integers, pl.DataFrame]:
        """user_index of each of these ids, which are not known, 0 of a forgotten user; and the new users."""
        numbering = Numbering()
        codes = numbering.codes(ids)
        new = self._tombstones.without_forgotten(pl.DataFrame({"user_id": numbering.names()}).with_row_index("code"))
        added = new.select(
            pl.int_range(self._next, self._next + pl.len(), dtype=pl.UInt32).alias("user_index"),
            "user_id",
            bucket_of(pl.col("user_id")).alias("bucket"),
            pl.lit(0, pl.UInt32).alias("num_events"),
            pl.Series(CONTENT_HASH, string_hashes(new["user_id"], "user"), dtype=pl.UInt64),
        )
        self._next += len(added)
        self._tables.append(added)
        index = np.zeros(len(numbering), dtype=np.uint32)
        index[new["code"].to_numpy()] = added["user_index"].to_numpy()
        return index[codes.to_numpy()], added

    def _known_in(self, partition: int, num_partitions: int) -> pl.DataFrame:
        if len(self._known) != num_partitions:
            users = self._tables[0]
            self._known = parted(users, users["bucket"].to_numpy() % num_partitions, num_partitions)
        return self._known[partition]

    def table(self) -> pl.DataFrame:
        """All users, those of the state first."""
        return pl.concat(self._tables)
