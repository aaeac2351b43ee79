"""The feature job over an event store: what the store has new becomes files first, then all is one log."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import polars as pl

from features import build, event_files, forget
from features.build import FeaturesConfig
from features.lock import locked
from features.tombstones import Tombstones
from recsys.contracts.artifact import MANIFEST_NAME, Manifest, older_of, read_manifest
from recsys.contracts.errors import ConfigError
from recsys.pipeline.progress import bar
from recsys.store import EventStore
from recsys.store.rows import SETTLED_MS, StoredEvent, event_rows, joined_sessions, last_settled

FILE_EVENTS: Final = 1_000_000
"""Events of one file."""


def run(
    config: FeaturesConfig, urls: list[str], paths: list[Path], out: Path, *, full: bool, renumber: bool
) -> Manifest:
    """Bring the features at `out` up to date with logs and an event store.

    Events of the store are written to files beside `out`, each event once; users who were forgotten at the
    endpoint are removed from those files and from the features, and stay out. Events of a session that was joined
    to a user are removed, too: they come again as the user's.

    Raises:
        LockedError: another run is at work on the features or the files.
        RecsysError: the store or a log cannot be used, there is more than one store, or the files hold events of
            another one; the features are as they were.
    """
    _check(config, urls)
    out = out.resolve()
    store = EventStore.open(urls[0])
    try:
        with event_files.held(out) as place:
            event_files.claim(place, store.identity())
            if older_of(out).exists():
                with locked(out):
                    pass  # taking the lock puts back what a dead run has put aside
            was_there = (out / MANIFEST_NAME).exists()
            gone = list(store.forgotten())
            _forget(out, place, gone)
            now_ms = int(time.time() * 1000)
            last = last_settled(store, now_ms - SETTLED_MS)
            _forget(out, place, joined_sessions(store, event_files.last_number(place), last), for_good=False)
            write_new_events(config, store, out, now_ms)
            log = [*paths, *([place] if event_files.files(place) else [])]
            manifest = build.run(config, log, out, full=full, renumber=renumber)
            if gone and not was_there:
                forget.from_artifact(out, gone)
                manifest = read_manifest(out)
            return manifest
    finally:
        store.close()


def _check(config: FeaturesConfig, urls: list[str]) -> None:
    if len(urls) > 1:
        raise ConfigError(f"{len(urls)} event stores given; expected one: their events have numbers of their own")
    if config.format != "generic":
        raise ConfigError(f"an event store has columns of its own, found --format {config.format}; leave it out")


def write_new_events(config: FeaturesConfig, store: EventStore, out: Path, now_ms: int | None = None) -> list[Path]:
    """Write events that no file of the features at `out` holds yet, in the order of their numbers; the new files.

    Events of the last minute are left for the next night: some with lower numbers may not be visible yet. Whoever is
    forgotten when a file is written is not in it, at the endpoint or by command; a file may be empty: its name says up
    to which number events have been read.
    """
    place = event_files.folder_of(out)
    after = event_files.last_number(place)
    now_ms = int(time.time() * 1000) if now_ms is None else now_ms
    last = last_settled(store, now_ms - SETTLED_MS)
    written = []
    with bar("events of the store") as advance:
        for rows in _parts(event_rows(store, after, last)):
            kept = _without_forgotten(_frame(config, rows), Tombstones.load(out).with_users(store.forgotten()))
            written.append(event_files.write(kept, place, rows[0].seq, rows[-1].seq))
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


def _without_forgotten(events: pl.DataFrame, tombstones: Tombstones) -> pl.DataFrame:
    user = events.columns[0]
    there = tombstones.without_forgotten(events.select(user_id=user).unique())
    return events.filter(pl.col(user).is_in(there["user_id"].implode()))


def _forget(out: Path, place: Path, user_ids: list[str], *, for_good: bool = True) -> None:
    """Remove users from the files, and from the features if there are any."""
    rewritten = event_files.without(place, user_ids)
    if not (out / MANIFEST_NAME).exists():
        return
    known = Tombstones.load(out)
    if rewritten or any(not (for_good and known.holds(user_id)) for user_id in user_ids):
        forget.from_artifact(out, user_ids, rewritten=event_files.files(place), for_good=for_good)
