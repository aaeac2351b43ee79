"""The nightly feature batch: event logs in, one features artifact out, whole or not at all."""

import time
import zlib
from pathlib import Path
from typing import Any

import polars as pl

from features import sources
from features.clean import SCHEMA, CleanFile, clean
from features.config import FeaturesConfig
from features.formats import Format, resolve
from recsys.contracts import artifact
from recsys.contracts.errors import DataError
from recsys.dataset import HISTORIES_FOLDER, ITEMS_FILE

__all__ = ["FeaturesConfig", "read_events", "run"]

QUARANTINE_FILE = "quarantine.csv"
MAX_EVENT_TYPES = 256
"""Event types are stored in one byte."""


def run(config: FeaturesConfig, source_paths: list[Path], out: Path, *, now_ms: int | None = None) -> artifact.Manifest:
    """Read the logs and publish histories, items, split and quarantine at `out`.

    Every row read is an event, left out by a rule, or in the quarantine.

    Raises:
        DataError: the log cannot be used; `out` is as it was.
    """
    started = time.monotonic()
    layout = resolve(config)
    files = sources.find_files(source_paths, layout)
    cleaned = _read(config, layout, files, now_ms)
    events = _events(cleaned, layout, files[0])
    read_seconds = time.monotonic() - started
    if events.is_empty():
        raise DataError(
            f"{source_paths[0]}: no usable event in the log; {_left(cleaned)}; check --format and the columns"
        )
    split_ms = _split(events, config) if layout.timestamp else None
    items = _items(events, split_ms)
    _check_pruning(items, config, source_paths[0])
    kinds = _event_types(events, source_paths[0])
    with artifact.writing(out, "features") as writer:
        items.write_parquet(writer.folder / ITEMS_FILE)
        _write_histories(events, items, kinds, config.num_partitions, writer.folder / HISTORIES_FOLDER)
        pl.concat([c.quarantine for c in cleaned]).write_csv(writer.folder / QUARANTINE_FILE)
        metrics = {
            **_counts(events, items, cleaned, config),
            "split_ms": split_ms,
            "has_timestamps": bool(layout.timestamp),
            "first_ms": events["timestamp_ms"].min() if layout.timestamp else None,
            "last_ms": events["timestamp_ms"].max() if layout.timestamp else None,
            "event_types": kinds,
            "source_files": [{"name": path.name, "size_bytes": path.stat().st_size} for path in files],
            "seconds": {"read": round(read_seconds, 3), "write": round(time.monotonic() - started - read_seconds, 3)},
        }
        return writer.commit(parents={}, config=config.model_dump(mode="json"), metrics=metrics)


def read_events(config: FeaturesConfig, source_paths: list[Path]) -> pl.DataFrame:
    """The good rows of the logs in canonical columns, files in order: what the event store imports."""
    layout = resolve(config)
    files = sources.find_files(source_paths, layout)
    return _events(_read(config, layout, files, None), layout, files[0])


def _read(config: FeaturesConfig, layout: Format, files: list[Path], now_ms: int | None) -> list[CleanFile]:
    now_ms = int(time.time() * 1000) if now_ms is None else now_ms
    return [clean(path, number, layout, config, now_ms) for number, path in enumerate(files)]


def _events(cleaned: list[CleanFile], layout: Format, first_file: Path) -> pl.DataFrame:
    events = pl.concat([c.events for c in cleaned]) if cleaned else pl.DataFrame(schema=SCHEMA)
    titles = pl.DataFrame(
        list(sources.titles(first_file, layout)),
        schema={"item_id": pl.String, "t": pl.String, "c": pl.String},
        orient="row",
    )
    if titles.is_empty():
        return events
    joined = events.lazy().join(titles.lazy(), on="item_id", how="left", maintain_order="left")
    filled = joined.with_columns(title=pl.coalesce("title", "t"), category=pl.coalesce("category", "c"))
    return filled.drop("t", "c").collect()


def _event_types(events: pl.DataFrame, where: Path) -> list[str]:
    """The log's event types; the code of each is its position."""
    kinds = sorted(events["event_type"].unique())
    if len(kinds) > MAX_EVENT_TYPES:
        raise DataError(
            f"{where}: {len(kinds):,} event types such as {kinds[0]!r}, at most {MAX_EVENT_TYPES} are expected; "
            "map another column with --map event_type=COLUMN"
        )
    return kinds


