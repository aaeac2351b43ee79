"""Writing and merging generations of partition files."""

import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl

from features.spill import partitions_for
from recsys.histories import HISTORIES_FOLDER, Generation, Integers, read_partition

ROWS_PER_GROUP = 49_152
"""Of a Parquet file: with so few the writer makes no dictionary of row numbers, and takes a third less time."""


def create(folder: Path, number: int, num_partitions: int) -> Generation:
    """An empty generation."""
    generation = Generation(f"g{number:05d}", num_partitions)
    (folder / HISTORIES_FOLDER / generation.name).mkdir(parents=True)
    return generation


def write(folder: Path, generation: Generation, partition: int, events: pl.DataFrame) -> None:
    """One partition file, of events that are in order."""
    path = folder / generation.file_name(partition)
    events.write_parquet(
        path,
        compression="lz4",
        row_group_size=ROWS_PER_GROUP,
        statistics=False,
    )


def num_to_merge(sizes: list[int]) -> int:
    """How many of the newest generations become one, so that each is more than twice as large as the next.

    So there are at most log2 of all events of them, and an event is rewritten as often over its life.
    """
    count, total = 1, sizes[-1]
    while count < len(sizes) and total * 2 > sizes[-count - 1]:
        total += sizes[-count - 1]
        count += 1
    return count


def merge(
    folder: Path,
    older: list[Generation],
    into: int,
    num_events: int,
    events_per_partition: int,
    bucket: Integers,
    rank: Integers,
    *,
    keep: Callable[[pl.DataFrame], pl.DataFrame] = lambda events: events,
) -> Generation:
    """Replace generations by one that holds their events (those that `keep` keeps)."""
    num_partitions = max(
        partitions_for(num_events, events_per_partition), *(generation.num_partitions for generation in older)
    )
    merged = create(folder, into, num_partitions)
    for number in range(num_partitions):
        write(folder, merged, number, keep(read_partition(folder, older, number, num_partitions, bucket, rank)))
    for generation in older:
        shutil.rmtree(folder / HISTORIES_FOLDER / generation.name)
    return merged
