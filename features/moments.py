"""Texts and numbers to moments: epoch numbers by magnitude, and dates."""

from typing import Final

import polars as pl

from features.values import as_text

EARLIEST_NUMBER_MS: Final = 631_152_000_000
"""Numbers for moments before 1990 are no epoch numbers: dates in digits, such as 20101201, are all among them."""
_DATETIME_FORMATS: Final = {"%Y-%m-%d %H:%M:%S%.f": 19, "%Y-%m-%d %H:%M": 16, "%Y-%m-%d": 10}
"""What is tried in turn, and the least number of bytes with two digits in every field."""
_CUT_SHORT: Final = r"[-:]\d$"
"""A date or time that ends in a field of one digit: 10:1 may be what is left of 10:15."""
_ZONED_FORMATS: Final = ("%Y-%m-%d %H:%M:%S%.f%:z", "%Y-%m-%d %H:%M%:z")


def to_milliseconds(column: pl.Series, pattern: str | None) -> pl.Series:
    """Milliseconds since 1970: epoch numbers by magnitude, or dates; null where nothing parses.

    Each way of reading is tried only on what the ones before it could not read.
    """
    if isinstance(column.dtype, pl.Date | pl.Datetime):
        return column.cast(pl.Datetime("ms", getattr(column.dtype, "time_zone", None))).dt.epoch("ms")
    if pattern is not None:
        return (
            column.to_frame()
            .select(as_text(pl.all(), column.dtype).str.strip_chars())
            .to_series()
            .str.to_datetime(pattern, strict=False, time_unit="ms")
            .dt.epoch("ms")
        )
    if column.dtype.is_numeric():
        return _epoch(column.cast(pl.Float64))
    text = column.cast(pl.String)
    result = _epoch(text.cast(pl.Float64, strict=False))
    plain = (
        text.str.replace(r"(\d)T(\d)", "$1 $2").str.replace(r"(Z| ?UTC| ?\+00:?00)$", "")
        if result.has_nulls()
        else text
    )
    for reading in (*_DATETIME_FORMATS, *_ZONED_FORMATS):
        missing = result.is_null() & text.is_not_null()
        if not missing.any():
            break
        result = result.scatter(missing.arg_true(), _dates(plain.filter(missing), reading))
    return result


def is_no_epoch(column: pl.Series, milliseconds: pl.Series, pattern: str | None) -> pl.Expr:
    """Which moments were read from numbers that are too small for it; few columns have any moment that early."""
    earliest = milliseconds.min()
    if pattern is not None or column.dtype.is_temporal() or earliest is None or earliest >= EARLIEST_NUMBER_MS:  # type: ignore[operator]
        return pl.lit(False)
    return pl.lit((milliseconds < EARLIEST_NUMBER_MS) & column.cast(pl.Float64, strict=False).is_not_null())


def _epoch(number: pl.Series) -> pl.Series:
    lowest, highest = number.min(), number.max()
    if lowest is not None and lowest >= 1e11 and highest < 1e14:  # type: ignore[operator]
        return number.round().cast(pl.Int64, strict=False)  # NaN is neither lowest nor highest
    frame = pl.DataFrame({"n": number})
    n, size = pl.col("n"), pl.col("n").abs()
    scale = pl.when(size < 1e11).then(1e3).when(size < 1e14).then(1.0).when(size < 1e17).then(1e-3).otherwise(1e-6)
    return frame.select((n * scale).round().cast(pl.Int64, strict=False))["n"]


def _dates(plain: pl.Series, pattern: str) -> pl.Series:
    if pattern in _DATETIME_FORMATS:
        moments = plain.str.to_datetime(pattern, strict=False, time_unit="ms").dt.epoch("ms")
        shortest = plain.str.len_bytes().min()
        if shortest is not None and shortest < _DATETIME_FORMATS[pattern]:  # type: ignore[operator]
            return moments.to_frame("ms").select(pl.when(~plain.str.contains(_CUT_SHORT)).then("ms")).to_series()
        return moments
    whole = plain.str.replace(r"(:\d\d(?:\.\d+)?) ?([+-]\d\d)$", "${1}${2}:00")
    return whole.str.to_datetime(pattern, strict=False, time_unit="ms", time_zone="UTC").dt.epoch("ms")
