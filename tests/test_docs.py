"""What the documentation says of settings is what they are."""

import ast
import inspect
import itertools
import json
import textwrap
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from recsys.contracts.config import Config
from recsys.model.config import ModelConfig
from recsys.training.config import Recipe, TrainingConfig
from recsys.windows import WindowConfig
from tests.architectures import ALSO_ALIKE, ARCHITECTURES, NAMED_ALIKE, OTHER_LAYERS, REFUSED

PAGE = Path(__file__).parents[1] / "docs" / "model.md"


def rows(config: type[Config], chosen: Config) -> list[str]:
    """A row of Markdown a setting: its default, what the default recipe has, and its docstring."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(config)))
    body = tree.body[0].body  # type: ignore[attr-defined]
    said = {
        one.target.id: " ".join(other.value.value.split())
        for one, other in itertools.pairwise(body)
        if isinstance(one, ast.AnnAssign) and isinstance(other, ast.Expr)
    }
    defaults = {name: field.get_default(call_default_factory=True) for name, field in config.model_fields.items()}
    return [
        f"| `{name}` | {told(default)} | {told(getattr(chosen, name))} | {said[name]} |"
        for name, default in defaults.items()
    ]


def told(value: Any) -> str:
    return "–" if value is None else json.dumps(value.value if isinstance(value, Enum) else value)


@pytest.mark.parametrize(
    ("config", "part"), [(ModelConfig, "model"), (WindowConfig, "window"), (TrainingConfig, "training")]
)
def test_every_setting_of_a_recipe_stands_in_the_table_as_it_is(config: type[Config], part: str) -> None:
    expected = rows(config, getattr(Recipe.load("default"), part))
    lines = PAGE.read_text().splitlines()
    start = lines.index(f"| `[{part}]` | default of the class | default recipe | |")
    assert lines[start + 2 : start + 2 + len(expected)] == expected


def test_what_the_default_has_for_sparse_logs_stands_in_its_table() -> None:
    recipe = Recipe.load("default")
    assert recipe.sparse is not None
    pairs = [(name, value, getattr(recipe.sparse.model, name)) for name, value in recipe.model]
    expected = [f"| `{name}` | {told(dense)} | {told(sparse)} |" for name, dense, sparse in pairs if dense != sparse]
    lines = PAGE.read_text().splitlines()
    start = lines.index(f"| default recipe | `[model]` | `[sparse.model]`, below {told(recipe.sparse.below)} |")
    assert lines[start + 2 : start + 3 + len(expected)] == [*expected, ""]


def test_what_the_default_has_for_long_logs_stands_in_its_table() -> None:
    recipe = Recipe.load("default")
    assert recipe.long is not None
    pairs = [(name, value, getattr(recipe.long.window, name)) for name, value in recipe.window]
    expected = [f"| `{name}` | {told(short)} | {told(long)} |" for name, short, long in pairs if short != long]
    lines = PAGE.read_text().splitlines()
    head = f"| default recipe | `[window]` | `[long.window]`, from a share of {told(recipe.long.from_share)} |"
    start = lines.index(head)
    assert lines[start + 2 : start + 3 + len(expected)] == [*expected, ""]


def test_the_decoders_that_were_tried_stand_on_the_page() -> None:
    lines = PAGE.read_text().splitlines()
    start = lines.index("| `architecture` | |")
    named = [line.split("|")[1].strip().split(", ") for line in lines[start + 2 : start + 7]]
    refused = [*named[3], *named[4]]
    assert [set(part) for part in (*named[:3], refused)] == [
        {*ARCHITECTURES, *ALSO_ALIKE},
        set(NAMED_ALIKE),
        set(OTHER_LAYERS),
        set(REFUSED),
    ]
