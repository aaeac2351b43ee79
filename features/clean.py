"""Raw rows to canonical events: every row is kept, left out by a rule, or set aside with a reason."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import polars as pl

from features import sources
from features.config import FeaturesConfig
from features.formats import Format
from features.sources import LINE
from recsys.contracts.errors import DataError
from recsys.contracts.events import DEFAULT_EVENT_TYPE, MAX_ID_LENGTH

SCHEMA: Final = {
    "user_id": pl.String,
    "item_id": pl.String,
    "timestamp_ms": pl.Int64,
    "event_type": pl.String,
    "title": pl.String,
    "category": pl.String,
    "price": pl.Float64,
    "source": pl.UInt32,
    "row": pl.UInt32,
}
MAX_FUTURE_MS: Final = 2 * 24 * 3600 * 1000
"""A timestamp further ahead of the clock than this is a bad row."""

_DATETIME_FORMATS = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d")
_OPTIONAL = ("event_type", "title", "category", "price")


@dataclass(frozen=True, slots=True)
class CleanFile:
    """One file, row by row accounted for."""

    events: pl.DataFrame
    """Columns of SCHEMA."""
    quarantine: pl.DataFrame
    """file, line, reason, row."""
    left_out: dict[str, int]
    num_rows: int


def clean(path: Path, source: int, layout: Format, config: FeaturesConfig, now_ms: int) -> CleanFile:
    """Read and check one file.

    Raises:
        DataError: a required column is missing, or too many rows are bad.
    """
    raw = sources.read(path, layout)
    frame = raw.rows
    names = _columns(path, frame, layout)
    lazy = frame.lazy().with_columns(
        user_id=pl.col(names["user_id"]).str.strip_chars(), item_id=pl.col(names["item_id"]).str.strip_chars()
    )
    lazy = lazy.with_columns(layout.user_expr, layout.item_expr)
    lazy = lazy.with_columns(timestamp_ms=_timestamp(names.get("timestamp"), config.timestamp_format, source))
    rules = [pl.when(rule).then(pl.lit(reason)) for reason, rule in layout.left_out]
    lazy = lazy.with_columns(
        left_out=pl.coalesce(*rules) if rules else pl.lit(None, pl.String), reason=_problem(names, now_ms)
    )
    rows = lazy.collect()
    problems = rows.filter(pl.col("left_out").is_null() & pl.col("reason").is_not_null())
    quarantine = pl.concat([_bad_rows(path, problems, frame.columns), _bad_lines(path, raw.bad)]).sort("line")
    num_rows = len(rows) + len(raw.bad)
    _check_share(path, quarantine, num_rows, config)
    counts = rows.filter(pl.col("left_out").is_not_null()).group_by("left_out").len()
    good = rows.filter(pl.col("left_out").is_null() & pl.col("reason").is_null())
    return CleanFile(_canonical(good, names, layout, source), quarantine, dict(counts.rows()), num_rows)


def _columns(path: Path, frame: pl.DataFrame, layout: Format) -> dict[str, str]:
    """Canonical field -> the file's column; optional fields only where the file has them."""
    known = {name.lower(): name for name in frame.columns if name != LINE}
    wanted = {"user_id": layout.user, "item_id": layout.item, "timestamp": layout.timestamp}
    wanted |= {name: getattr(layout, name) for name in _OPTIONAL}
    found: dict[str, str] = {}
    for field, candidates in wanted.items():
        matches = [known[name.lower()] for name in candidates if name.lower() in known]
        if matches:
            found[field] = matches[0]
        elif candidates and field not in _OPTIONAL:
            hint = (
                f"map it with --map {field.removesuffix('_id')}=COLUMN"
                if layout.name == "generic"
                else "check --format"
            )
            raise DataError(f"{path}: no column {candidates[0]!r}; found {', '.join(known.values()) or 'none'}; {hint}")
    for column in layout.extra:
        if column not in frame.columns:
            raise DataError(f"{path}: no column {column!r}; found {', '.join(known.values())}; check --format")
    return found


