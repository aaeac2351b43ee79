"""The nightly feature batch: event logs in, one features artifact out, whole or not at all.

A run reads only files that the artifact does not know, writes their events as one more generation of history
files, and publishes a folder in which all that did not change is the same file as before. Its content equals
that of a rebuild from all files, by the content digest.
"""

import time
from pathlib import Path

import polars as pl

from features import duplicates, sources, trouble
from features.clean import SCHEMA, clean
from features.config import FeaturesConfig
from features.formats import Format, resolve
from features.ledger import ASKED_FOR, Plan, plan
from features.lock import locked
from features.night import Night
from features.state import State
from recsys.contracts import artifact
from recsys.contracts.artifact import Manifest
from recsys.contracts.errors import DataError

__all__ = ["FeaturesConfig", "read_events", "run"]


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
        night.verify()
        night.read()
        night.store()
        return night.finish(died)
