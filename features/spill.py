"""Events on their way from files to partitions: in memory while they fit, on disk by user bucket beyond."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from features.numbering import bucket_of
from recsys.histories import NUM_BUCKETS


def partitions_for(num_events: int, events_per_partition: int) -> int:
    """The power of two that gives partitions of at most about this many events, as far as buckets go."""
    needed = max(1, -(-num_events // events_per_partition))
    return min(NUM_BUCKETS, 1 << (needed - 1).bit_length())


class Spill:
    """Takes frames with `user_id` in the order of the log; gives them back partition by partition."""

    def __init__(self, folder: Path, events_per_partition: int, num_partitions: int | None = None) -> None:
        self._folder = folder
        self._limit = events_per_partition
        self._decided = num_partitions
        self._waiting: list[pl.DataFrame] = []
        self._num_waiting = 0
        self._num_flushes = 0
        self._empty = pl.DataFrame()
        self.num_events = 0

    @property
    def num_partitions(self) -> int:
        """Partitions of this run; final once everything was added."""
        return self._decided or 1

    def add(self, events: pl.DataFrame, share: float) -> None:
        """Take some events; `share` of the whole log has been read with them."""
        self._waiting.append(events)
        self._num_waiting += len(events)
        self.num_events += len(events)
        if self._num_waiting >= self._limit:
            if self._decided is None:
                self._decided = partitions_for(int(self.num_events / max(share, 1e-6)), self._limit)
            self._flush()

    def partitions(self) -> Iterator[pl.DataFrame]:
        """The events of each partition, in the order they came."""
        if self._num_flushes == 0 and self.num_partitions == 1:
            yield pl.concat(self._waiting, how="diagonal")
            return
        self._flush()
        for number in range(self.num_partitions):
            parts = [self._path(number, flush) for flush in range(self._num_flushes)]
            frames = [pl.read_ipc(path) for path in parts if path.exists()]
            yield pl.concat([self._empty, *frames], how="diagonal")
            for path in parts:
                path.unlink(missing_ok=True)

    def _flush(self) -> None:
        if not self._waiting:
            return
        events = pl.concat(self._waiting, how="diagonal")
        self._empty = events.clear()
        part = events.select(part=bucket_of(pl.col("user_id")) % self.num_partitions)["part"]
        for (number,), rows in (
            events.with_columns(part=part)
            .partition_by("part", maintain_order=True, as_dict=True, include_key=False)
            .items()
        ):
            rows.write_ipc(self._path(int(number), self._num_flushes))
        self._num_flushes += 1
        self._waiting, self._num_waiting = [], 0

    def _path(self, partition: int, flush: int) -> Path:
        return self._folder / f"{partition:04d}-{flush:06d}.arrow"
