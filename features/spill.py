"""Events on their way from files to partitions: in memory while they fit, on disk by user bucket beyond."""

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

import polars as pl

from features.numbering import bucket_of
from recsys.histories import NUM_BUCKETS, parted

MAX_BYTES_IN_MEMORY: Final = 640_000_000
"""Events of so many bytes are kept in memory, of a log that has no more: 16 million of 40 bytes each."""
_VIEW_BYTES = 16
"""Of a string beside its text."""
_Parts = dict[int, pl.DataFrame | int]
"""By partition: a frame, or the number of bytes that it is in the partition's file."""


def partitions_for(num_events: int, events_per_partition: int) -> int:
    """The power of two that gives partitions of at most about this many events, as far as buckets go."""
    needed = max(1, -(-num_events // events_per_partition))
    return min(NUM_BUCKETS, 1 << (needed - 1).bit_length())


class Spill:
    """Takes frames with `user_id` in the order of the log; gives them back partition by partition."""

    def __init__(self, folder: Path, events_per_partition: int, num_partitions: int | None = None) -> None:
        """`folder` is there, and the spill's alone."""
        self._folder = folder
        self._limit = events_per_partition
        self._decided = num_partitions
        self._is_large = False
        self._waiting: list[pl.DataFrame] = []
        self._num_waiting = 0
        self._num_bytes = 0
        self._empty = pl.DataFrame()
        self._pool = ThreadPoolExecutor(1)
        self._flushed: list[Future[_Parts]] = []
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
        self._num_bytes += int(events.estimated_size()) + _VIEW_BYTES * len(events)
        if self._num_waiting >= self._limit:
            expected = int(self.num_events / max(share, 1e-6))
            self._is_large |= self._num_bytes / max(share, 1e-6) > MAX_BYTES_IN_MEMORY
            if self._decided is None:
                self._decided = partitions_for(expected, self._limit)
            self._flush()

    def partitions(self) -> Iterator[pl.DataFrame]:
        """The events of each partition, in the order they came."""
        if not self._flushed and self.num_partitions == 1:
            yield pl.concat(self._waiting, how="diagonal")
            return
        self._flush()
        flushed = [each.result() for each in self._flushed]
        coming = self._pool.submit(self._gathered, 0, flushed)
        for number in range(self.num_partitions):
            events = coming.result()
            if number + 1 < self.num_partitions:
                coming = self._pool.submit(self._gathered, number + 1, flushed)
            yield events

    def close(self) -> None:
        """Wait for what is being written; nothing more is."""
        self._pool.shutdown(cancel_futures=True)

    def _flush(self) -> None:
        if not self._waiting:
            return
        events = pl.concat(self._waiting, how="diagonal")
        self._empty = events.clear()
        self._waiting, self._num_waiting = [], 0
        if self._flushed:
            self._flushed[-1].result()  # one at a time: memory is bounded
        self._flushed.append(self._pool.submit(self._parted, events, self._is_large))

    def _parted(self, events: pl.DataFrame, on_disk: bool) -> _Parts:
        """The events by partition, written to files if `on_disk`."""
        part = events.select(bucket_of(pl.col("user_id")) % self.num_partitions).to_series().to_numpy()
        parts = {number: rows for number, rows in enumerate(parted(events, part, self.num_partitions)) if len(rows)}
        if not on_disk:
            return dict(parts)
        return {number: self._append(number, rows) for number, rows in parts.items()}

    def _append(self, partition: int, rows: pl.DataFrame) -> int:
        """Write to the end of the partition's file; the number of bytes. Streams cost a half of what Arrow files do."""
        with self._path(partition).open("ab") as file:
            before = os.fstat(file.fileno()).st_size
            rows.write_ipc_stream(file)
            file.flush()
            return os.fstat(file.fileno()).st_size - before

    def _gathered(self, partition: int, flushed: list[_Parts]) -> pl.DataFrame:
        """All events of a partition. In memory they stay with those of the others until the last one is taken."""
        parts = [found.pop(partition) for found in flushed if partition in found]
        frames = [part for part in parts if isinstance(part, pl.DataFrame)]
        if len(frames) < len(parts):
            with self._path(partition).open("rb") as file:
                frames = [p if isinstance(p, pl.DataFrame) else pl.read_ipc_stream(file.read(p)) for p in parts]
            self._path(partition).unlink()
        return pl.concat([self._empty, *frames], how="diagonal")

    def _path(self, partition: int) -> Path:
        return self._folder / f"{partition:04d}.arrows"
