"""Stored histories: flat events of all users, in generations of partition files, and their one reader.

A generation is what one run wrote: `histories/gNNNNN/part-NNNNN.parquet`, each file with the events of the
users of one bucket range, in order. A later generation holds later-read events of the same users. The
number of files of a generation is a power of two, so partition p of P of any generation is found by
`bucket % P == p`. Nothing in these files changes once written; a run adds a generation or merges some.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

ITEMS_FILE: Final = "items.parquet"
"""item_index, item_id, num_events, counts by type, first and last moment, description, kept."""
USERS_FILE: Final = "users.parquet"
"""user_index, user_id, bucket, num_events, content_hash."""
HISTORIES_FOLDER: Final = "histories"
NUM_BUCKETS: Final = 4096
"""Users fall into so many buckets; more partitions than this are not possible."""
SCHEMA: Final = {
    "user_index": pl.UInt32,
    "timestamp_ms": pl.Int64,
    "source": pl.UInt32,
    "row": pl.UInt32,
    "item_index": pl.UInt32,
    "event_type": pl.UInt8,
}
"""Columns of a partition file; logs with event ids have `event_key` (UInt64) as well."""
EVENT_KEY: Final = "event_key"

Integers = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Generation:
    """The partition files of one run."""

    name: str
    num_partitions: int

    @property
    def number(self) -> int:
        """Later generations have higher ones."""
        return int(self.name[1:])

    def file_name(self, partition: int) -> str:
        """Path of a partition file inside the artifact."""
        return f"{HISTORIES_FOLDER}/{self.name}/part-{partition:05d}.parquet"

    def file_names(self) -> list[str]:
        """Those of all its partitions."""
        return [self.file_name(partition) for partition in range(self.num_partitions)]


def generations(folder: Path) -> list[Generation]:
    """The generations of an artifact, oldest first."""
    places = sorted((folder / HISTORIES_FOLDER).iterdir())
    return [Generation(place.name, sum(1 for _ in place.glob("part-*.parquet"))) for place in places]


def ranks(names: list[str]) -> Integers:
    """Place of each name in sorted order."""
    rank = np.empty(len(names), dtype=np.int64)
    rank[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))
    return rank


def bucket_of_user(users: pl.DataFrame) -> Integers:
    """Bucket by user_index."""
    bucket = np.zeros(int(users["user_index"].max() or 0) + 1, dtype=np.int64)  # type: ignore[arg-type]
    bucket[users["user_index"].to_numpy()] = users["bucket"].to_numpy()
    return bucket


def read_partition(
    folder: Path, found: list[Generation], partition: int, num_partitions: int, bucket: Integers, rank: Integers
) -> pl.DataFrame:
    """Events of the users with `bucket % num_partitions == partition`, by user, each history in order.

    `bucket` is by user_index; `rank` is the place of each source in the order of names.
    """
    parts = []
    for generation in found:
        for number in range(partition % generation.num_partitions, generation.num_partitions, num_partitions):
            frame = pl.read_parquet(folder / generation.file_name(number), glob=False)
            if generation.num_partitions < num_partitions:
                mine = bucket[frame["user_index"].to_numpy()] % num_partitions == partition
                frame = frame.filter(pl.Series(mine))
            parts.append(frame)
    if not parts:
        return pl.DataFrame(schema=SCHEMA)
    if len(parts) == 1:
        return parts[0]
    return in_order(pl.concat(parts, how="diagonal"), rank)


def in_order(frame: pl.DataFrame, rank: Integers) -> pl.DataFrame:
    """The same events by user, each history by (timestamp, rank of the source, row)."""
    if frame.is_empty():
        return frame
    by_user = gathered(frame, _order_of(frame["user_index"].to_numpy()))
    user, time, row = (by_user[name].to_numpy() for name in ("user_index", "timestamp_ms", "row"))
    place = rank[by_user["source"].to_numpy()]
    is_late = time[1:] < time[:-1]
    is_late |= (time[1:] == time[:-1]) & ((place[1:] < place[:-1]) | ((place[1:] == place[:-1]) & (row[1:] < row[:-1])))
    is_late &= user[1:] == user[:-1]
    if not is_late.any():
        return by_user
    wrong = np.flatnonzero(np.isin(user, user[1:][is_late]))  # only these users' histories are sorted
    order = np.arange(len(user))
    order[wrong] = wrong[np.lexsort((row[wrong], place[wrong], time[wrong], user[wrong]))]
    return gathered(by_user, order)


def gathered(frame: pl.DataFrame, rows: Integers) -> pl.DataFrame:
    """These rows, whose numbers are sound, of a frame in one piece: half the time of `frame[rows]`."""
    return frame.rechunk().select(pl.all().gather(pl.Series(rows.astype(np.uint32))))


def parted(frame: pl.DataFrame, part: Integers, num_parts: int) -> list[pl.DataFrame]:
    """The rows of each part, whose number `part` has for each row, in order; slices of one frame."""
    in_turn = gathered(frame, np.argsort(part, kind="stable"))
    ends = np.bincount(part, minlength=num_parts).cumsum().tolist()
    return [in_turn.slice(start, end - start) for start, end in pairwise([0, *ends])]


def _order_of(user: Integers) -> Integers:
    """A stable order by user, from sorts of 16 bits at a time, which take linear time."""
    key = (user - user.min()).astype(np.uint32)
    order = np.argsort(key.astype(np.uint16), kind="stable")
    if key.max() < 2**16:
        return order
    return order[np.argsort((key >> 16).astype(np.uint16)[order], kind="stable")]
