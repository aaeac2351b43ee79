"""The nightly feature batch: event logs in, one features artifact out, whole or not at all.

A run reads only files that the artifact does not know, writes their events as one more generation of history
files, and publishes a folder in which all that did not change is the same file as before. Its content equals
that of a rebuild from all files, by the content digest.
"""

import shutil
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl

from features import digest, duplicates, generations, headers, pruning, report, sources, split, trouble
from features.catalogue import Catalogue
from features.clean import SCHEMA, CleanBatch, MissingColumnError, clean, clean_batches
from features.config import FeaturesConfig
from features.formats import Format, resolve
from features.ledger import ASKED_FOR, Plan, plan
from features.lock import locked, scratch_of
from features.numbering import Numbering, Users
from features.quarantine import QUARANTINE_FILE, Quarantine
from features.spill import Spill
from features.state import DAYS_FILE, State
from features.steps import Steps
from features.totals import Totals
from recsys.contracts import artifact
from recsys.contracts.artifact import ArtifactWriter, Manifest
from recsys.contracts.errors import DataError, RefusedError
from recsys.dataset import bucket_of_user, ranks
from recsys.histories import EVENT_KEY, ITEMS_FILE, USERS_FILE, Generation, in_order, read_partition
from recsys.histories import SCHEMA as HISTORY_SCHEMA

__all__ = ["FeaturesConfig", "read_events", "run"]

NUM_READERS = 4
"""Files read and checked at a time; of each, one batch is checked while the next is read."""
NUM_WRITERS = 3
"""Partitions sorted and written at a time."""
MAX_EVENT_TYPES = 256
"""Event types are stored in one byte."""


def run(
    config: FeaturesConfig,
    source_paths: list[Path],
    out: Path,
    *,
    full: bool = False,
    renumber: bool = False,
    now_ms: int | None = None,
) -> Manifest:
    """Bring the artifact at `out` up to date with the logs; without one, or if `full`, from all files.

    Every row read is an event, left out by a rule, or in the quarantine. Where nothing is new, the artifact
    stays as it is, and the metrics of the manifest that is returned say so (`up_to_date`). `renumber` makes a
    full rebuild that numbers items and event types anew.

    Raises:
        DataError: the log or the disk cannot be used; `out` is as it was.
        DamagedError: the artifact at `out` is damaged, and what is damaged is needed.
        LockedError: another run is at work on `out`.
    """
    now_ms = int(time.time() * 1000) if now_ms is None else now_ms
    out = out.resolve()  # a link stays, and what it leads to is exchanged
    _check_apart(source_paths, out)
    with locked(out) as died, trouble.said(out):
        layout = resolve(config)
        files, passed_over = sources.find_files(source_paths, layout), sources.passed_over(source_paths, layout)
        asked = ASKED_FOR if full or renumber else None
        state = State.load(out, rebuild=full, renumber=renumber)
        todo = plan(config, files, state, out, has_times=bool(layout.timestamp), asked=asked)
        if state.manifest is not None and _is_up_to_date(config, state.manifest, todo):
            return _unchanged(state.manifest, died, passed_over)
        todo.passed_over = passed_over
        try:
            return _publish(config, layout, state, todo, out, now_ms, renumber=renumber, died=died)
        except duplicates.LateOriginalError as late:
            asked = f"{todo.sources[late.source]['name']} has the original of an event that was read before"
            todo = plan(config, files, state, out, has_times=bool(layout.timestamp), asked=asked)
            todo.passed_over = passed_over
            return _publish(config, layout, state, todo, out, now_ms, renumber=renumber, died=died)


def read_events(config: FeaturesConfig, source_paths: list[Path]) -> pl.DataFrame:
    """The good rows of the logs in canonical columns, files in order: what the event store imports."""
    layout = resolve(config)
    files = sources.find_files(source_paths, layout)
    now_ms = int(time.time() * 1000)
    cleaned = [clean(path, number, layout, config, now_ms).events for number, path in enumerate(files)]
    events = pl.concat(cleaned, how="diagonal").select(SCHEMA.keys())
    titles = sources.titles(files[0], layout)
    joined = events.lazy().join(titles.lazy(), on="item_id", how="left", maintain_order="left", suffix="_file")
    filled = joined.with_columns(pl.coalesce("title", "title_file"), pl.coalesce("category", "category_file"))
    return filled.select(SCHEMA.keys()).collect()


