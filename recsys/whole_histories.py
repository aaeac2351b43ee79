"""Whole histories of users as the features artifact stores them, unpruned: what recommendations are made from."""

from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.contracts import artifact
from recsys.event_table import in_history, source_rank
from recsys.histories import ITEMS_FILE, USERS_FILE, bucket_of_user, generations, read_partition

ItemIndices = npt.NDArray[np.int64]


class WholeHistories:
    """Read a partition at a time, so memory is bounded by the largest one and the table of users.

    Every method that reads does so from the artifact that was there at first, or raises.

    Raises:
        ArtifactError: no sound features artifact at `features`.
        ReplacedError: the nightly job has published since; by any method that reads, too.
    """

    def __init__(self, features: Path | str) -> None:
        self._features = Path(features)
        self._manifest = artifact.verify(self._features, "features")
        with artifact.in_place(self._features, self._manifest):
            self._users = pl.read_parquet(self._features / USERS_FILE, glob=False)
            self._layout = generations(self._features)
        self.num_partitions = max(generation.num_partitions for generation in self._layout)

    def __len__(self) -> int:
        """Number of users."""
        return len(self._users)

    def item_ids(self) -> list[str]:
        """Every item, that of item_index 1 first."""
        with artifact.in_place(self._features, self._manifest):
            items = pl.read_parquet(self._features / ITEMS_FILE, columns=["item_index", "item_id"], glob=False)
        return items.sort("item_index")["item_id"].to_list()

    def unknown(self, user_ids: Collection[str]) -> list[str]:
        """Those of the users that the artifact does not have, in order."""
        known = set(self._users.filter(pl.col("user_id").is_in(list(user_ids)))["user_id"])
        return [user_id for user_id in user_ids if user_id not in known]

    def of(self, user_id: str) -> list[str] | None:
        """One user's items, oldest first, or None if the artifact has no such user."""
        if self.unknown([user_id]):
            return None
        item_ids = self.item_ids()
        return [item_ids[index - 1] for _, history in self.each([user_id]) for index in history]

    def each(self, user_ids: Collection[str] | None = None) -> Iterator[tuple[str, ItemIndices]]:
        """(user_id, item_index of each event, oldest first) of all users or of these, in the artifact's order.

        Events of the types that make the history; a user without any has an empty one. Unknown users are passed over.
        """
        chosen = self._users if user_ids is None else self._users.filter(pl.col("user_id").is_in(list(user_ids)))
        bucket, rank = bucket_of_user(self._users), source_rank(self._manifest)
        partition_of = chosen["bucket"].cast(pl.Int64) % self.num_partitions
        for partition in sorted(set(partition_of)):
            here = chosen.filter(partition_of == partition).sort("user_index")
            with artifact.in_place(self._features, self._manifest):
                events = read_partition(self._features, self._layout, partition, self.num_partitions, bucket, rank)
            events = events.filter(pl.Series(in_history(self._manifest, events["event_type"].to_numpy())))
            user, item_index = events["user_index"].to_numpy(), events["item_index"].to_numpy().astype(np.int64)
            starts = np.searchsorted(user, here["user_index"].to_numpy(), side="left")
            stops = np.searchsorted(user, here["user_index"].to_numpy(), side="right")
            for user_id, start, stop in zip(here["user_id"], starts, stops, strict=True):
                yield user_id, item_index[start:stop]
