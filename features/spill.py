"""Events on their way from files to partitions: in memory while they fit, on disk by user bucket beyond."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

import polars as pl

from features.numbering import bucket_of
from recsys.histories import NUM_BUCKETS

MAX_IN_MEMORY: Final = 16_000_000
"""Events that are kept in memory, of a log that has no more of them: some 40 bytes each."""
_Parts = dict[int, pl.DataFrame | Path]


def partitions_for(num_events: int, events_per_partition: int) -> int:
    """The power of two that gives partitions of at most about this many events, as far as buckets go."""
    needed = max(1, -(-num_events // events_per_partition))
    return min(NUM_BUCKETS, 1 << (needed - 1).bit_length())


class Spill:
    """Takes frames with `user_id` in the order of the log; gives them back partition by partition."""

    def __init__(self, folder: Path, events_per_partition: int, num_partitions: int | None = None) -> None:
        """`folder` is made where it is needed; it belongs to the spill."""
        self._folder = folder
        self._limit = events_per_partition
        self._decided = num_partitions
        self._is_large = False
        self._waiting: list[pl.DataFrame] = []
        self._num_waiting = 0
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
        if self._num_waiting >= self._limit:
            expected = int(self.num_events / max(share, 1e-6))
            self._is_large |= max(expected, self.num_events) > MAX_IN_MEMORY
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
        for number in range(self.num_partitions):
            parts = [found.pop(number) for found in flushed if number in found]
            frames = [part if isinstance(part, pl.DataFrame) else pl.read_ipc(part) for part in parts]
            yield pl.concat([self._empty, *frames], how="diagonal")
            for part in parts:
                if isinstance(part, Path):
                    part.unlink()

    def close(self) -> None:
        """Wait for what is being written, and remove it."""
        self._pool.shutdown(cancel_futures=True)

    def _flush(self) -> None:
        if not self._waiting:
            return
        events = pl.concat(self._waiting, how="diagonal")
        self._empty = events.clear()
        self._waiting, self._num_waiting = [], 0
        if self._flushed:
            self._flushed[-1].result()  # one at a time: memory is bounded
        self._flushed.append(self._pool.submit(self._parted, events, len(self._flushed), self._is_large))

    def _parted(self, events: pl.DataFrame, flush: int, on_disk: bool) -> _Parts:
        """The events by partition: frames, or the files that they were written to."""
        part = events.select(part=bucket_of(pl.col("user_id")) % self.num_partitions)["part"]
        groups = events.with_columns(part=part).partition_by(
            "part", maintain_order=True, as_dict=True, include_key=False
        )
        parts = {int(number): rows for (number,), rows in groups.items()}
        if not on_disk:
            return dict(parts)
        paths = {number: self._folder / f"{number:04d}-{flush:06d}.arrow" for number in parts}
        for number, rows in parts.items():
            rows.write_ipc(paths[number])
        return dict(paths)
