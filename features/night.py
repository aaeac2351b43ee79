"""One run of the feature batch: new files in, one artifact out."""

import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl

from features import digest, headers, pruning, report, sources, split
from features.ahead import files_ahead
from features.catalogue import Catalogue
from features.clean import CleanBatch, MissingColumnError, clean_batches
from features.config import FeaturesConfig
from features.formats import Format
from features.history_files import HistoryFiles
from features.ledger import ASKED_FOR, Plan, check_unchanged
from features.lock import scratch_of
from features.numbering import Numbering, Users
from features.quarantine import QUARANTINE_FILE, Quarantine
from features.spill import Spill
from features.state import DAYS_FILE, State
from features.steps import Steps
from features.totals import Totals
from recsys.contracts.artifact import ArtifactWriter, Manifest
from recsys.contracts.errors import DataError, RefusedError
from recsys.histories import EVENT_KEY, ITEMS_FILE, USERS_FILE, bucket_of_user, ranks, read_partition

NUM_READERS = 4
"""Files read and checked at a time; of each, one batch is checked while the next is read."""
MAX_EVENT_TYPES = 256
"""Event types are stored in one byte."""


class Night:
    """One run: `verify` a share of last night's files, `read` the new ones, `store` their events, `finish`."""

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
        self.expected = headers.Expected({} if self.is_full else state.metrics)
        self.rank = ranks([entry["name"] for entry in todo.sources])
        looks_back = config.drop_copies or "event_id" in self._before("fields", [])
        most = max((g.num_partitions for g in state.generations), default=0)
        self.scratch = scratch_of(writer.place)
        self.quarantine = Quarantine(state.tombstones, self.scratch)
        self.spill = Spill(self.scratch, config.events_per_partition, most if looks_back and most else None)
        self.histories = HistoryFiles(config, state, writer, self.rank, self._before("generations", {}))
        self.linked = dict(self._before("linked", {}))
        """The night, counted from the last full build, and how many of the files that nights only link it verified."""

    def __enter__(self) -> Self:
        self.scratch.mkdir()
        return self

    def __exit__(self, *_: object) -> None:
        self.spill.close()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _before(self, name: str, default: Any) -> Any:
        """A figure of the state; the default in a full run."""
        return default if self.is_full else self.state.metrics.get(name, default)

    def verify(self) -> None:
        """Hold the history files that come round tonight to their sha256."""
        self.linked = self.histories.verify(self.linked.get("night", 0) + 1)
        self.steps.done("verify")

    def read(self) -> None:
        """Read and check the new files; their events go to the spill."""
        number_of = {entry["name"]: number for number, entry in enumerate(self.todo.sources)}
        sizes = [self.todo.sources[number_of[path.name]]["size_bytes"] for path in self.todo.new]
        with ThreadPoolExecutor(NUM_READERS) as reading, ThreadPoolExecutor(NUM_READERS) as checking:
            batches_of = (self._batches(path, number_of[path.name], reading) for path in self.todo.new)
            files = files_ahead(batches_of, checking, NUM_READERS)
            for position, (path, batches) in enumerate(zip(self.todo.new, files, strict=True)):
                entry = self.todo.sources[number_of[path.name]]
                entry |= {"num_rows": 0, "num_events": 0}
                for batch in batches:
                    entry["num_rows"] += batch.num_rows
                    entry["num_events"] += len(batch.events)
                    if batch.open_end is not None:
                        entry["open_end"] = batch.open_end
                    done = sum(sizes[:position]) + sizes[position] * batch.share
                    self._take(batch, done / max(1, sum(sizes)))
        self.steps.done("read")

    def _batches(self, path: Path, number: int, reading: Executor) -> Iterator[CleanBatch]:
        """Batches of a file that stays as it is, and whose columns are those that earlier nights saw."""
        fields = self.fields_of.setdefault(path.name, set())
        try:
            for batch in clean_batches(path, number, self.layout, self.config, self.now_ms, reading):
                fields |= set(batch.fields)
                if not sources.is_json(path):
                    self.expected.check_columns(path, fields)
                self.expected.check_end(path, batch)
                yield batch
            self.expected.check_columns(path, fields)
            check_unchanged(path, self.todo.sources[number])
        except MissingColumnError as error:
            if self.is_full:
                raise
            raise RefusedError(f"{error.found}; the files before it have one: correct the file") from None

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
        self.histories.link()
        if self.spill.num_events:
            self.histories.add(self.spill, self.users, self.totals)
            self.left_out.update(self.histories.left_out)
        self.steps.done("store")
        self.histories.merge(self.users)
        self.steps.done("merge")

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
        scores = pruning.scores(self.config, items, types, last_ms, self.folder, self.histories.generations)
        least = self.config.least(scores)
        kept = scores >= least
        if not kept.any() and not self.may_be_empty:
            raise DataError(
                f"{self._first_file()}: pruning leaves no item: min_count is {least}, the most "
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
            "generations": self.histories.sizes,
            "linked": self.linked,
            "content_sum": f"{sum_of_events:016x}",
            "content_digest": digest.content_digest(sum_of_events, items),
            "pruning": self._pruning_cost(items, scores, users, least),
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
        return split.moment_at(self.config.split_quantile, days, self.folder, self.histories.generations)

    def _pruning_cost(self, items: pl.DataFrame, scores: Any, users: pl.DataFrame, least: int) -> dict[str, Any]:
        generations = self.histories.generations
        most = max(g.num_partitions for g in generations)
        sample = read_partition(self.folder, generations, 0, most, bucket_of_user(users), self.rank)
        rows = pruning.cost(least, items, scores, sample)
        looked_at = f"1/{most}" if most > 1 else "all"
        return {"users_looked_at": looked_at, "min_count": least, "thresholds": rows}

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
