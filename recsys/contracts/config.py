"""Configuration: frozen classes beside their owners, read from TOML at the edge, unknown keys refused."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from recsys.contracts.errors import ConfigError


class Config(BaseModel):
    """Base of every component's settings: keyword-only, frozen, checked at construction."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def from_mapping(cls, values: dict[str, Any], where: str) -> Self:
        """Build from plain values; the error is one line that begins with `where`.

        Raises:
            ConfigError: an unknown key, a wrong type or a value out of range.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(f"{where}: {first_problem(error, known=list(cls.model_fields))}") from None


def first_problem(error: ValidationError, known: list[str]) -> str:
    """The first problem of a pydantic error in one line: key, value found, rule."""
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"]) or "value"
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key!r}; known keys: {', '.join(sorted(known))}"
    message = f"{problem['msg'][0].lower()}{problem['msg'][1:]}"
    if isinstance(problem["input"], Mapping):  # of settings that do not go together; there may be secrets among them
        return message if not problem["loc"] else f"{key}: {message}"
    return f"{key} = {problem['input']!r}: {message}"


def read_toml(path: Path) -> dict[str, Any]:
    """The parsed file.

    Raises:
        ConfigError: no such file, or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