def _timestamp(column: str | None, pattern: str | None, source: int) -> pl.Expr:
    """Milliseconds: epoch numbers by magnitude, or a date; an order number where the log has no times."""
    if column is None:
        return pl.int_range(pl.len(), dtype=pl.Int64) + (source << 32)
    text = pl.col(column).str.strip_chars()
    if pattern is not None:
        return text.str.to_datetime(pattern, strict=False, time_unit="ms").dt.epoch("ms")
    number = text.cast(pl.Float64, strict=False)
    size = number.abs()
    scale = pl.when(size < 1e11).then(1e3).when(size < 1e14).then(1.0).when(size < 1e17).then(1e-3).otherwise(1e-6)
    plain = text.str.replace(r"(\d)T(\d)", "$1 $2").str.replace(r"(Z| ?UTC|\+00:?00)$", "")
    dates = [plain.str.to_datetime(f, strict=False, time_unit="ms").dt.epoch("ms") for f in _DATETIME_FORMATS]
    zoned = plain.str.to_datetime("%Y-%m-%d %H:%M:%S%.f%:z", strict=False, time_unit="ms", time_zone="UTC")
    return pl.coalesce((number * scale).round().cast(pl.Int64, strict=False), *dates, zoned.dt.epoch("ms"))


def _problem(names: dict[str, str], now_ms: int) -> pl.Expr:
    """The first reason why a row cannot be used, null if there is none."""
    checks: list[tuple[str, pl.Expr]] = []
    for field, word in (("user_id", "user"), ("item_id", "item")):
        checks.append((f"{word} is empty", pl.col(field).is_null() | (pl.col(field) == "")))
        checks.append((f"{word} is longer than {MAX_ID_LENGTH}", pl.col(field).str.len_chars() > MAX_ID_LENGTH))
    if "timestamp" in names:
        moment = pl.col("timestamp_ms")
        missing = pl.col(names["timestamp"]).is_null() | (pl.col(names["timestamp"]).str.strip_chars() == "")
        checks.append(("timestamp is empty", missing))
        checks.append(("timestamp does not parse", moment.is_null()))
        checks.append(("timestamp before 1970", moment < 0))
        checks.append(("timestamp in the future", moment > now_ms + MAX_FUTURE_MS))
    return pl.coalesce(*(pl.when(check).then(pl.lit(reason)) for reason, check in checks))


def _bad_rows(path: Path, rows: pl.DataFrame, columns: list[str]) -> pl.DataFrame:
    text = pl.concat_str([pl.col(c).fill_null("") for c in columns if c != LINE], separator=",")
    return rows.select(file=pl.lit(path.name), line=pl.col(LINE).cast(pl.UInt32), reason="reason", row=text)


def _bad_lines(path: Path, bad: list[tuple[int, str, str]]) -> pl.DataFrame:
    schema = {"file": pl.String, "line": pl.UInt32, "reason": pl.String, "row": pl.String}
    return pl.DataFrame([(path.name, *line) for line in bad], schema=schema, orient="row")


def _check_share(path: Path, quarantine: pl.DataFrame, num_rows: int, config: FeaturesConfig) -> None:
    if len(quarantine) <= max(1, config.max_bad_share * num_rows):
        return
    line, reason, text = quarantine.select("line", "reason", "row").row(0)
    hint = "; give --timestamp-format" if "timestamp" in reason else ""
    raise DataError(
        f"{path}: {len(quarantine):,} of {num_rows:,} rows cannot be read, at most {config.max_bad_share:.0%} are "
        f"tolerated; first: line {line}, {reason}: {text[:80]!r}{hint}"
    )


def _canonical(rows: pl.DataFrame, names: dict[str, str], layout: Format, source: int) -> pl.DataFrame:
    def optional(field: str) -> pl.Expr:
        return pl.col(names[field]).str.strip_chars() if field in names else pl.lit(None, pl.String)

    kind = optional("event_type")
    if layout.event_types:
        kind = kind.replace(dict(layout.event_types))
    default = layout.fixed_event_type or DEFAULT_EVENT_TYPE
    return rows.select(
        "user_id",
        "item_id",
        "timestamp_ms",
        event_type=pl.coalesce(pl.when(kind != "").then(kind), pl.lit(default)),
        title=pl.when(optional("title") != "").then(optional("title")),
        category=pl.when(optional("category") != "").then(optional("category")),
        price=optional("price").cast(pl.Float64, strict=False),
        source=pl.lit(source, pl.UInt32),
        row=pl.col(LINE).cast(pl.UInt32),
    ).cast(SCHEMA)  # type: ignore[arg-type]
