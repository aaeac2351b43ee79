"""Values of typed files as the texts that ids, event types and titles are: those that a CSV of the same log has."""

import math
from typing import Any, Final

import polars as pl

_INTEGERS: Final = 2.0**63
"""Whole numbers below this in size are written as integers."""


def as_text(column: pl.Expr, kind: pl.DataType) -> pl.Expr:
    """The column, whose type is `kind`, as strings; 17850.0 is "17850", and what is not a number is null.

    A column of whole numbers becomes one of floats where a value is missing: pandas has no other way.
    """
    if not kind.is_float():
        return column.cast(pl.String)
    is_whole = (column == column.round()) & (column.abs() < _INTEGERS)
    whole = column.cast(pl.Int64, strict=False).cast(pl.String)
    return pl.when(column.is_not_nan()).then(pl.when(is_whole).then(whole).otherwise(column.cast(pl.String)))


def json_text(value: Any) -> str | None:
    """The same for one value of a JSON line; a list is its text, and an object nothing, as in a Parquet file."""
    if isinstance(value, dict):
        return None
    if isinstance(value, float):
        if math.isnan(value):
            return None
        if value.is_integer() and abs(value) < _INTEGERS:
            return str(int(value))
    return None if value is None else str(value)
