"""`recsys optimize CHECKPOINT` builds a release; `check` compares engines, `heads` shapes of the model."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from recsys.cli.options import (
    ConfigOption,
    EngineOption,
    FeaturesOption,
    JsonOption,
    RecipeOption,
    emit,
    given,
    load_recipe,
    numbers,
    optimize_config,
    section,
)
from recsys.contracts.precision import EngineName

DIFFERENT = 3
"""Exit status where answers differ by more than the tolerance."""


class _BuildByDefault(TyperGroup):
    """`recsys optimize CHECKPOINT …` is `recsys optimize build CHECKPOINT …`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["build", *args]
        return super().parse_args(ctx, args)


optimize_app = typer.Typer(
    cls=_BuildByDefault,
    no_args_is_help=True,
    help="Build a release from a checkpoint; check its engines; compare shapes of heads.",
)


@optimize_app.command("build")
def optimize_command(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint.")],
    features: FeaturesOption,
    out: Annotated[Path, typer.Option(help="Folder of releases.")],
    engine: Annotated[EngineName | None, typer.Option(help="Engine that serves. Default: cpu.")] = None,
    bits: Annotated[int | None, typer.Option(help="Bits of a weight: 8, 4, or 32 for float. Default: 8.")] = None,
    plan: Annotated[str | None, typer.Option(help="TensorRT plans beside the engine: bf16 or fp16.")] = None,
    activate: Annotated[bool, typer.Option(help="Point `current` at the new release.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Publish past the gate; the release is marked.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Round the weights, build engine and index, compare with float32, and publish a release."""
    from optimize import build
    from recsys.pipeline import progress, tables

    options: dict[str, Any] = given({"engine": engine, "bits": bits})
    if plan is not None:
        options["tensorrt"] = section(config, "optimize").get("tensorrt", {}) | {"precision": plan}
    settings = optimize_config(config, **options)
    with progress.bar("optimize") as advance:
        name, manifest = build.run(settings, checkpoint, features, out, activate=activate, force=force, advance=advance)
    emit(as_json, {"release": name, **manifest.model_dump()}, tables.release_summary(name, manifest, out))


@optimize_app.command("check")
def check_command(
    release: Annotated[Path, typer.Argument(help="A release, or a folder of releases.")],
    engine: EngineOption = None,
    device: Annotated[str | None, typer.Option(help="Where torch computes: cpu, cuda, cuda:1.")] = None,
    against: Annotated[EngineName | None, typer.Option(help="A second engine of the release.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="The checkpoint it was made from, in float32.")] = None,
    reference: Annotated[Path | None, typer.Option(help="A file of --save. Default: the release's own.")] = None,
    save: Annotated[Path | None, typer.Option(help="Write the engine's answers here, for another machine.")] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Error by layer too: of keys and values.")] = False,
    max_error: Annotated[float | None, typer.Option(help="Largest relative error allowed. Default: 0.03.")] = None,
    min_overlap: Annotated[float | None, typer.Option(help="Least mean overlap of top tens. Default: 0.9.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of a CPU engine.")] = 2,
    picture: Annotated[Path | None, typer.Option(help="Draw error and overlap here, a .png file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """The same inputs through two engines, or through one here and one elsewhere; exit status 3 if they differ."""
    from recsys.pipeline import consistency, tables
    from recsys.runtime.consistency import Tolerance

    limits = given({"max_relative_error": max_error, "min_top10_overlap": min_overlap})
    found = consistency.run(
        release,
        engine=engine,
        device=device,
        against=against,
        checkpoint=checkpoint,
        reference=reference,
        save=save,
        by_layer=layers,
        tolerance=Tolerance.from_mapping(limits, "recsys optimize check"),
        num_threads=threads,
    )
    if picture is not None:
        consistency.picture(found, picture)
    emit(as_json, {**found.model_dump(), "agrees": found.agrees}, tables.consistency_table(found))
    if not found.agrees:
        raise typer.Exit(DIFFERENT)


@optimize_app.command("heads")
def heads_command(
    features: FeaturesOption,
    heads: Annotated[str, typer.Option(help="Numbers of heads, by commas; the inner width stays.")] = "1,2,4,8",
    recipe: RecipeOption = "default",
    max_minutes: Annotated[float, typer.Option(help="Each training.")] = 1.0,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each shape.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, max=400, help="Timed calls a shape.")] = 30,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the engine.")] = 1,
    picture: Annotated[Path | None, typer.Option(help="Draw the frontier here, a .png file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Heads x head_dim at equal width: latency on the CPU engine, accuracy after a short training, the frontier."""
    from recsys.pipeline import benchmark_tables, heads_benchmark

    shapes = numbers(heads, "--heads")
    chosen = load_recipe(recipe, None, max_minutes)
    values = heads_benchmark.run(features, chosen, shapes, num_seeds=seeds, num_rounds=rounds, num_threads=threads)
    if picture is not None:
        heads_benchmark.picture(values, picture)
    emit(as_json, values, benchmark_tables.heads_table(values))
