"""The verbs. Each imports its stage when it is called, calls its `run`, and prints a short summary."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recsys.contracts.config import read_toml
from recsys.contracts.errors import RecsysError
from recsys.dataset import Protocol

if TYPE_CHECKING:
    from features.build import FeaturesConfig
    from optimize.config import OptimizeConfig
    from recsys.training.config import Recipe

app = typer.Typer(name="recsys", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
features_app = typer.Typer(no_args_is_help=True, help="The nightly feature batch.")
store_app = typer.Typer(no_args_is_help=True, help="The event store that the endpoint reads and writes.")
benchmark_app = typer.Typer(no_args_is_help=True, help="Figures, measured by one command each.")
app.add_typer(features_app, name="features")
app.add_typer(store_app, name="store")
app.add_typer(benchmark_app, name="benchmark")

Sources = Annotated[list[Path], typer.Argument(help="Event logs: files or folders.")]
FormatOption = Annotated[str, typer.Option("--format", help="Named format of the log, or generic.")]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="TOML file with the settings of this verb.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
RecipeOption = Annotated[str, typer.Option("--recipe", help="A bundled recipe or a path to a .toml file.")]
FeaturesOption = Annotated[Path, typer.Option("--features", help="Features artifact.")]
MinutesOption = Annotated[float | None, typer.Option("--max-minutes", help="Stop training after this long.")]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Seed of weights, batches and samples.")]
MapOption = Annotated[
    list[str] | None,
    typer.Option("--map", help="Column mapping of a generic log: user=customer, item=sku, timestamp=when …"),
]
TimestampFormatOption = Annotated[
    str | None, typer.Option("--timestamp-format", help="strftime pattern of the timestamps, if not found by itself.")
]


def main() -> None:
    """Run the command line; a user's mistake is one line on standard error and its exit status."""
    try:
        status = app(standalone_mode=False)
    except RecsysError as error:
        _fail(str(error), error.exit_code)
    except typer.Abort:
        _fail("interrupted", 130)
    except OSError as error:
        _fail(f"{error.filename or 'system'}: {error.strerror or error}", 2)
    except typer.TyperException as error:
        _fail(f"{error.format_message()} (see --help)", 2)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str, status: int) -> None:
    print(f"recsys: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201
    sys.exit(status)


def _emit(as_json: bool, values: dict[str, Any], summary: str) -> None:
    print(json.dumps(values, indent=2, default=str) if as_json else summary)  # noqa: T201


@features_app.command("build")
def features_build(
    sources: Sources,
    out: Annotated[Path, typer.Option(help="Where the features artifact goes.")],
    format_name: FormatOption = "generic",
    columns: MapOption = None,
    timestamp_format: TimestampFormatOption = None,
    min_count: Annotated[int | None, typer.Option(help="Prune items with fewer events.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Read all files again; items keep their numbers.")] = False,
    renumber: Annotated[bool, typer.Option("--renumber", help="Read all again and number items anew.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read what is new in the event logs, set bad rows aside, and publish histories, items and split."""
    from features import build
    from recsys.pipeline import tables

    settings = _features_config(format_name, columns, timestamp_format, min_count, config)
    manifest = build.run(settings, sources, out, full=full, renumber=renumber)
    _emit(as_json, manifest.model_dump(), tables.features_summary(manifest, out))


@features_app.command("forget")
def features_forget(
    folders: Annotated[list[Path], typer.Argument(help="Features artifacts, or folders that hold some.")],
    user_file: Annotated[Path, typer.Option(help="A file with one user_id a line.")],
    as_json: JsonOption = False,
) -> None:
    """Remove users from all features artifacts below some folders, now and for every later night."""
    from features import forget

    removed = forget.run(folders, user_file)
    _emit(as_json, removed, "\n".join(f"{place}: {count:,} events removed" for place, count in removed.items()))


@features_app.command("simulate")
def features_simulate(
    out: Annotated[Path, typer.Option(help="A .csv.gz file; or .csv, .parquet or a folder for volume.")],
    users: Annotated[int | None, typer.Option()] = None,
    items: Annotated[int | None, typer.Option()] = None,
    events: Annotated[int | None, typer.Option()] = None,
    seed: SeedOption = None,
) -> None:
    """Write the event log of a simulated shop; without options, the bundled sample.

    A .csv.gz file holds a small shop with structure to learn. A .csv or .parquet file, or a folder with a
    Parquet file a day, holds a plain log of any size: Zipf items, some histories over 10,000 events.
    """
    from features import bulk, simulate

    if not out.name.endswith(".csv.gz"):
        num_events = events or 1_000_000
        bulk_config = bulk.BulkConfig.from_mapping(
            {
                "num_users": users or max(10, num_events // 100),
                "num_items": items or max(100, num_events // 1000),
                "num_events": num_events,
                **_given({"seed": seed}),
            },
            "features simulate",
        )
        print(bulk.run(bulk_config, out))  # noqa: T201
        return
    given = {"num_users": users, "num_items": items, "num_events": events, "seed": seed}
    settings = simulate.SimulateConfig.from_mapping(_given(given), "features simulate")
    print(simulate.run(settings, out))  # noqa: T201


@app.command("train")
def train_command(
    features: Annotated[Path, typer.Argument(help="Features artifact.")],
    out: Annotated[Path, typer.Option(help="Where the checkpoint goes.")],
    recipe: RecipeOption = "default",
    protocol: Annotated[Protocol, typer.Option(help="What may be fitted.")] = Protocol.TIME,
    final: Annotated[bool, typer.Option("--final", help="Fit everything: same as --protocol final.")] = False,
    refit: Annotated[
        Path | None, typer.Option(help="A checkpoint of these features: as many epochs, no validation.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    max_minutes: MinutesOption = None,
    seed: SeedOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a decoder on windows of histories and write a checkpoint with its loss curve."""
    from recsys.pipeline import tables
    from recsys.training import train

    protocol = Protocol.FINAL if final else protocol
    settings = _recipe(recipe, seed, max_minutes)
    manifest = train.run(settings, features, out, protocol=protocol, refit=refit, resume=resume)
    _emit(as_json, manifest.model_dump(), tables.training_summary(manifest, out))


@app.command("optimize")
def optimize_command(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint.")],
    features: FeaturesOption,
    out: Annotated[Path, typer.Option(help="Folder of releases.")],
    engine: Annotated[str, typer.Option(help="Engine to build: cpu.")] = "cpu",
    bits: Annotated[int, typer.Option(help="Bits of a weight: 8, 4, or 32 for float.")] = 8,
    plan: Annotated[str | None, typer.Option(help="A TensorRT plan beside the engine: bf16 or fp16.")] = None,
    activate: Annotated[bool, typer.Option(help="Point `current` at the new release.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Publish past the gate; the release is marked.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Round the weights, build engine and index, compare with float32, and publish a release."""
    from optimize import build
    from recsys.pipeline import tables

    tensorrt = {} if plan is None else {"tensorrt": {"precision": plan}}
    settings = _optimize_config(config, engine=engine, bits=bits, **tensorrt)
    name, manifest = build.run(settings, checkpoint, features, out, activate=activate, force=force)
    _emit(as_json, {"release": name, **manifest.model_dump()}, tables.release_summary(name, manifest, out))


@app.command("evaluate")
def evaluate_command(
    release: Annotated[Path, typer.Argument(help="A release, or a folder of releases.")],
    features: FeaturesOption,
    protocol: Annotated[Protocol | None, typer.Option(help="Default: the release's own.")] = None,
    against: Annotated[
        str | None, typer.Option(help="Another release, or popularity, last_item, cooccurrence.")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="What the verdict is about. Default: ndcg@10.")] = None,
    margin: Annotated[
        float | None, typer.Option(min=0.0, max=0.5, help="Loss that counts as none, as a share. Default: 0.003.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write a page with figures here, an .html file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Rank the full catalogue for held-out users, beside popularity, last item and co-occurrence."""
    from recsys.pipeline import evaluation, tables

    given = _given({"metric": metric, "margin": margin})
    found = evaluation.run(release, features, protocol, against=against, **given)
    if report is not None:
        evaluation.write_page(found, report)
    _emit(as_json, found.to_json(), tables.evaluation_summary(found.to_json()))


@app.command("recommend")
def recommend_command(
    release: Annotated[Path, typer.Argument(help="A release, or a folder of releases.")],
    user: Annotated[str | None, typer.Option(help="A user of the features.")] = None,
    features: Annotated[Path | None, typer.Option(help="Features artifact, for --user.")] = None,
    history: Annotated[Path | None, typer.Option(help="A file with one item_id a line, oldest first.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, max=1000)] = 10,
    exclude_seen: Annotated[bool, typer.Option("--exclude-seen", help="Leave out items of the history.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Recommend for one user or one history."""
    from dataclasses import asdict

    from recsys.pipeline import recommend, tables

    items = recommend.run(release, user_id=user, features=features, history=history, k=k, exclude_seen=exclude_seen)
    _emit(as_json, {"items": [asdict(item) for item in items]}, tables.items_table(items))


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

    settings = _features_config(format_name, columns, timestamp_format, None, config)
    result = importer.run(settings, sources, store)
    _emit(as_json, result, f"{result['stored']:,} events stored, {result['duplicates']:,} were there already")


@store_app.command("prune")
def store_prune(
    store: Annotated[str, typer.Option(help="URL, sqlite:///path or postgresql://…")],
    keep_days: Annotated[float, typer.Option(min=0, help="Age of the oldest events and answers to keep.")],
    as_json: JsonOption = False,
) -> None:
    """Delete events and answers older than some days, and give the room back. Counts of past hours stay."""
    import time

    from recsys.store import EventStore

    opened = EventStore.open(store)
    deleted = opened.prune(int((time.time() - keep_days * 86_400) * 1000))
    opened.close()
    _emit(as_json, {"deleted": deleted}, f"{deleted:,} events deleted")


@app.command("serve")
def serve_command(
    releases: Annotated[Path, typer.Argument(help="A release, or a folder of releases.")],
    store: Annotated[str, typer.Option(help="URL of the event store.")] = "sqlite:///recsys-events.db",
    host: Annotated[str | None, typer.Option()] = None,
    port: Annotated[int | None, typer.Option()] = None,
    deadline_ms: Annotated[float | None, typer.Option(help="Longest an answer may take.")] = None,
    config: ConfigOption = None,
) -> None:
    """Answer `POST /v1/recommendations` until told to stop."""
    from serving.app import run
    from serving.config import ServeConfig

    values = {**_section(config, "serve"), **_given({"host": host, "port": port, "deadline_ms": deadline_ms})}
    run(ServeConfig.from_mapping(values, str(config or "recsys serve")), releases, store)


@app.command("nightly")
def nightly_command(
    sources: Sources,
    state: Annotated[Path, typer.Option(help="Folder of the job: features, checkpoints, releases.")],
    format_name: FormatOption = "generic",
    columns: MapOption = None,
    timestamp_format: TimestampFormatOption = None,
    recipe: RecipeOption = "default",
    activate: Annotated[bool, typer.Option("--activate", help="Point `current` at tonight's release.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Publish past the gate; the release is marked.")] = False,
    seed: SeedOption = None,
    max_minutes: MinutesOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Features → train → gate → refit on all data → publish, as one job."""
    from recsys.pipeline import nightly, tables

    name, report = nightly.run(
        _features_config(format_name, columns, timestamp_format, None, config),
        _recipe(recipe, seed, max_minutes),
        _optimize_config(config),
        sources,
        state,
        activate=activate,
        force=force,
    )
    _emit(
        as_json, {"release": name, **report}, f"{tables.accuracy_table(report)}\npublished {state / 'releases' / name}"
    )


@app.command("demo")
def demo_command(
    out: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("runs/demo"),
    serve: Annotated[bool, typer.Option("--serve", help="Serve the release afterwards.")] = False,
) -> None:
    """The whole road on the bundled sample, then a table."""
    from recsys.pipeline import demo, tables

    result = demo.run(out)
    print(tables.road_summary(result, out))  # noqa: T201
    if serve:
        serve_command(out / "releases", store=f"sqlite:///{out / 'store.db'}")


@benchmark_app.command("accuracy")
def benchmark_accuracy(
    sources: Sources,
    format_name: FormatOption = "generic",
    columns: MapOption = None,
    timestamp_format: TimestampFormatOption = None,
    protocol: Annotated[Protocol, typer.Option(help="time or last-out.")] = Protocol.TIME,
    recipe: RecipeOption = "default",
    seed: SeedOption = None,
    max_minutes: MinutesOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """From a raw file to figures: the whole road in a scratch folder."""
    import tempfile

    from recsys.pipeline import road, tables

    with tempfile.TemporaryDirectory(prefix="recsys-") as folder:
        result = road.run(
            _features_config(format_name, columns, timestamp_format, None, config),
            _recipe(recipe, seed, max_minutes),
            _optimize_config(config),
            sources,
            Path(folder),
            protocol,
        )
    values = {**result.report.to_json(), "seconds": result.seconds}
    _emit(as_json, values, tables.accuracy_table(values))


@benchmark_app.command("features")
def benchmark_features(
    events: Annotated[int, typer.Option(min=10_000, help="Events of the simulated log.")] = 100_000_000,
    as_json: JsonOption = False,
) -> None:
    """Memory and speed of the feature job on a simulated log, beside plain polars and RecTools."""
    from recsys.pipeline import features_benchmark, tables

    values = features_benchmark.run(events)
    _emit(as_json, values, tables.features_cost_table(values))


@benchmark_app.command("case")
def benchmark_case(
    features: Annotated[Path | None, typer.Option("--features", help="Features artifact; else the sample's.")] = None,
    recipe: RecipeOption = "default",
    max_minutes: MinutesOption = 2.0,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each side.")] = 1,
    rounds: Annotated[int, typer.Option(min=8, help="Timed answers a step.")] = 40,
    threads: Annotated[int, typer.Option(min=1, help="Threads of both sides.")] = 2,
    picture: Annotated[Path | None, typer.Option(help="Where a .png of the latencies goes.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Go on past the gate.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Unoptimised against optimised: latency, memory, disk and accuracy, split by cause."""
    from recsys.pipeline import case_benchmark, case_report, tables

    values = case_benchmark.run(
        features,
        _recipe(recipe, None, max_minutes),
        _optimize_config(config, num_threads=threads),
        num_seeds=seeds,
        num_rounds=rounds,
        force=force,
    )
    if picture is not None:
        case_report.picture(values, picture)
    _emit(as_json, values, tables.case_summary(values))


@benchmark_app.command("engine")
def benchmark_engine(
    releases: Annotated[Path, typer.Argument(help="A release, or a folder of releases.")],
    rounds: Annotated[int, typer.Option(min=1, max=400, help="Timed calls a row.")] = 30,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the engine.")] = 2,
    as_json: JsonOption = False,
) -> None:
    """Latency and throughput of opening and continuing windows, by length and batch, and the cost of a session."""
    from recsys.pipeline import engine_benchmark, tables

    values = engine_benchmark.run(releases, rounds, threads)
    _emit(as_json, values, tables.engine_table(values))


@benchmark_app.command("windows")
def benchmark_windows(
    context: Annotated[int, typer.Option(min=2, help="Events of a history.")] = 2048,
    recipe: RecipeOption = "default",
    as_json: JsonOption = False,
) -> None:
    """FLOPs of the window settings beside full attention."""
    from dataclasses import asdict

    from recsys.model.flops import compare_windows
    from recsys.pipeline import tables

    costs = compare_windows(context, _recipe(recipe, None, None).model)
    rows = [{**asdict(cost), "window": cost.window.model_dump()} for cost in costs]
    _emit(as_json, {"context": context, "settings": rows}, tables.windows_table(context, costs))


@benchmark_app.command("serve")
def benchmark_serve(
    releases: Annotated[Path, typer.Argument(help="A release, or a folder of releases.")],
    requests: Annotated[int, typer.Option(min=10, max=100_000, help="Of the mixed load.")] = 2_000,
    events: Annotated[int, typer.Option(min=1, max=20_000, help="Of each simulated user.")] = 2_048,
    as_json: JsonOption = False,
) -> None:
    """A real server under an open-loop load: late and degraded answers, percentiles, capacity, overload, memory."""
    from recsys.pipeline import serve_benchmark, tables

    values = serve_benchmark.run(releases, requests, events)
    _emit(as_json, values, tables.serving_table(values))


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _section(config: Path | None, name: str) -> dict[str, Any]:
    """One table of a TOML file; a file may hold several verbs' settings."""
    if config is None:
        return {}
    values = read_toml(config)
    known = {"features", "optimize", "serve"}
    for key in values:
        if key not in known:
            from recsys.contracts.errors import ConfigError

            raise ConfigError(f"{config}: unknown key {key!r}; known keys: {', '.join(sorted(known))}")
    return dict(values.get(name, {}))


def _features_config(
    format_name: str,
    columns: list[str] | None,
    timestamp_format: str | None,
    min_count: int | None,
    config: Path | None,
) -> "FeaturesConfig":
    from features.build import FeaturesConfig
    from recsys.contracts.errors import ConfigError

    mapping = {}
    for pair in columns or []:
        key, found, column = pair.partition("=")
        if not found or f"{key}_column" not in FeaturesConfig.model_fields:
            known = sorted(n.removesuffix("_column") for n in FeaturesConfig.model_fields if n.endswith("_column"))
            raise ConfigError(f"--map {pair}: expected NAME=COLUMN with NAME one of {', '.join(known)}")
        mapping[f"{key}_column"] = column
    values = _section(config, "features")
    if format_name != "generic" or "format" not in values:
        values["format"] = format_name
    values |= mapping | _given({"timestamp_format": timestamp_format, "min_count": min_count})
    return FeaturesConfig.from_mapping(values, str(config or "features"))


def _optimize_config(config: Path | None, **options: Any) -> "OptimizeConfig":
    from optimize.config import OptimizeConfig

    return OptimizeConfig.from_mapping(_section(config, "optimize") | options, str(config or "optimize"))


def _recipe(name: str, seed: int | None, max_minutes: float | None) -> "Recipe":
    from recsys.training.config import Recipe

    recipe = Recipe.load(name)
    values = recipe.model_dump()
    values["training"] |= _given({"seed": seed, "max_minutes": max_minutes})
    return Recipe.from_mapping(values, name)
