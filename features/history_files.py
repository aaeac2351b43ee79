"""The history files of tonight's artifact: last night's as they are, one more generation, and merges in time."""

from collections import Counter, deque
from concurrent.futures import Future, ThreadPoolExecutor

import polars as pl

from features import duplicates, generations, trouble
from features.config import FeaturesConfig
from features.numbering import Users
from features.spill import Spill
from features.state import State
from features.totals import Totals
from recsys.contracts.artifact import ArtifactWriter
from recsys.histories import EVENT_KEY, SCHEMA, Generation, Integers, bucket_of_user, in_order, read_partition

NUM_WRITERS = 3
"""Partitions sorted and written at a time."""


class HistoryFiles:
    """Call `link`, then `add` if there are new events, then `merge`; `verify` at any time before."""

    def __init__(
        self, config: FeaturesConfig, state: State, writer: ArtifactWriter, rank: Integers, sizes: dict[str, int]
    ) -> None:
        """`rank` is the place of each source in the order of names; `sizes` are events by name of the generation."""
        self._config, self._writer, self._folder, self._rank = config, writer, writer.folder, rank
        self._known = list(state.generations)
        self._files = {} if state.manifest is None else state.manifest.files
        self.generations = list(state.generations)
        self.sizes = dict(sizes)
        self.left_out: Counter[str] = Counter()
        """New events that are not stored, by reason."""

    def verify(self, night: int) -> dict[str, int]:
        """Hold a share of last night's files to their sha256; returns what the manifest says of it.

        A file comes round once in `verify_nights` nights, the partitions of a generation on different ones.

        Raises:
            DamagedError: a file is not as it was written.
        """
        every = self._config.verify_nights
        tonight = [
            name
            for generation in self._known
            for partition, name in enumerate(generation.file_names())
            if (night + generation.number + partition) % every == 0
        ]
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda name: trouble.check(self._writer.place, name, self._files[name]), tonight))
        return {
            "night": night,
            "num_files": sum(generation.num_partitions for generation in self._known),
            "num_verified": len(tonight),
            "verified_bytes": sum(self._files[name].size_bytes for name in tonight),
        }

    def link(self) -> None:
        """Take over the files of last night, but for those that are in tonight's folder already."""
        for generation in self._known:
            for name in generation.file_names():
                if not (self._folder / name).exists():
                    self._writer.link(self._writer.place, name, self._files[name])

    def add(self, spill: Spill, users: Users, totals: Totals) -> None:
        """Number the users of the new events, write them as a generation, and count them."""
        number = 1 + max((generation.number for generation in self.generations), default=-1)
        new = generations.create(self._folder, number, spill.num_partitions)
        with ThreadPoolExecutor(NUM_WRITERS) as pool:
            waiting: deque[Future[None]] = deque()
            for partition, spilled in enumerate(spill.partitions()):
                events, present, num_forgotten = users.number(spilled, partition, new.num_partitions)
                if num_forgotten:
                    self.left_out["forgotten"] += num_forgotten
                columns = SCHEMA | ({EVENT_KEY: pl.UInt64} if EVENT_KEY in events.columns else {})
                events = events.select(columns.keys()).cast(columns)  # type: ignore[arg-type]
                events = self._without_repeats(events, new, partition, users)
                if len(waiting) == NUM_WRITERS:
                    waiting.popleft().result()
                waiting.append(pool.submit(self._write, new, partition, events, present, totals))
            for future in waiting:
                future.result()
        self.generations.append(new)
        self.sizes[new.name] = totals.num_events

    def _without_repeats(self, events: pl.DataFrame, new: Generation, partition: int, users: Users) -> pl.DataFrame:
        if not duplicates.applies(events.columns, self._config.drop_copies):
            return events
        bucket = bucket_of_user(users.table())
        stored = read_partition(self._folder, self._known, partition, new.num_partitions, bucket, self._rank)
        kept = duplicates.first_of_each(stored, events, self._rank, drop_copies=self._config.drop_copies)
        if len(kept) < len(events):
            self.left_out["duplicate"] += len(events) - len(kept)
        return kept

    def _write(
        self, new: Generation, partition: int, events: pl.DataFrame, present: pl.DataFrame, totals: Totals
    ) -> None:
        ordered = in_order(events, self._rank)
        generations.write(self._folder, new, partition, ordered)
        totals.add(ordered, present)

    def merge(self, users: Users) -> None:
        """Put the newest generations together where it is time to."""
        sizes = [self.sizes[g.name] for g in self.generations]
        count = generations.num_to_merge(sizes) if sizes else 1
        if count == 1:
            return
        older, kept = self.generations[-count:], self.generations[:-count]
        self._check_sound(older)
        merged = generations.merge(
            self._folder,
            older,
            1 + self.generations[-1].number,
            sum(sizes[-count:]),
            self._config.events_per_partition,
            bucket_of_user(users.table()),
            self._rank,
        )
        self.generations = [*kept, merged]
        self.sizes = {g.name: self.sizes[g.name] for g in kept} | {merged.name: sum(sizes[-count:])}

    def _check_sound(self, older: list[Generation]) -> None:
        """What is written anew gets a sha256 of its own, so it has to be what it was until now."""
        for generation in older:
            for name in generation.file_names() if generation in self._known else []:
                if name in self._files:
                    trouble.check(self._writer.place, name, self._files[name])
