"""What the verbs share: options, and the settings made of options and TOML files."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recsys.contracts.config import read_toml
from recsys.contracts.errors import ConfigError
from recsys.contracts.precision import EngineName

if TYPE_CHECKING:
    from features.build import FeaturesConfig
    from optimize.config import OptimizeConfig
    from recsys.training.config import Recipe

Sources = Annotated[list[Path], typer.Argument(help="Event logs: files or folders.")]
SourcesOrStore = Annotated[
    list[str], typer.Argument(help="Event logs: files or folders; or an event store: sqlite:///path, postgresql://…")
]
FormatOption = Annotated[str, typer.Option("--format", help="Named format of the log, or generic.")]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="TOML file with the settings of this verb.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
RecipeOption = Annotated[str, typer.Option("--recipe", help="A bundled recipe or a path to a .toml file.")]
EngineOption = Annotated[
    EngineName | None, typer.Option("--engine", help="Another engine than the release's own.", show_choices=True)
]
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


def emit(as_json: bool, values: dict[str, Any], summary: str) -> None:
    """Print `values` for machines or `summary` for people."""
    print(json.dumps(values, indent=2, default=str) if as_json else summary)  # noqa: T201


def given(values: dict[str, Any]) -> dict[str, Any]:
    """The options that were given: those that are not None."""
    return {key: value for key, value in values.items() if value is not None}


def section(config: Path | None, name: str) -> dict[str, Any]:
    """One table of a TOML file; a file may hold several verbs' settings."""
    if config is None:
        return {}
    values = read_toml(config)
    known = {"features", "optimize", "serve"}
    for key in values:
        if key not in known:
            raise ConfigError(f"{config}: unknown key {key!r}; known keys: {', '.join(sorted(known))}")
    return dict(values.get(name, {}))


def features_config(
    format_name: str,
    columns: list[str] | None,
    timestamp_format: str | None,
    min_count: int | None,
    config: Path | None,
) -> "FeaturesConfig":
    """Settings of the feature job from options over the file; `--map` pairs name columns."""
    from features.build import FeaturesConfig

    mapping = {}
    for pair in columns or []:
        key, found, column = pair.partition("=")
        if not found or f"{key}_column" not in FeaturesConfig.model_fields:
            known = sorted(n.removesuffix("_column") for n in FeaturesConfig.model_fields if n.endswith("_column"))
            raise ConfigError(f"--map {pair}: expected NAME=COLUMN with NAME one of {', '.join(known)}")
        mapping[f"{key}_column"] = column
    values = section(config, "features")
    if format_name != "generic" or "format" not in values:
        values["format"] = format_name
    values |= mapping | given({"timestamp_format": timestamp_format, "min_count": min_count})
    return FeaturesConfig.from_mapping(values, str(config or "features"))


def optimize_config(config: Path | None, **options: Any) -> "OptimizeConfig":
    """Settings of optimize: options over the file."""
    from optimize.config import OptimizeConfig

    return OptimizeConfig.from_mapping(section(config, "optimize") | options, str(config or "optimize"))


def load_recipe(name: str, seed: int | None, max_minutes: float | None) -> "Recipe":
    """A bundled recipe, or one of a file, with the options in it."""
    from recsys.training.config import Recipe

    recipe = Recipe.load(name)
    values = recipe.model_dump()
    values["training"] |= given({"seed": seed, "max_minutes": max_minutes})
    return Recipe.from_mapping(values, name)


def numbers(text: str, option: str) -> list[int]:
    """Numbers from 1 on by commas.

    Raises:
        ConfigError: something else.
    """
    found = [int(number) for number in text.split(",") if number.strip().isdecimal()]
    if len(found) < text.count(",") + 1 or not all(found):
        raise ConfigError(f"{option} {text!r}: expected numbers from 1 on by commas, as 1,2,4")
    return found
