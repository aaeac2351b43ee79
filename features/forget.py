"""Forgetting users: out of every features artifact below some folders, at once and for every later night."""

import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from features import event_files, generations, trouble
from features.catalogue import counts_by_type
from features.config import FeaturesConfig
from features.formats import resolve
from features.ledger import Plan, renewed
from features.lock import locked
from features.night import Night
from features.state import State
from features.totals import Totals
from recsys.contracts import artifact
from recsys.contracts.artifact import FORMAT_VERSIONS, MANIFEST_NAME, ArtifactWriter, read_manifest
from recsys.contracts.errors import DataError
from recsys.histories import Generation

_LEFTOVER: Final = re.compile(r"\.(.+)\.(writing-.*|scratch|older)")
"""What a dead run leaves beside an artifact, and the artifact's name in it."""


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What was done."""

    removed: dict[str, int]
    """Events, by artifact."""
    num_users: int
    num_unknown: int
    """Users that no artifact had an event of."""


def run(folders: list[Path], user_file: Path) -> Forgotten:
    """Remove the users, one user_id a line of `user_file`, from all features artifacts at or below the folders.

    These are found at any depth and behind links, copies for rollback included, with the files of a store's events
    beside them; what dead runs left behind is removed. The users need not be known: they stay out of later nights
    all the same. Ids match byte for byte.

    Raises:
        DataError: no such file, no user in it, no artifact, or one of an older format.
    """
    user_ids = _read_users(user_file)
    places: dict[Path, None] = {}
    for folder in folders:
        found = _artifacts(folder)
        if not found:
            raise DataError(f"{folder}: no features artifact here or below; check the path")
        places |= dict.fromkeys(found)
    known: set[str] = set()
    removed = {str(place): _with_event_files(place, user_ids, known) for place in places}
    return Forgotten(removed, len(user_ids), sum(known.isdisjoint(_names([user_id])) for user_id in user_ids))


def _with_event_files(place: Path, user_ids: list[str], known: set[str]) -> int:
    """Remove the users from one artifact, and from the files of a store's events beside it."""
    if not event_files.folder_of(place).is_dir():
        return from_artifact(place, user_ids, known=known)
    with event_files.held(place) as folder:
        event_files.without(folder, user_ids)
        return from_artifact(place, user_ids, known=known, rewritten=event_files.files(folder))


def _read_users(path: Path) -> list[str]:
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); expected one user_id a line") from None
    users = [line for line in pl.Series(lines).str.strip_chars() if line]  # as ids of logs are
    if not users:
        raise DataError(f"{path}: no user in it; expected one user_id a line")
    return list(dict.fromkeys(users))


def _artifacts(folder: Path) -> list[Path]:
    """Features artifacts at or below a folder; leftovers of dead runs are removed, or put back, on the way."""
    folder = folder.resolve()
    paths = [path for place in _folders(folder) for path in place.iterdir()]
    places = {folder} if artifact.older_of(folder).exists() else set()
    places |= {path.parent / match[1] for path in paths if (match := _LEFTOVER.fullmatch(path.name))}
    for place in places:
        with locked(place):
            pass  # taking the lock does it
    found = sorted(place for place in _folders(folder) if (place / MANIFEST_NAME).exists())
    return [place for place in found if read_manifest(place).kind == "features"]


def _folders(folder: Path) -> list[Path]:
    """The folder and all below it, those behind links included, each once."""
    found: dict[Path, None] = {}
    waiting = [folder] if folder.is_dir() else []
    while waiting:
        place = waiting.pop().resolve()
        if place not in found:
            found[place] = None
            waiting += [path for path in place.iterdir() if path.is_dir()]
    return list(found)


def from_artifact(
    place: Path,
    user_ids: list[str],
    *,
    rewritten: Sequence[Path] = (),
    for_good: bool = True,
    known: set[str] | None = None,
) -> int:
    """Remove the users from one artifact; returns the events removed, and adds to `known` whose they were.

    `rewritten` are files that were read before and have lost these users since: they are known by their new
    content from now on, so that they are not read again. Later nights leave the users out, unless not `for_good`.
    """
    place = place.resolve()
    with locked(place), trouble.said(place):
        state = State.load(place)
        manifest = state.manifest
        assert manifest is not None
        if manifest.format_version != FORMAT_VERSIONS["features"]:
            raise DataError(
                f"{place}: features of format version {manifest.format_version}; build it again, or delete it if it is "
                "an old copy"
            )
        config = FeaturesConfig(**manifest.config)
        sources = renewed(manifest.metrics["source_files"], rewritten)
        todo = Plan([], sources, None, place, manifest.metrics["fingerprint"])
        with artifact.writing(place, "features") as writer:
            users = state.users.filter(pl.col("user_id").is_in(_names(user_ids) if for_good else user_ids))
            if known is not None:
                known.update(users["user_id"])
            removed = _rewrite(writer, state, users)
            left = _without(state, users, removed, user_ids if for_good else [], writer)
            with Night(config, resolve(config), left, todo, writer, int(time.time() * 1000)) as night:
                if for_good:
                    night.quarantine.forget(user_ids)
                night.may_be_empty = True
                night.store()
                night.finish(None)
    return len(removed)


