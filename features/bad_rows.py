"""Rows that cannot be used: why, what is said of them, and when a file has too many."""

from pathlib import Path
from typing import Final

import polars as pl

from features.config import FeaturesConfig
from features.formats import Format
from features.lines import LINE, NO_OBJECT, BadLine
from recsys.contracts.errors import RefusedError
from recsys.contracts.events import MAX_ID_LENGTH

MAX_FUTURE_MS: Final = 2 * 24 * 3600 * 1000
"""A timestamp further ahead of the clock than this is a bad row."""
MAX_TYPE_LENGTH: Final = 64
"""Longest event type, in characters."""
NUM_SAID: Final = 100
"""Bad rows of a file that a refusal may speak of: the first ones."""
_NO_EPOCH: Final = "timestamp is no epoch number (it would be before 1990)"


def problems(
    rows: pl.DataFrame, layout: Format, columns: dict[str, list[str]], now_ms: int
) -> list[tuple[str, pl.Expr]]:
    """The declared schema: why a row cannot be used, and which rows those are."""
    limits = {"user_id": ("user", MAX_ID_LENGTH), "item_id": ("item", MAX_ID_LENGTH)}
    if "event_type" in columns:
        limits["event_type"] = ("event type", MAX_TYPE_LENGTH)
    num_bytes = rows.select(pl.col(*limits).str.len_bytes().max()).row(0, named=True)
    checks = [(f"{limits[field][0]} is empty", pl.col(field).is_null()) for field in ("user_id", "item_id")]
    checks += [
        (f"{word} is longer than {limit}", pl.col(field).str.len_chars() > limit)
        for field, (word, limit) in limits.items()
        if (num_bytes[field] or 0) > limit  # as many characters, at most
    ]
    if layout.timestamp:
        moment = pl.col("timestamp_ms")
        checks.append(("timestamp is empty", pl.col("no_timestamp")))
        checks.append(("timestamp does not parse", moment.is_null()))
        checks.append(("timestamp before 1970", moment < 0))
        checks.append((_NO_EPOCH, pl.col("no_epoch")))
        checks.append(("timestamp in the future", moment > now_ms + MAX_FUTURE_MS))
    if "price" in columns:
        checks.append(("price does not parse", pl.col("bad_price")))
        checks.append(("price is negative or infinite", pl.col("infinite_price") | (pl.col("price") < 0)))
    numbers = [(name, pl.col(name).cast(pl.Float64, strict=False)) for name in layout.numbers]
    checks += [(f"{name} is no number", ~number.is_finite().fill_null(False)) for name, number in numbers]
    return checks


def of_rows(
    path: Path, rows: pl.DataFrame, checked: pl.DataFrame, columns: dict[str, list[str]], reason: pl.Series
) -> pl.DataFrame:
    """file, line, reason, row, user and found of bad rows, each with its reason; `checked` are the same rows, read."""
    texts = [pl.col(c).cast(pl.String).fill_null("") for c in rows.columns if c != LINE]
    text = pl.concat_str(texts, separator=",") if texts else pl.lit("")
    return rows.select(
        file=pl.lit(path.name),
        line=pl.col(LINE).cast(pl.UInt32),
        reason=reason.cast(pl.String),
        row=text,
        user=checked["user_id"],
        found=_found(rows, columns, reason),
    )


def _found(rows: pl.DataFrame, columns: dict[str, list[str]], reason: pl.Series) -> pl.Series:
    """What stands in the field that a reason begins with, for the message of a refusal: that is no user's id."""
    fields = {name: names for name, names in columns.items() if name != "user_id"}
    told = [
        pl.when(reason.str.starts_with(field.removesuffix("_id").replace("_", " "))).then(
            pl.coalesce(pl.col(names).cast(pl.String))
        )
        for field, names in fields.items()
    ]
    return rows.select(found=pl.coalesce(*told))["found"]


def of_lines(path: Path, bad: list[BadLine]) -> pl.DataFrame:
    """The same of lines that are no rows: nobody knows their user."""
    texts = dict.fromkeys(("reason", "row", "user", "found"), pl.String)
    schema = {"file": pl.String, "line": pl.UInt32, **texts}
    return pl.DataFrame([(path.name, *line, None, None) for line in sorted(bad)], schema=schema, orient="row")


def check_share(
    path: Path, num_bad: int, first_bad: pl.DataFrame, num_rows: int, config: FeaturesConfig, share: float = 1.0
) -> None:
    """Refuse a file, of which `share` has been read, if too many rows are bad even when all that come are good.

    The rest counts as twice as many rows a byte as there were so far.
    """
    most_rows = num_rows * (1 + 2 * (1 / max(share, 1e-6) - 1))
    if num_bad <= max(config.max_bad_share * most_rows, 1 if num_rows > 1 else 0):
        return
    first = first_bad.row(0, named=True)
    found = "" if first["found"] is None else f", found {first['found'][:80]!r}"
    lines = ", ".join(str(line) for line in first_bad["line"].unique(maintain_order=True).head(3))
    raise RefusedError(
        f"{path}: {num_bad:,} of {'the first ' if share < 1 else ''}{num_rows:,} rows cannot be read, at most "
        f"{config.max_bad_share:.0%} are tolerated; lines {lines} …; first: {first['reason']}"
        f"{found}{_hint(first, config)}"
    )


def _hint(first: dict[str, str], config: FeaturesConfig) -> str:
    reason = first["reason"]
    if reason == NO_OBJECT and first["row"].lstrip().startswith("["):
        return "; a JSON array is not read: write one object a line"
    if "does not parse" in reason and config.timestamp_format is not None:
        return f"; it is not of the form {config.timestamp_format!r}, correct --timestamp-format"
    if reason == _NO_EPOCH:
        return "; for dates in digits give --timestamp-format, such as '%Y%m%d' for 20101201"
    if "timestamp" in reason:
        return "; give --timestamp-format, or check the column"
    return "; save the file as UTF-8" if "UTF-8" in reason else "; correct the file, or raise max_bad_share"