def _check_apart(source_paths: list[Path], out: Path) -> None:
    for path in source_paths:
        if path.resolve().is_relative_to(out):
            raise DataError(
                f"{path}: lies in the folder of the artifact, {out}, which is replaced as a whole; expected a log "
                "elsewhere: move it, or choose another --out"
            )


def _is_up_to_date(config: FeaturesConfig, manifest: Manifest, todo: Plan) -> bool:
    same_config = manifest.config == config.model_dump(mode="json")
    return todo.why_full is None and same_config and len(todo.sources) == len(manifest.metrics["source_files"])


def _unchanged(manifest: Manifest, died: str | None, passed_over: list[str]) -> Manifest:
    """The manifest of an artifact that stays, with what is said of tonight's run in place of that of the last."""
    tonight = {
        "up_to_date": True,
        "tonight": {"num_files": 0, "num_events": 0},
        "why_full": None,
        "died_before": died,
        "passed_over": passed_over,
    }
    return manifest.model_copy(update={"metrics": manifest.metrics | tonight})


def _publish(
    config: FeaturesConfig,
    layout: Format,
    state: State,
    todo: Plan,
    out: Path,
    now_ms: int,
    *,
    renumber: bool,
    died: str | None,
) -> Manifest:
    base = state if todo.why_full is None else state.for_rebuild(renumber=renumber)
    with artifact.writing(out, "features") as writer, Night(config, layout, base, todo, writer, now_ms) as night:
        night.read()
        night.store()
        return night.finish(died)


def _ahead(files: Iterable[Iterator[CleanBatch]], pool: ThreadPoolExecutor) -> Iterator[Iterator[CleanBatch]]:
    """The same batches, file by file, the next one of this file and the first of the next files under way in the pool.

    The pool is the caller's to close: a generator that an error leaves behind is closed by the garbage collector, in
    any thread and at any moment, and must not wait for threads there.
    """
    opened: deque[tuple[Iterator[CleanBatch], Future[CleanBatch | None]]] = deque()

    def batches() -> Iterator[CleanBatch]:
        file, coming = opened.popleft()
        while (batch := coming.result()) is not None:
            coming = pool.submit(next, file, None)
            yield batch

    for file in files:
        opened.append((file, pool.submit(next, file, None)))
        if len(opened) == NUM_READERS:
            yield batches()
    while opened:
        yield batches()


