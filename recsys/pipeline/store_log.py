"""The feature job over an event store: what the store has new becomes files first, then all is one log."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import polars as pl

from features import build, forget
from features.build import FeaturesConfig
from features.tombstones import Tombstones
from recsys.contracts.artifact import MANIFEST_NAME, Manifest, read_manifest
from recsys.contracts.errors import ConfigError
from recsys.pipeline.progress import bar
from recsys.store import EventStore
from recsys.store.rows import SETTLED_MS, StoredEvent, event_rows, joined_sessions, last_settled

FILE_EVENTS: Final = 1_000_000
"""Events of one file."""
_NAME: Final = re.compile(r"^events-(\d{15})-(\d{15})\.parquet$")


def run(
    config: FeaturesConfig, urls: list[str], paths: list[Path], out: Path, *, full: bool, renumber: bool
) -> Manifest:
    """Bring the features at `out` up to date with logs and an event store.

    Events of the store are written to files beside `out`, each event once; users who were forgotten at the
    endpoint are removed from those files and from the features, and stay out. Events of a session that was joined
    to a user are removed, too: they come again as the user's.

    Raises:
        RecsysError: the store or a log cannot be used, or there is more than one store; the features are as they were.
    """
    _check(config, urls)
    store = EventStore.open(urls[0])
    try:
        place = out.parent / f"{out.name}-events"
        place.mkdir(parents=True, exist_ok=True)
        gone = list(store.forgotten())
        there_before = _forget(out, place, gone)
        now_ms = int(time.time() * 1000)
        joined = joined_sessions(store, _last_written(place), last_settled(store, now_ms - SETTLED_MS))
        _forget(out, place, joined, for_good=False)
        write_new_events(config, store, place, now_ms)
        manifest = build.run(config, [*paths, *([place] if _files(place) else [])], out, full=full, renumber=renumber)
        if not there_before and _forget(out, place, gone):
            manifest = read_manifest(out)
        return manifest
    finally:
        store.close()


def _check(config: FeaturesConfig, urls: list[str]) -> None:
    if len(urls) > 1:
        raise ConfigError(f"{len(urls)} event stores given; expected one: their events have numbers of their own")
    if config.format != "generic":
        raise ConfigError(f"an event store has columns of its own, found --format {config.format}; leave it out")


def write_new_events(config: FeaturesConfig, store: EventStore, place: Path, now_ms: int | None = None) -> list[Path]:
    """Write events that no file holds yet, in the order of their numbers; the new files.

    Events of the last minute are left for the next night: some with lower numbers may not be visible yet.
    """
    after = _last_written(place)
    now_ms = int(time.time() * 1000) if now_ms is None else now_ms
    last = last_settled(store, now_ms - SETTLED_MS)
    written = []
    with bar("events of the store") as advance:
        for rows in _parts(event_rows(store, after, last)):
            path = place / f"events-{rows[0].seq:015d}-{rows[-1].seq:015d}.parquet"
            _write(_frame(config, rows), path)
            written.append(path)
            advance("events", rows[-1].seq - after, max(1, last - after))
    return written


def _parts(batches: Iterator[list[StoredEvent]]) -> Iterator[list[StoredEvent]]:
    """As many events a file at most."""
    part: list[StoredEvent] = []
    for batch in batches:
        part += batch
        if len(part) >= FILE_EVENTS:
            yield part
            part = []
    if part:
        yield part


def _frame(config: FeaturesConfig, rows: list[StoredEvent]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            config.user_column: [row.user_id for row in rows],
            config.item_column: [row.item_id for row in rows],
            config.event_type_column: [row.event_type for row in rows],
            config.timestamp_column: pl.Series([row.timestamp_ms for row in rows], dtype=pl.Datetime("ms")),
        }
    )


def _write(frame: pl.DataFrame, path: Path) -> None:
    """The file is there whole or not at all; its name begins with a dot until then, so no log reader sees it."""
    unfinished = path.with_name(f".{path.name}")
    frame.write_parquet(unfinished)
    unfinished.replace(path)


def _last_written(place: Path) -> int:
    """The highest number in the files; those below are all there."""
    return max((int(_NAME.match(path.name)[2]) for path in _files(place)), default=0)  # type: ignore[index]


def _files(place: Path) -> list[Path]:
    return sorted(path for path in place.iterdir() if _NAME.match(path.name))


def _forget(out: Path, place: Path, user_ids: list[str], *, for_good: bool = True) -> bool:
    """Remove users from the files and from the features, if there are any; whether there were."""
    if not (out / MANIFEST_NAME).exists():
        return False
    known = Tombstones.load(out)
    fresh = [user_id for user_id in user_ids if not (for_good and known.holds(user_id))]
    if fresh:
        for path in _files(place):
            frame = pl.read_parquet(path)
            kept = frame.filter(~pl.nth(0).is_in(fresh))
            if len(kept) < len(frame):
                _write(kept, path)
        forget.from_artifact(out, fresh, rewritten=_files(place), for_good=for_good)
    return True
