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
    return [
        f"| `{name}` | {told(field.default)} | {told(getattr(chosen, name))} | {said[name]} |"
        for name, field in config.model_fields.items()
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
