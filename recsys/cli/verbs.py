"""Verbs from features to answers: train, optimize, evaluate, recommend, serve, nightly, demo."""

import os
from pathlib import Path
from typing import Annotated

import typer

from recsys.cli.options import (
    ConfigOption,
    FeaturesOption,
    FormatOption,
    JsonOption,
    MapOption,
    MinutesOption,
    RecipeOption,
    SeedOption,
    SourcesOrStore,
    TimestampFormatOption,
    emit,
    features_config,
    given,
    load_recipe,
    optimize_config,
    section,
)
from recsys.contracts.protocol import Protocol

verbs_app = typer.Typer()


@verbs_app.command("train")
def train_command(
    features: Annotated[Path, typer.Argument(help="Features artifact.")],
    out: Annotated[Path, typer.Option(help="Where the checkpoint goes.")],
    recipe: RecipeOption = "default",
    protocol: Annotated[Protocol, typer.Option(help="What may be fitted.")] = Protocol.TIME,
    final: Annotated[bool, typer.Option("--final", help="Fit everything: same as --protocol final.")] = False,
    refit: Annotated[
        Path | None, typer.Option(help="A checkpoint of these features: as many epochs, no validation.")
    ] = None,
    start: Annotated[
        Path | None, typer.Option(help="An older checkpoint to go on from; new items get rows of their own.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    max_minutes: MinutesOption = None,
    seed: SeedOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a decoder on windows of histories and write a checkpoint with its loss curve."""
    from recsys.pipeline import tables
    from recsys.training import train
    from recsys.training.processes import joined

    protocol = Protocol.FINAL if final else protocol
    settings = load_recipe(recipe, seed, max_minutes)
    with joined(settings.training.device) as processes:
        manifest = train.run(
            settings,
            features,
            out,
            protocol=protocol,
            refit=refit,
            resume=resume,
            start=start,
            processes=processes,
        )
    if processes.is_first:
        emit(as_json, manifest.model_dump(), tables.training_summary(manifest, out))


@verbs_app.command("search")
def search_command(
    features: Annotated[Path, typer.Argument(help="Features artifact.")],
    out: Annotated[Path, typer.Option(help="Folder of the study; one that was killed goes on.")],
    recipe: RecipeOption = "default",
    protocol: Annotated[Protocol, typer.Option(help="Whose validation decides.")] = Protocol.TIME,
    trials: Annotated[int, typer.Option(min=1, help="Recipes to try in all.")] = 20,
    minutes: Annotated[float, typer.Option(min=0.01, help="For all trials; each has an equal share at most.")] = 60.0,
    seed: SeedOption = None,
    as_json: JsonOption = False,
) -> None:
    """Look for a better recipe on validation, and write it as TOML for `train --recipe`."""
    from recsys.pipeline import tables
    from recsys.training import search

    settings = load_recipe(recipe, seed, None)
    found = search.run(settings, features, out, protocol=protocol, num_trials=trials, minutes=minutes)
    values = {"trials": found.trials, "recipe": str(found.place), **found.recipe.model_dump(mode="json")}
    emit(as_json, values, tables.trials_table(found.trials, found.place))


@verbs_app.command("evaluate")
def evaluate_command(
    release: Annotated[Path, typer.Argument(help="A release, or a folder of releases.")],
    features: FeaturesOption,
    protocol: Annotated[Protocol | None, typer.Option(help="Default: the release's own.")] = None,
    against: Annotated[
        str | None, typer.Option(help="Another release, or popularity, trending, last_item, cooccurrence.")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="What the verdict is about. Default: ndcg@10.")] = None,
    margin: Annotated[
        float | None, typer.Option(min=0.0, max=0.5, help="Loss that counts as none, as a share. Default: 0.003.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write a page with figures here, an .html file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Rank the full catalogue for held-out users, beside four baselines."""
    from recsys.pipeline import evaluation, tables

    choices = given({"metric": metric, "margin": margin})
    if report is not None:
        evaluation.check_page(report)  # before the test set is looked at
    found = evaluation.run(release, features, protocol, against=against, **choices)
    emit(as_json, found.to_json(), tables.evaluation_summary(found.to_json()))
    if report is not None:
        evaluation.write_page(found, report)


@verbs_app.command("recommend")
def recommend_command(
    release: Annotated[Path, typer.Argument(help="A release, or a folder of releases.")],
    user: Annotated[str | None, typer.Option(help="A user of the features.")] = None,
    features: Annotated[Path | None, typer.Option(help="Features artifact, where users' histories are.")] = None,
    history: Annotated[Path | None, typer.Option(help="A file with one item_id a line, oldest first.")] = None,
    everyone: Annotated[bool, typer.Option("--all", help="All users of the features, into --out.")] = False,
    users: Annotated[Path | None, typer.Option(help="A file with one user_id a line: these users, into --out.")] = None,
    out: Annotated[Path | None, typer.Option(help="A .parquet file for --all or --users.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, max=1000)] = 10,
    exclude_seen: Annotated[bool, typer.Option("--exclude-seen", help="Leave out items of the history.")] = False,
    category: Annotated[list[str] | None, typer.Option(help="Only items of this category; may be repeated.")] = None,
    min_price: Annotated[float | None, typer.Option(help="Only items of this price or more.")] = None,
    max_price: Annotated[float | None, typer.Option(help="Only items of this price or less.")] = None,
    popular_for_unknown: Annotated[
        bool,
        typer.Option(
            "--popular-for-unknown/--no-popular-for-unknown",
            help="With --all or --users: popular items for users without an item that the release knows, or no rows.",
        ),
    ] = True,
    with_source: Annotated[
        bool, typer.Option("--with-source", help="With --all or --users: a column `source`: model or popular.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Recommend for one user or one history, or for many users into a Parquet file."""
    from dataclasses import asdict

    from recsys.contracts.errors import ConfigError
    from recsys.pipeline import recommend, recommend_all, tables
    from recsys.runtime.filters import ItemFilters

    ways = {"--user": user, "--history": history, "--all": everyone or None, "--users": users}
    if len(given(ways)) != 1:
        raise ConfigError("give one of --user with --features, --history FILE, or --all or --users FILE with --out")
    asked = given({"category": category or None, "min_price": min_price, "max_price": max_price})
    keep = ItemFilters.from_mapping(asked, "recsys recommend").keep if asked else None
    if user is not None or history is not None:
        items = recommend.run(
            release, user_id=user, features=features, history=history, k=k, exclude_seen=exclude_seen, keep=keep
        )
        emit(as_json, {"items": [asdict(item) for item in items]}, tables.items_table(items))
        return
    if features is None or out is None:
        raise ConfigError("--all and --users need --features DIR, where the histories are, and --out FILE.parquet")
    values = recommend_all.run(
        release,
        features,
        out,
        users=users,
        k=k,
        exclude_seen=exclude_seen,
        keep=keep,
        popular_for_unknown=popular_for_unknown,
        with_source=with_source,
    )
    emit(as_json, values, tables.batch_summary(values))


@verbs_app.command("serve")
def serve_command(
    releases: Annotated[Path, typer.Argument(help="A release, or a folder of releases.")],
    store: Annotated[str, typer.Option(help="URL of the event store.")] = "sqlite:///recsys-events.db",
    host: Annotated[str | None, typer.Option()] = None,
    port: Annotated[int | None, typer.Option()] = None,
    deadline_ms: Annotated[float | None, typer.Option(help="Longest an answer may take.")] = None,
    config: ConfigOption = None,
) -> None:
    """Answer `POST /v1/recommendations` until told to stop."""
    # Read when numpy's and faiss's libraries are loaded, below. Their threads spin while they wait for one another,
    # on cores that other requests want; the engine has threads of its own.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

    from serving.app import run
    from serving.config import ServeConfig

    values = {**section(config, "serve"), **given({"host": host, "port": port, "deadline_ms": deadline_ms})}
    run(ServeConfig.from_mapping(values, str(config or "recsys serve")), releases, store)


@verbs_app.command("nightly")
def nightly_command(
    sources: SourcesOrStore,
    state: Annotated[Path, typer.Option(help="Folder of the job: features, checkpoints, releases.")],
    format_name: FormatOption = "generic",
    columns: MapOption = None,
    timestamp_format: TimestampFormatOption = None,
    recipe: RecipeOption = "default",
    activate: Annotated[bool, typer.Option("--activate", help="Point `current` at tonight's release.")] = False,
    start: Annotated[
        bool, typer.Option("--start/--from-scratch", help="Go on from last night's checkpoints, or train anew.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Publish past the gate; the release is marked.")] = False,
    seed: SeedOption = None,
    max_minutes: MinutesOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Features → train → gate → refit on all data → publish, as one job."""
    from recsys.pipeline import nightly, tables

    name, manifest, report = nightly.run(
        features_config(format_name, columns, timestamp_format, None, config),
        load_recipe(recipe, seed, max_minutes),
        optimize_config(config),
        sources,
        state,
        activate=activate,
        start=start,
        force=force,
    )
    said = {key: manifest.metrics[key] for key in ("gate", "forced_past_gate")}
    summary = tables.release_summary(name, manifest, state / "releases")
    emit(as_json, {"release": name, **said, **report}, f"{tables.accuracy_table(report)}\npublished {summary}")


@verbs_app.command("demo")
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