def _split(events: pl.DataFrame, config: FeaturesConfig) -> int | None:
    """T, or None where all events happened at one moment."""
    moments = events["timestamp_ms"]
    if moments.min() == moments.max():
        return None
    split = moments.quantile(config.split_quantile, interpolation="lower")
    assert split is not None
    return int(split)


def _items(events: pl.DataFrame, split_ms: int | None) -> pl.DataFrame:
    """One row an item of the log, numbered from 1 in the order of first appearance."""
    before = pl.lit(True) if split_ms is None else pl.col("timestamp_ms") < split_ms
    return (
        events.lazy()
        .sort("timestamp_ms", "source", "row", maintain_order=True)
        .group_by("item_id", maintain_order=True)
        .agg(
            num_events=pl.len().cast(pl.UInt32),
            num_events_before_split=before.sum().cast(pl.UInt32) if split_ms is not None else pl.len().cast(pl.UInt32),
            first_ms=pl.col("timestamp_ms").first(),
            last_ms=pl.col("timestamp_ms").last(),
            title=pl.col("title").drop_nulls().last(),
            category=pl.col("category").drop_nulls().last(),
            price=pl.col("price").drop_nulls().last(),
        )
        .with_row_index("item_index", offset=1)
        .collect()
    )


def _check_pruning(items: pl.DataFrame, config: FeaturesConfig, where: Path) -> None:
    largest = items["num_events_before_split"].max()
    if isinstance(largest, int) and largest < config.min_count:
        raise DataError(
            f"{where}: pruning leaves no item: min_count is {config.min_count}, the most frequent item has {largest} "
            "events before the cut; lower --min-count or give more data"
        )


def _write_histories(
    events: pl.DataFrame, items: pl.DataFrame, kinds: list[str], num_partitions: int, folder: Path
) -> None:
    """One Parquet file a partition of users, one row a user, its events in order."""
    folder.mkdir()
    users = events.select(pl.col("user_id").unique())
    part = pl.Series("part", [zlib.crc32(u.encode()) % num_partitions for u in users["user_id"]], dtype=pl.UInt32)
    users = users.with_columns(part)
    codes = {kind: code for code, kind in enumerate(kinds)}
    flat = (
        events.lazy()
        .join(items.lazy().select("item_id", "item_index"), on="item_id", how="left")
        .join(users.lazy(), on="user_id", how="left")
        .with_columns(pl.col("event_type").replace_strict(codes, return_dtype=pl.UInt8))
        .sort("user_id", "timestamp_ms", "source", "row", maintain_order=True)
        .select("part", "user_id", "item_index", "timestamp_ms", "event_type")
        .collect()
    )
    for number in range(num_partitions):
        rows = flat.filter(pl.col("part") == number).drop("part")
        rows.group_by("user_id", maintain_order=True).all().write_parquet(folder / f"part-{number:05d}.parquet")


def _counts(
    events: pl.DataFrame, items: pl.DataFrame, cleaned: list[CleanFile], config: FeaturesConfig
) -> dict[str, Any]:
    excluded: dict[str, int] = {}
    for entry in cleaned:
        for reason, count in entry.left_out.items():
            excluded[reason] = excluded.get(reason, 0) + count
    reasons = pl.concat([c.quarantine for c in cleaned]).group_by("reason").len().sort("reason")
    return {
        "num_rows_read": sum(entry.num_rows for entry in cleaned),
        "num_events": len(events),
        "num_users": events["user_id"].n_unique(),
        "num_items": len(items),
        "num_items_kept": len(items.filter(pl.col("num_events_before_split") >= config.min_count)),
        "excluded": dict(sorted(excluded.items())),
        "quarantined": dict(reasons.rows()),
    }


def _left(cleaned: list[CleanFile]) -> str:
    rows = sum(entry.num_rows for entry in cleaned)
    return f"{rows:,} rows read, {sum(sum(e.left_out.values()) for e in cleaned):,} left out by rule"
