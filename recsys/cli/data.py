"""Verbs on logs: `recsys features …` and `recsys store …`."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from recsys.cli.options import (
    ConfigOption,
    FormatOption,
    JsonOption,
    MapOption,
    SeedOption,
    Sources,
    SourcesOrStore,
    TimestampFormatOption,
    emit,
    features_config,
    given,
)

features_app = typer.Typer(no_args_is_help=True, help="The nightly feature batch.")
store_app = typer.Typer(no_args_is_help=True, help="The event store that the endpoint reads and writes.")


@features_app.command("build")
def features_build(
    sources: SourcesOrStore,
    out: Annotated[Path, typer.Option(help="Where the features artifact goes.")],
    format_name: FormatOption = "generic",
    columns: MapOption = None,
    timestamp_format: TimestampFormatOption = None,
    min_count: Annotated[
        int | None, typer.Option(help="Prune items with fewer events; without it 5, or less where 1 % would be lost.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Read all again; items and event types keep their numbers.")
    ] = False,
    renumber: Annotated[
        bool, typer.Option("--renumber", help="Read all again and number items and event types anew.")
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read what is new in the event logs, set bad rows aside, and publish histories, items and split."""
    from recsys.pipeline import nightly_features, tables

    settings = features_config(format_name, columns, timestamp_format, min_count, config)
    manifest = nightly_features.run(settings, sources, out, full=full, renumber=renumber)
    emit(as_json, manifest.model_dump(), tables.features_summary(manifest, out))


@features_app.command("verify")
def features_verify(
    features: Annotated[Path, typer.Argument(help="Features artifact.")],
    as_json: JsonOption = False,
) -> None:
    """Read every file of a features artifact and hold it to the size and sha256 of the manifest."""
    from features import verify

    found = verify.run(features)
    sound = f"{found.num_files:,} files, {found.size_bytes:,} bytes, are as the manifest of {found.created_at} says"
    emit(as_json, dataclasses.asdict(found), f"{features}: {sound}")


@features_app.command("forget")
def features_forget(
    folders: Annotated[list[Path], typer.Argument(help="Features artifacts, or folders that hold some.")],
    user_file: Annotated[Path, typer.Option(help="A file with one user_id a line.")],
    as_json: JsonOption = False,
) -> None:
    """Remove users from all features artifacts below some folders, now and for every later night."""
    from features import forget

    done = forget.run(folders, user_file)
    lines = [f"{place}: {count:,} events removed" for place, count in done.removed.items()]
    if done.num_unknown:
        unknown = f"{done.num_unknown:,} of {done.num_users:,} users were unknown here"
        lines.append(f"{unknown}: forgotten before, or written otherwise (ids match byte for byte); they stay out")
    emit(as_json, dataclasses.asdict(done), "\n".join(lines))


@features_app.command("simulate")
def features_simulate(
    out: Annotated[Path, typer.Option(help="A .csv.gz file; or .csv, .parquet or a folder for volume.")],
    users: Annotated[int | None, typer.Option()] = None,
    items: Annotated[int | None, typer.Option()] = None,
    events: Annotated[int | None, typer.Option()] = None,
    seed: SeedOption = None,
    taste_beyond: Annotated[
        int | None, typer.Option(min=8, max=1024, help="Plant taste that was last seen more than so many events ago.")
    ] = None,
) -> None:
    """Write the event log of a simulated shop; without options, the bundled sample.

    A .csv.gz file holds a small shop with structure to learn. A .csv or .parquet file, or a folder with a
    Parquet file a day, holds a plain log of any size: Zipf items, some histories over 10,000 events.
    With --taste-beyond N, 600 users, or as many as asked for, buy brands that they last bought N to 1.4 N events ago.
    """
    from features import bulk, simulate

    if taste_beyond is not None:
        _simulate_planted(
            out, taste_beyond, given({"num_users": users, "seed": seed}), given({"items": items, "events": events})
        )
        return
    if not out.name.endswith(".csv.gz"):
        num_events = 1_000_000 if events is None else events
        bulk_config = bulk.BulkConfig.from_mapping(
            {
                "num_users": max(10, num_events // 100) if users is None else users,
                "num_items": max(100, num_events // 1000) if items is None else items,
                "num_events": num_events,
                **given({"seed": seed}),
            },
            "features simulate",
        )
        print(bulk.run(bulk_config, out))  # noqa: T201
        return
    sizes = {"num_users": users, "num_items": items, "num_events": events, "seed": seed}
    settings = simulate.SimulateConfig.from_mapping(given(sizes), "features simulate")
    print(simulate.run(settings, out))  # noqa: T201


def _simulate_planted(out: Path, window_size: int, sizes: dict[str, int], fixed: dict[str, int]) -> None:
    from features import simulate
    from recsys.contracts.errors import ConfigError
    from recsys.pipeline.planted_shop import PlantedShop

    if fixed or not out.name.endswith(".csv.gz"):
        found = f"--{next(iter(fixed))}" if fixed else str(out)
        raise ConfigError(
            f"{found}: with --taste-beyond the items are fixed, events follow from --users, and --out is a .csv.gz file"
        )
    sizes = {"num_users": 600, "seed": 0, **sizes}
    if sizes["num_users"] < 1 or sizes["seed"] < 0:
        raise ConfigError(f"--users {sizes['num_users']} --seed {sizes['seed']}: expected 1 or more, and 0 or more")
    shop = PlantedShop(**sizes, window_size=window_size)
    simulate.write([shop.log()], out)
    print(out)  # noqa: T201


@store_app.command("import")
def store_import(
    sources: Sources,
    store: Annotated[str, typer.Option(help="URL, sqlite:///path or postgresql://…")],
    format_name: FormatOption = "generic",
    columns: MapOption = None,
    timestamp_format: TimestampFormatOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put the events of a log into the event store; running it again stores nothing twice."""
    from recsys.pipeline import store_import as importer

    settings = features_config(format_name, columns, timestamp_format, None, config)
    result = importer.run(settings, sources, store)
    emit(as_json, result, f"{result['stored']:,} events stored, {result['duplicates']:,} were there already")


@store_app.command("prune")
def store_prune(
    store: Annotated[str, typer.Option(help="URL, sqlite:///path or postgresql://…")],
    keep_days: Annotated[float, typer.Option(min=0, help="Age of the oldest events and answers to keep.")],
    full_vacuum: Annotated[
        bool, typer.Option("--full-vacuum", help="SQLite: write the whole file anew; events wait meanwhile.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete events and answers older than some days, and give the room back. Counts of past hours stay."""
    import time

    from recsys.store import EventStore

    opened = EventStore.open(store)
    deleted = opened.prune(int((time.time() - keep_days * 86_400) * 1000), full_vacuum=full_vacuum)
    given_back = opened.gives_room_back
    opened.close()
    kept = "" if given_back else "; their room stays in the file, which an older version made: --full-vacuum mends that"
    emit(as_json, {"deleted": deleted, "room_given_back": given_back}, f"{deleted:,} events deleted{kept}")
