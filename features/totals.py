"""Running totals over events: by item and type, by day, by user, and the content sum."""

from collections import Counter
from threading import Lock

import numpy as np
import polars as pl

from features import digest
from features.numbering import CONTENT_HASH
from recsys.contracts.pruning import DAY_MS

NEVER = np.iinfo(np.int64).max


class Totals:
    """Adds up events partition by partition; arrays are by item_index, entry 0 unused."""

    def __init__(self, item_ids: pl.Series, event_types: list[str], source_names: list[str]) -> None:
        size = len(item_ids) + 1
        self.by_type = np.zeros((size, max(1, len(event_types))), dtype=np.int64)
        self.first_ms = np.full(size, NEVER)
        self.last_ms = np.full(size, -1)
        self.days: Counter[int] = Counter()
        self.num_events = 0
        self.content_sum = 0
        self._item_ids = item_ids
        self._item_hash = np.zeros(size, dtype=np.uint64)
        self._type_hash = digest.string_hashes(event_types, "type")
        self._source_hash = digest.string_hashes(source_names, "source")
        self._users: list[pl.DataFrame] = []
        self._lock = Lock()

    def add(self, events: pl.DataFrame, users: pl.DataFrame) -> None:
        """Count events, which must be by user; `users` has the content hash of each user_index in them, or of more."""
        if len(events):
            with self._lock:
                self._add(events, users)

    def _add(self, events: pl.DataFrame, users: pl.DataFrame) -> None:
        item, kind = events["item_index"].to_numpy(), events["event_type"].to_numpy()
        time = events["timestamp_ms"].to_numpy()
        num_types = self.by_type.shape[1]
        self.by_type += np.bincount(item.astype(np.int64) * num_types + kind, minlength=self.by_type.size).reshape(
            self.by_type.shape
        )
        np.minimum.at(self.first_ms, item, time)
        np.maximum.at(self.last_ms, item, time)
        day = time // DAY_MS
        counts = np.bincount(day - (low := day.min()))
        self.days.update({int(low + n): int(counts[n]) for n in np.flatnonzero(counts)})
        self.num_events += len(events)
        per_user = events["user_index"].rle().struct.unnest().select(user_index="value", num_events="len")
        self._users.append(per_user)
        user_hash = np.zeros(int(users["user_index"].max()) + 1, dtype=np.uint64)  # type: ignore[arg-type]
        user_hash[users["user_index"].to_numpy()] = users[CONTENT_HASH].to_numpy()
        self._hash_items()
        self.content_sum += digest.events_sum(events, user_hash, self._item_hash, self._type_hash, self._source_hash)
        self.content_sum %= 2**64

    def _hash_items(self) -> None:
        """Of the items seen so far."""
        new = np.flatnonzero((self.last_ms >= 0) & (self._item_hash == 0))
        if len(new):
            self._item_hash[new] = digest.string_hashes(self._item_ids.gather(new - 1), "item")

    def users(self) -> pl.DataFrame:
        """user_index, num_events."""
        empty = pl.DataFrame(schema={"user_index": pl.UInt32, "num_events": pl.UInt32})
        return pl.concat([empty, *self._users]).group_by("user_index").agg(pl.col("num_events").sum())
