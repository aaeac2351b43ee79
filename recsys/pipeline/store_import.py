"""Event logs into the event store, each event under an id made from what it says."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from features.build import FeaturesConfig, read_events
from recsys.contracts.events import Event
from recsys.pipeline.progress import bar
from recsys.store import EventStore

BATCH = 5_000


def run(config: FeaturesConfig, sources: list[Path], store_url: str) -> dict[str, int]:
    """Store the logs' good rows; running again stores only what is new."""
    store = EventStore.open(store_url)
    frame = _with_ids(read_events(config, sources))

    def batches() -> Iterator[list[Event]]:
        columns = ("user_id", "item_id", "timestamp_ms", "event_type", "event_id")
        for start in range(0, len(frame), BATCH):
            advance("events", start, len(frame))
            yield [
                Event(user_id=u, item_id=i, timestamp_ms=t, event_type=kind, event_id=event_id)
                for u, i, t, kind, event_id in frame.slice(start, BATCH).select(columns).iter_rows()
            ]
        advance("events", len(frame), len(frame))

    with bar("import") as advance:
        result = store.import_events(batches())
    store.close()
    return {"stored": result.stored, "duplicates": result.duplicates}


def _with_ids(frame: pl.DataFrame) -> pl.DataFrame:
    """An id per event: its content and how many of the same came before it, so that it survives renamed files."""
    content = pl.concat_str("user_id", "item_id", "timestamp_ms", "event_type", separator="\x1f")
    ordered = frame.sort("timestamp_ms", "source", "row", maintain_order=True).with_columns(content=content)
    nth = pl.int_range(pl.len()).over("content").cast(pl.String)
    keys = ordered.select(pl.concat_str("content", nth, separator="\x1f")).to_series()
    ids = [hashlib.blake2b(key.encode(), digest_size=16).hexdigest() for key in keys]
    return ordered.with_columns(event_id=pl.Series(ids, dtype=pl.String))
