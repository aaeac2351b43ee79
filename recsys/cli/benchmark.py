"""`recsys benchmark …`: figures, measured by one command each."""

from pathlib import Path
from typing import Annotated

import typer

from recsys.cli.options import (
    ConfigOption,
    EngineOption,
    FeaturesOption,
    FormatOption,
    JsonOption,
    MapOption,
    MinutesOption,
    RecipeOption,
    SeedOption,
    Sources,
    TimestampFormatOption,
    emit,
    features_config,
    load_recipe,
    numbers,
    optimize_config,
)
from recsys.contracts.protocol import Protocol

benchmark_app = typer.Typer(no_args_is_help=True, help="Figures, measured by one command each.")


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
    seeds: Annotated[int, typer.Option(min=1, help="Trainings; mean and spread over them are printed.")] = 1,
    peers: Annotated[bool, typer.Option("--peers", help="RecTools' models on the same split (make peers).")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder that keeps what is trained and measured: a killed run goes on.")
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """From a raw file to figures: the whole road, in a scratch folder unless one is given."""
    from recsys.pipeline import accuracy_benchmark, tables

    values = accuracy_benchmark.run(
        features_config(format_name, columns, timestamp_format, None, config),
        load_recipe(recipe, seed, max_minutes),
        optimize_config(config),
        sources,
        protocol,
        num_seeds=seeds,
        with_peers=peers,
        out=out,
    )
    emit(as_json, values, tables.accuracy_summary(values))


@benchmark_app.command("nightly")
def benchmark_nightly(
    sources: Sources,
    out: Annotated[Path, typer.Option(help="Folder of the run: a killed one goes on from it.")],
    format_name: FormatOption = "generic",
    columns: MapOption = None,
    timestamp_format: TimestampFormatOption = None,
    days: Annotated[int, typer.Option(min=1, help="Nights to compare: the last days of the log.")] = 30,
    max_nights: Annotated[int | None, typer.Option(min=0, help="Stop after so many, to go on later.")] = None,
    recipe: RecipeOption = "default",
    seed: SeedOption = None,
    max_minutes: MinutesOption = None,
    picture: Annotated[Path | None, typer.Option(help="Where a .png of the nights goes.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Training that starts from last night's checkpoint against training from scratch: accuracy and processor time."""
    from recsys.pipeline import benchmark_tables, nightly_benchmark

    values = nightly_benchmark.run(
        features_config(format_name, columns, timestamp_format, None, config),
        load_recipe(recipe, seed, max_minutes),
        sources,
        out,
        days,
        max_nights,
    )
    if picture is not None:
        nightly_benchmark.picture(values, picture)
    emit(as_json, values, benchmark_tables.nights_table(values))


@benchmark_app.command("features")
def benchmark_features(
    events: Annotated[int, typer.Option(min=10_000, help="Events of the simulated log.")] = 100_000_000,
    as_json: JsonOption = False,
) -> None:
    """Memory and speed of the feature job on a simulated log, beside plain polars and RecTools."""
    from recsys.pipeline import benchmark_tables, features_benchmark

    values = features_benchmark.run(events)
    emit(as_json, values, benchmark_tables.features_cost_table(values))


@benchmark_app.command("train")
def benchmark_train(
    sources: Annotated[list[Path] | None, typer.Argument(help="Event logs; without any, a simulated shop.")] = None,
    format_name: FormatOption = "generic",
    columns: MapOption = None,
    timestamp_format: TimestampFormatOption = None,
    seconds: Annotated[float, typer.Option(min=1, help="Timed training of a contender in a round.")] = 60,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each contender.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="Threads of every contender.")] = 2,
    as_json: JsonOption = False,
) -> None:
    """Real tokens a second and peak memory of training at width 128, beside RePlay and RecTools where installed."""
    from recsys.pipeline import benchmark_tables, train_benchmark

    settings = features_config(format_name, columns, timestamp_format, None, None) if sources else None
    values = train_benchmark.run(settings, sources or [], seconds, rounds, threads)
    emit(as_json, values, benchmark_tables.figures_table(values))


@benchmark_app.command("case")
def benchmark_case(
    features: Annotated[Path | None, typer.Option("--features", help="Features artifact; else the sample's.")] = None,
    recipe: RecipeOption = "default",
    max_minutes: MinutesOption = 2.0,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each side.")] = 1,
    rounds: Annotated[int, typer.Option(min=8, help="Timed answers a step.")] = 40,
    threads: Annotated[int, typer.Option(min=1, help="Threads of both sides.")] = 2,
    window: Annotated[
        int | None,
        typer.Option(
            min=8,
            max=1024,
            help="Events of a window in place of the recipe's; full attention reads two. Logs with longer histories "
            "then get the recipe's windows for long logs.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder that keeps what is trained: a killed run goes on.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Where a .png of the latencies goes.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Go on past the gate.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Unoptimised against optimised: latency, memory, disk and accuracy, split by cause."""
    from recsys.pipeline import benchmark_tables, case_benchmark, case_report

    chosen = load_recipe(recipe, None, max_minutes)
    values = case_benchmark.run(
        features,
        chosen if window is None else chosen.with_windows_of(window),
        optimize_config(config, num_threads=threads),
        num_seeds=seeds,
        num_rounds=rounds,
        force=force,
        out=out,
    )
    if picture is not None:
        case_report.picture(values, picture)
    emit(as_json, values, benchmark_tables.case_summary(values))


@benchmark_app.command("engine")
def benchmark_engine(
    releases: Annotated[Path, typer.Argument(help="A release, or a folder of releases.")],
    engine: EngineOption = None,
    rounds: Annotated[int, typer.Option(min=1, max=400, help="Timed calls a row.")] = 30,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the engine.")] = 2,
    checkpoint: Annotated[Path | None, typer.Option(help="Of the release: eager torch beside it.")] = None,
    device: Annotated[str | None, typer.Option(help="Of eager torch and the torch engine: cpu, cuda.")] = None,
    batches: Annotated[str, typer.Option(help="Windows at a time.")] = "1,8",
    as_json: JsonOption = False,
) -> None:
    """Latency and throughput of opening and continuing windows, by length and batch, and the cost of a session."""
    from recsys.pipeline import benchmark_tables, engine_benchmark

    values = engine_benchmark.run(
        releases,
        rounds,
        threads,
        engine,
        checkpoint=checkpoint,
        device=device,
        batches=numbers(batches, "--batches"),
    )
    emit(as_json, values, benchmark_tables.engine_table(values))


@benchmark_app.command("windows")
def benchmark_windows(
    context: Annotated[int, typer.Option(min=2, help="Events of a history.")] = 2048,
    recipe: RecipeOption = "default",
    as_json: JsonOption = False,
) -> None:
    """FLOPs of the window settings beside full attention."""
    from dataclasses import asdict

    from recsys.model.flops import compare_windows
    from recsys.pipeline import benchmark_tables

    costs = compare_windows(context, load_recipe(recipe, None, None).model)
    rows = [{**asdict(cost), "window": cost.window.model_dump()} for cost in costs]
    emit(as_json, {"context": context, "settings": rows}, benchmark_tables.windows_table(context, costs))


@benchmark_app.command("serve")
def benchmark_serve(
    releases: Annotated[Path, typer.Argument(help="A release, or a folder of releases.")],
    requests: Annotated[int, typer.Option(min=10, max=100_000, help="Of the mixed load.")] = 2_000,
    events: Annotated[int, typer.Option(min=1, max=20_000, help="Of each simulated user.")] = 2_048,
    kills: Annotated[int, typer.Option(min=0, max=1_000, help="Then kill -9 so many servers under load.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """A real server under an open-loop load: late and degraded answers, percentiles, capacity, overload, memory."""
    from recsys.pipeline import benchmark_tables, kill_benchmark, serve_benchmark

    values = serve_benchmark.run(releases, requests, events)
    if kills:
        values |= kill_benchmark.run(releases, kills)
    emit(as_json, values, benchmark_tables.figures_table(values))


@benchmark_app.command("histories")
def benchmark_histories(
    features: Annotated[
        Path | None, typer.Option("--features", help="Features artifact; else a simulated shop.")
    ] = None,
    window: Annotated[int, typer.Option(min=8, max=1024, help="Events of a window; full attention reads two.")] = 128,
    epochs: Annotated[float, typer.Option(min=0.01, help="Of each training.")] = 5.0,
    users: Annotated[int, typer.Option(min=10, help="Most users.")] = 600,
    longer_than: Annotated[
        int | None, typer.Option(min=1, help="Users have more events than this; default: than a window.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each rival.")] = 1,
    only: Annotated[list[str] | None, typer.Option(help="Rivals beside --against; default: all.")] = None,
    against: Annotated[str, typer.Option(help="What the others are held against.")] = "last window",
    as_json: JsonOption = False,
) -> None:
    """Long histories: the last window against summaries of earlier ones, full attention and a band; what each costs."""
    from recsys.pipeline import histories_benchmark, rivals_tables

    values = histories_benchmark.run(
        features,
        window_size=window,
        epochs=epochs,
        num_users=users,
        num_seeds=seeds,
        names=only,
        reference=against,
        longer_than=longer_than,
    )
    emit(as_json, values, rivals_tables.histories_table(values))


@benchmark_app.command("choices")
def benchmark_choices(
    features: FeaturesOption,
    only: Annotated[list[str] | None, typer.Option(help="Rivals beside the default's form; default: all.")] = None,
    epochs: Annotated[float, typer.Option(min=0.01, help="Of each training.")] = 5.0,
    users: Annotated[int, typer.Option(min=10, help="Most users: trained on, and ranked for.")] = 1_500,
    window: Annotated[int, typer.Option(min=8, max=1024, help="Events of a window.")] = 128,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each rival.")] = 1,
    protocol: Annotated[Protocol | None, typer.Option(help="Default: time where the log has times.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of finished trainings: a killed run goes on from it.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """What the default is made of: inputs, loss, output and blocks against others, on validation."""
    from recsys.pipeline import choices_benchmark, rivals_tables

    values = choices_benchmark.run(
        features,
        window_size=window,
        epochs=epochs,
        num_users=users,
        num_seeds=seeds,
        protocol=protocol,
        names=only,
        out=out,
    )
    emit(as_json, values, rivals_tables.choices_table(values))


@benchmark_app.command("forms")
def benchmark_forms(
    features: FeaturesOption,
    out: Annotated[Path, typer.Option(help="Folder of the study; one that was killed goes on.")],
    trials: Annotated[int, typer.Option(min=1, help="Forms to try in all.")] = 30,
    minutes: Annotated[float | None, typer.Option(min=0.01, help="No trial begins after so long.")] = None,
    epochs: Annotated[float, typer.Option(min=0.01, help="Of the default's form; others have half or twice.")] = 5.0,
    users: Annotated[int, typer.Option(min=10, help="Most users: trained on, and ranked for.")] = 1_500,
    window: Annotated[int, typer.Option(min=8, max=1024, help="Events of a window.")] = 128,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of the best form and the default's, to compare.")] = 3,
    protocol: Annotated[Protocol | None, typer.Option(help="Default: time where the log has times.")] = None,
    as_json: JsonOption = False,
) -> None:
    """A search over loss, output, blocks, inputs and how they are trained, all at once, on validation."""
    from recsys.pipeline import forms_benchmark, rivals_tables

    values = forms_benchmark.run(
        features,
        out,
        num_trials=trials,
        minutes=minutes,
        window_size=window,
        epochs=epochs,
        num_users=users,
        num_seeds=seeds,
        protocol=protocol,
    )
    emit(as_json, values, rivals_tables.forms_table(values))


@benchmark_app.command("fusion")
def benchmark_fusion(
    checkpoints: Annotated[
        list[Path], typer.Argument(help="Checkpoints of the same features, such as of several seeds.")
    ],
    features: FeaturesOption,
    splits: Annotated[int, typer.Option(min=1, help="Ways to halve the validation users.")] = 2,
    as_json: JsonOption = False,
) -> None:
    """What fusion with counts is made of: each term left out, other bounds, other searches, on validation."""
    from recsys.pipeline import fusion_benchmark, rivals_tables

    values = fusion_benchmark.run(features, checkpoints, num_splits=splits)
    emit(as_json, values, rivals_tables.fusion_table(values))