class Night:
    """One run: `read` the new files, `store` their events, `finish` the artifact."""

    def __init__(
        self,
        config: FeaturesConfig,
        layout: Format,
        state: State,
        todo: Plan,
        writer: ArtifactWriter,
        now_ms: int,
    ) -> None:
        self.config, self.layout, self.state, self.todo = config, layout, state, todo
        self.writer, self.folder, self.now_ms = writer, writer.folder, now_ms
        self.is_full = todo.why_full is not None
        self.may_be_empty = False
        """Whether an artifact without events or kept items may be published: forgetting must not fail on it."""
        self.steps = Steps()
        self.catalogue = Catalogue(state.items)
        self.types = Numbering(pl.Series(state.event_types, dtype=pl.String))
        self.users = Users(state.users, state.tombstones)
        self.left_out: Counter[str] = Counter(self._before("excluded", {}))
        self.num_rows = int(self._before("num_rows_read", 0))
        self.fields_of: dict[str, set[str]] = {}
        """What each of the new files has columns for."""
        self.optional_fields = headers.optional(state.metrics)
        self.rank = ranks([entry["name"] for entry in todo.sources])
        looks_back = config.drop_copies or "event_id" in self._before("fields", [])
        most = max((g.num_partitions for g in state.generations), default=0)
        self.scratch = scratch_of(writer.place)
        self.quarantine = Quarantine(state.tombstones, self.scratch)
        self.spill = Spill(self.scratch, config.events_per_partition, most if looks_back and most else None)
        self.generations = list(state.generations)
        self.sizes = dict(self._before("generations", {}))

    def __enter__(self) -> Self:
        self.scratch.mkdir()
        return self

    def __exit__(self, *_: object) -> None:
        self.spill.close()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _before(self, name: str, default: Any) -> Any:
        """A figure of the state; the default in a full run."""
        return default if self.is_full else self.state.metrics.get(name, default)

    def read(self) -> None:
        """Read and check the new files; their events go to the spill."""
        number_of = {entry["name"]: number for number, entry in enumerate(self.todo.sources)}
        sizes = [path.stat().st_size for path in self.todo.new]
        with ThreadPoolExecutor(NUM_READERS) as reading, ThreadPoolExecutor(NUM_READERS) as checking:
            files = _ahead((self._batches(path, number_of[path.name], reading) for path in self.todo.new), checking)
            for position, (path, batches) in enumerate(zip(self.todo.new, files, strict=True)):
                entry = self.todo.sources[number_of[path.name]]
                entry |= {"num_rows": 0, "num_events": 0}
                for batch in batches:
                    entry["num_rows"] += batch.num_rows
                    entry["num_events"] += len(batch.events)
                    if batch.open_end is not None:
                        entry["open_end"] = batch.open_end
                    done = sum(sizes[:position]) + sizes[position] * batch.share
                    self._take(batch, done / sum(sizes))
        self.steps.done("read")

    def _batches(self, path: Path, number: int, reading: Executor) -> Iterator[CleanBatch]:
        """Batches of a file whose columns are those that earlier nights saw."""
        fields = self.fields_of.setdefault(path.name, set())
        try:
            for batch in clean_batches(path, number, self.layout, self.config, self.now_ms, reading):
                fields |= set(batch.fields)
                if not sources.is_json(path):
                    self._check_header(path, fields)
                if batch.open_end:
                    self._check_end(path, batch)
                yield batch
            self._check_header(path, fields)
        except MissingColumnError as error:
            if self.is_full:
                raise
            raise RefusedError(f"{error} (its header is not that of the files before it)") from None

    def _check_header(self, path: Path, fields: set[str]) -> None:
        if self.is_full or not fields:
            return
        missing = sorted(headers.lacking(path, fields, set(self._before("fields", [])) - self.optional_fields))
        if missing:
            raise RefusedError(
                f"{path}: the header changed: no column for {', '.join(missing)}, which the files before it have; "
                "correct the file, or accept the new header with --full"
            )

    def _check_end(self, path: Path, batch: CleanBatch) -> None:
        ends = [entry["open_end"] for entry in self._before("source_files", []) if "open_end" in entry]
        if ends and not any(ends):
            raise RefusedError(
                f"{path}: line {batch.events['row'][-1]:,}, the last one, has no line break at its end, and those of "
                "the files before it have: it may be cut off; upload the file again, or end the line if it is whole, "
                "or accept such files with --full"
            )

    def _take(self, batch: CleanBatch, share: float) -> None:
        self.num_rows += batch.num_rows
        self.left_out.update(batch.left_out)
        self.quarantine.add(batch.quarantine)
        if batch.events.is_empty():
            return
        keyed = [EVENT_KEY] if EVENT_KEY in batch.events.columns else []
        numbered = batch.events.select("user_id", "timestamp_ms", "source", "row", *keyed).with_columns(
            self.catalogue.number(batch.events),
            self.types.codes(batch.events["event_type"]).cast(pl.UInt16).alias("event_type"),
        )
        self.spill.add(numbered, share)

    def store(self) -> None:
        """Write the new events as a generation, and merge generations where it is time to."""
        self._check_types()
        names = [entry["name"] for entry in self.todo.sources]
        self.totals = Totals(self.catalogue.item_ids(), self.types.names().to_list(), names)
        for generation in self.state.generations:
            for number in range(generation.num_partitions):
                name = generation.file_name(number)
                assert self.state.manifest is not None
                if not (self.folder / name).exists():
                    self.writer.link(self.writer.place, name, self.state.manifest.files[name])
        if self.spill.num_events:
            self._write_generation()
        self.steps.done("store")
        self._merge()
        self.steps.done("merge")

    def _write_generation(self) -> None:
        number = 1 + max((int(g.name[1:]) for g in self.generations), default=-1)
        new = generations.create(self.folder, number, self.spill.num_partitions)
        with ThreadPoolExecutor(NUM_WRITERS) as pool:
            waiting: deque[Future[None]] = deque()
            for partition, spilled in enumerate(self.spill.partitions()):
                events, present, num_forgotten = self.users.number(spilled)
                if num_forgotten:
                    self.left_out["forgotten"] += num_forgotten
                columns = HISTORY_SCHEMA | ({EVENT_KEY: pl.UInt64} if EVENT_KEY in events.columns else {})
                events = events.select(columns.keys()).cast(columns)  # type: ignore[arg-type]
                events = self._without_repeats(events, new, partition)
                if len(waiting) == NUM_WRITERS:
                    waiting.popleft().result()
                waiting.append(pool.submit(self._write_partition, new, partition, events, present))
            for future in waiting:
                future.result()
        self.generations.append(new)
        self.sizes[new.name] = self.totals.num_events

    def _write_partition(self, new: Generation, partition: int, events: pl.DataFrame, present: pl.DataFrame) -> None:
        ordered = in_order(events, self.rank)
        generations.write(self.folder, new, partition, ordered)
        self.totals.add(ordered, present)

    def _without_repeats(self, events: pl.DataFrame, new: Generation, partition: int) -> pl.DataFrame:
        if not duplicates.applies(events.columns, self.config.drop_copies):
            return events
        bucket = bucket_of_user(self.users.table())
        stored = read_partition(self.folder, self.state.generations, partition, new.num_partitions, bucket, self.rank)
        kept = duplicates.first_of_each(stored, events, self.rank, drop_copies=self.config.drop_copies)
        if len(kept) < len(events):
            self.left_out["duplicate"] += len(events) - len(kept)
        return kept

    def _merge(self) -> None:
        sizes = [self.sizes[g.name] for g in self.generations]
        count = generations.num_to_merge(sizes) if sizes else 1
        if count == 1:
            return
        older, kept = self.generations[-count:], self.generations[:-count]
        self._check_sound(older)
        merged = generations.merge(
            self.folder,
            older,
            1 + int(self.generations[-1].name[1:]),
            sum(sizes[-count:]),
            self.config.events_per_partition,
            bucket_of_user(self.users.table()),
            self.rank,
        )
        self.generations = [*kept, merged]
        self.sizes = {g.name: self.sizes[g.name] for g in kept} | {merged.name: sum(sizes[-count:])}

    def _check_sound(self, older: list[Generation]) -> None:
        """What is written anew gets a sha256 of its own, so it has to be what it was until now."""
        files = {} if self.state.manifest is None else self.state.manifest.files
        for generation in older:
            for number in range(generation.num_partitions):
                name = generation.file_name(number)
                if name in files and generation in self.state.generations:
                    trouble.check(self.writer.place, name, files[name])

    def _check_types(self) -> None:
        if len(self.types) > MAX_EVENT_TYPES:
            anew = ", or number them anew with --renumber" if self.state.event_types else ""
            raise DataError(
                f"{self.todo.new[0]}: {len(self.types):,} event types such as {self.types.names().sort()[0]!r}, "
                f"at most {MAX_EVENT_TYPES} are expected; map another column with --map event_type=COLUMN{anew}"
            )

    def _check_chosen_types(self, types: list[str]) -> None:
        for setting in ("history_types", "target_types"):
            chosen = getattr(self.config, setting)
            if chosen and not set(chosen) & set(types) and not self.may_be_empty:
                raise DataError(
                    f"{self._first_file()}: no event of the log is of {setting}, {', '.join(chosen)}; expected one of "
                    f"{', '.join(types[:8])}; correct the setting"
                )

    def finish(self, died: str | None) -> Manifest:
        """Write tables, quarantine, report and manifest, and put the folder in its place."""
        items = self.catalogue.table(self.totals, sources.titles(self._first_file(), self.layout))
        users = self._users_table()
        days = self.state.days + self.totals.days
        num_events = sum(days.values())
        if num_events == 0 and not self.may_be_empty:
            raise DataError(
                f"{self._first_file()}: no usable event in the log; {self.num_rows:,} rows read, "
                f"{sum(self.left_out.values()):,} left out by rule; check --format and the columns"
            )
        first_ms, last_ms = int(items["first_ms"].min() or 0), int(items["last_ms"].max() or 0)  # type: ignore[arg-type]
        types = self.types.names().to_list()
        self._check_chosen_types(types)
        scores = pruning.scores(self.config, items, types, last_ms, self.folder, self.generations)
        kept = scores >= self.config.min_count
        if not kept.any() and not self.may_be_empty:
            raise DataError(
                f"{self._first_file()}: pruning leaves no item: min_count is {self.config.min_count}, the most "
                f"frequent item reaches {scores.max():g}; lower --min-count or give more data"
            )
        items = items.with_columns(kept=pl.Series(kept))
        has_times = bool(self.layout.timestamp)
        sum_of_events = (int(self._before("content_sum", "0"), 16) + self.totals.content_sum) % 2**64
        metrics: dict[str, Any] = {
            "num_rows_read": self.num_rows,
            "num_events": num_events,
            "num_users": len(users),
            "num_items": len(items),
            "num_items_kept": int(kept.sum()),
            "excluded": dict(sorted(self.left_out.items())),
            "quarantined": self.quarantine.reasons(self._before("quarantined", {})),
            "split_ms": self._split_ms(days, first_ms, last_ms) if has_times else None,
            "has_timestamps": has_times,
            "first_ms": first_ms if has_times else None,
            "last_ms": last_ms if has_times else None,
            "event_types": types,
            "source_files": self.todo.sources,
            "absent_files": len(self.todo.absent),
            "passed_over": self.todo.passed_over,
            "why_full": self.todo.why_full,
            "died_before": died,
            **self._headers(),
            "fingerprint": self.todo.fingerprint,
            "generations": self.sizes,
            "content_sum": f"{sum_of_events:016x}",
            "content_digest": digest.content_digest(sum_of_events, items),
            "pruning": self._pruning_cost(items, scores, users),
            "num_forgotten": len(self.state.tombstones),
            "up_to_date": False,
            "tonight": {"num_files": len(self.todo.new), "num_events": self.totals.num_events},
        }
        self.steps.done("figures")
        self._write_tables(items, users, days, metrics)
        self.steps.done("tables and report")
        metrics["steps"] = self.steps.rows
        return self.writer.commit(parents={}, config=self.config.model_dump(mode="json"), metrics=metrics)

    def _headers(self) -> dict[str, Any]:
        """The fields of all files together, and those that a later file may lack; notes what tonight's files lack."""
        fields = set(self._before("fields", [])).union(*self.fields_of.values())
        lacked: set[str] = set()
        for entry in self.todo.sources:
            if found := self.fields_of.get(entry["name"]):
                lacks = headers.lacking(Path(entry["name"]), found, fields)
                entry |= {"lacks": sorted(lacks)} if lacks else {}
                lacked |= lacks
        optional = lacked if self.todo.why_full == ASKED_FOR else self.optional_fields
        return {"fields": sorted(fields), "optional_fields": sorted(optional)}

    def _first_file(self) -> Path:
        return self.todo.first_file

    def _users_table(self) -> pl.DataFrame:
        tonight, users = self.totals.users(), self.users.table()
        new = np.zeros(int(users["user_index"].max() or 0) + 1, dtype=np.uint32)  # type: ignore[arg-type]
        new[tonight["user_index"].to_numpy()] = tonight["num_events"].to_numpy()
        added = pl.Series(new[users["user_index"].to_numpy()])
        return users.with_columns(pl.col("num_events") + added).filter(pl.col("num_events") > 0)

    def _split_ms(self, days: Counter[int], first_ms: int, last_ms: int) -> int | None:
        """T, or None where all events happened at one moment."""
        if first_ms == last_ms:
            return None
        return split.moment_at(self.config.split_quantile, days, self.folder, self.generations)

    def _pruning_cost(self, items: pl.DataFrame, scores: Any, users: pl.DataFrame) -> dict[str, Any]:
        most = max(g.num_partitions for g in self.generations)
        sample = read_partition(self.folder, self.generations, 0, most, bucket_of_user(users), self.rank)
        rows = pruning.cost(self.config.min_count, items, scores, sample)
        looked_at = f"1/{most}" if most > 1 else "all"
        return {"users_looked_at": looked_at, "min_count": self.config.min_count, "thresholds": rows}

    def _write_tables(
        self, items: pl.DataFrame, users: pl.DataFrame, days: Counter[int], metrics: dict[str, Any]
    ) -> None:
        items.write_parquet(self.folder / ITEMS_FILE)
        users.write_parquet(self.folder / USERS_FILE)
        by_day = pl.DataFrame(sorted(days.items()), schema={"day": pl.Int32, "num_events": pl.UInt32}, orient="row")
        by_day.write_parquet(self.folder / DAYS_FILE)
        self.state.tombstones.save(self.folder)
        self.quarantine.write(self.folder / QUARANTINE_FILE, None if self.is_full else self.writer.place)
        report.write(self.folder, metrics, self.steps.rows, self.state.metrics, items, users, by_day)