def _names(user_ids: list[str]) -> list[str]:
    """The users, and those that later nights leave out with them: 17850 with 17850.0 (see `Tombstones.holds`)."""
    whole = [user_id.removesuffix(".0") for user_id in user_ids if user_id.endswith(".0")]
    return [*user_ids, *(user_id for user_id in whole if user_id.isdecimal())]


def _rewrite(writer: ArtifactWriter, state: State, users: pl.DataFrame) -> pl.DataFrame:
    """Write the partition files that hold events of these users anew, without them; returns those events."""
    assert state.manifest is not None
    gone = (
        [pl.read_parquet(writer.place / state.generations[0].file_name(0), glob=False).clear()]
        if state.generations
        else []
    )
    for generation in state.generations:
        for partition in sorted(set((users["bucket"] % generation.num_partitions).to_list())):
            name = generation.file_name(partition)
            trouble.check(writer.place, name, state.manifest.files[name])
            events = pl.read_parquet(writer.place / name, glob=False)
            is_gone = events["user_index"].is_in(users["user_index"].implode())
            if is_gone.any():
                gone.append(events.filter(is_gone).with_columns(generation=pl.lit(generation.name)))
                (writer.folder / name).parent.mkdir(parents=True, exist_ok=True)
                generations.write(writer.folder, generation, partition, events.filter(~is_gone))
    return pl.concat(gone, how="diagonal")


def _without(
    state: State, users: pl.DataFrame, removed: pl.DataFrame, for_good: list[str], writer: ArtifactWriter
) -> State:
    """The state with the counts of the removed events taken off; users `for_good` stay out of later nights."""
    assert state.manifest is not None
    metrics = dict(state.metrics)
    totals = Totals(state.items["item_id"], metrics["event_types"], [e["name"] for e in metrics["source_files"]])
    totals.add(removed.sort("user_index"), users)
    metrics["content_sum"] = f"{(int(metrics['content_sum'], 16) - totals.content_sum) % 2**64:016x}"
    if len(removed):
        metrics["excluded"] = Counter(metrics["excluded"]) + Counter(
            {"forgotten" if for_good else "joined": len(removed)}
        )
        by_generation = Counter(removed["generation"].to_list())
        metrics["generations"] = {name: size - by_generation[name] for name, size in metrics["generations"].items()}
    return replace(
        state,
        manifest=state.manifest.model_copy(update={"metrics": metrics}),
        items=_items_without(state, totals, writer),
        users=state.users.join(users, on="user_index", how="anti"),
        days=state.days - totals.days,
        tombstones=state.tombstones.with_users(for_good),
    )


def _items_without(state: State, totals: Totals, writer: ArtifactWriter) -> pl.DataFrame:
    """The items with counts taken off; first and last moments are found again among what is left."""
    items = state.items
    by_type = counts_by_type(items) - totals.by_type[1:]
    left = pl.concat([_moments(writer, generation) for generation in state.generations])
    moments = left.group_by("item_index").agg(pl.col("first_ms").min(), pl.col("last_ms").max())
    counted = items.with_columns(
        num_events=pl.Series(by_type.sum(axis=1).astype(np.uint32)),
        num_events_by_type=pl.Series(by_type.astype(np.uint32)).arr.to_list(),
    )
    return (
        counted.drop("first_ms", "last_ms")
        .join(moments, on="item_index", how="left", maintain_order="left")
        .select(items.columns)
    )


def _moments(writer: ArtifactWriter, generation: Generation) -> pl.DataFrame:
    """item_index, first_ms and last_ms over the files of a generation as they will be."""
    names = generation.file_names()
    files = [writer.folder / name if (writer.folder / name).exists() else writer.place / name for name in names]
    moment: Any = pl.col("timestamp_ms")
    scan = pl.scan_parquet(files, missing_columns="insert", extra_columns="ignore", glob=False)
    moments = scan.select("item_index", moment).group_by("item_index").agg(first_ms=moment.min(), last_ms=moment.max())
    return moments.collect(engine="streaming")
