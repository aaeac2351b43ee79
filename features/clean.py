"""Raw rows to canonical events: every row is kept, left out by a rule, or set aside with a reason."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import polars as pl

from features import sources
from features.config import FeaturesConfig
from features.formats import Format
from features.lines import LINE, BadLine
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
    bad_lines = _bad_lines(path, raw.bad)
    if raw.rows.is_empty():
        _check_share(path, bad_lines, len(raw.bad), config)
    columns = _columns(path, raw.rows, layout)
    rows = _canonical(raw.rows.lazy(), columns, layout, config, source)
    rules = [pl.when(rule).then(pl.lit(reason)) for reason, rule in layout.left_out]
    checked = rows.with_columns(
        left_out=pl.coalesce(*rules) if rules else pl.lit(None, pl.String), reason=_problem(layout, now_ms)
    ).collect()
    is_bad = checked["left_out"].is_null() & checked["reason"].is_not_null()
    quarantine = bad_lines
    if is_bad.any():
        bad_rows = _bad_rows(path, raw.rows.filter(is_bad), checked["reason"].filter(is_bad))
        quarantine = pl.concat([bad_rows, bad_lines]).sort("line", maintain_order=True)
    num_rows = len(checked) + len(raw.bad)
    _check_share(path, quarantine, num_rows, config)
    left_out = checked["left_out"].drop_nulls()
    counts = dict(left_out.value_counts().rows()) if len(left_out) else {}
    good = checked.lazy().filter(pl.col("left_out").is_null() & pl.col("reason").is_null())
    events = good.select(SCHEMA.keys()).cast(SCHEMA).collect()  # type: ignore[arg-type]
    return CleanFile(events, quarantine, counts, num_rows)


def _columns(path: Path, frame: pl.DataFrame, layout: Format) -> dict[str, list[str]]:
    """Canonical field -> the file's columns, best first; optional fields only where the file has them."""
    names = [name for name in frame.columns if name != LINE]
    known = {_plain(name): name for name in reversed(names)} | {name: name for name in names}
    wanted = {"user_id": layout.user, "item_id": layout.item, "timestamp": layout.timestamp}
    wanted |= {name: getattr(layout, name) for name in (*_OPTIONAL, "title_parts")}
    wanted |= {name: (name,) for name in layout.extra}
    found: dict[str, list[str]] = {}
    for field, candidates in wanted.items():
        matches = [known[name] if name in known else known.get(_plain(name)) for name in candidates]
        there = list(dict.fromkeys(name for name in matches if name is not None))
        if there:
            found[field] = there
        elif candidates and field not in (*_OPTIONAL, "title_parts"):
            hint = "check --format"
            if layout.name == "generic":
                hint = f"map it with --map {field.removesuffix('_id')}=COLUMN"
                hint += ", or set the delimiter" if len(names) == 1 else ""
            listed = ", ".join(names)[:300] or "none"
            raise DataError(f"{path}: no column {candidates[0]!r}; found {listed}; {hint}")
    return found


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", "")


def _canonical(
    rows: pl.LazyFrame, columns: dict[str, list[str]], layout: Format, config: FeaturesConfig, source: int
) -> pl.LazyFrame:
    """Columns of SCHEMA, the raw `timestamp`, and the columns that rules read; row by row as in the file."""

    def text(field: str) -> pl.Expr:
        """The first column that is not empty; null if there is none."""
        stripped = [pl.col(name).str.strip_chars() for name in columns.get(field, ())]
        return pl.coalesce(*(pl.when(s != "").then(s) for s in stripped), pl.lit(None, pl.String))

    parts = [pl.col(c).str.split(".").list.last().str.replace_all("_", " ") for c in columns.get("title_parts", ())]
    title = pl.concat_str(text("title"), *parts, separator=" ", ignore_nulls=True) if parts else text("title")
    kind = text("event_type")
    if layout.event_types:
        kind = kind.replace(dict(layout.event_types))
    price = text("price").cast(pl.Float64, strict=False)
    order = pl.int_range(pl.len(), dtype=pl.Int64) + (source << 32)
    return rows.select(
        user_id=text("user_id"),
        item_id=text("item_id"),
        timestamp=text("timestamp"),
        timestamp_ms=_timestamp(text("timestamp"), config.timestamp_format) if layout.timestamp else order,
        event_type=pl.coalesce(kind, pl.lit(layout.fixed_event_type or DEFAULT_EVENT_TYPE)),
        title=pl.when(title != "").then(title),
        category=text("category"),
        price=pl.when(price.is_finite()).then(price),
        source=pl.lit(source, pl.UInt32),
        row=pl.col(LINE),
        **{name: pl.col(columns[name][0]) for name in layout.extra},
    ).with_columns(layout.user_expr, layout.item_expr)


def _timestamp(text: pl.Expr, pattern: str | None) -> pl.Expr:
    """Milliseconds: epoch numbers by magnitude, or a date; null where neither parses."""
    if pattern is not None:
        return text.str.to_datetime(pattern, strict=False, time_unit="ms").dt.epoch("ms")
    number = text.cast(pl.Float64, strict=False)
    size = number.abs()
    scale = pl.when(size < 1e11).then(1e3).when(size < 1e14).then(1.0).when(size < 1e17).then(1e-3).otherwise(1e-6)
    plain = text.str.replace(r"(\d)T(\d)", "$1 $2").str.replace(r"(Z| ?UTC| ?\+00:?00)$", "")
    plain = plain.str.replace(r"(:\d\d(?:\.\d+)?) ?([+-]\d\d)$", "${1}${2}:00")
    dates = [plain.str.to_datetime(f, strict=False, time_unit="ms").dt.epoch("ms") for f in _DATETIME_FORMATS]
    zoned = plain.str.to_datetime("%Y-%m-%d %H:%M:%S%.f%:z", strict=False, time_unit="ms", time_zone="UTC")
    return pl.coalesce((number * scale).round().cast(pl.Int64, strict=False), *dates, zoned.dt.epoch("ms"))


def _problem(layout: Format, now_ms: int) -> pl.Expr:
    """The first reason why a row cannot be used, null if there is none."""
    checks: list[tuple[str, pl.Expr]] = []
    for field, word in (("user_id", "user"), ("item_id", "item")):
        checks.append((f"{word} is empty", pl.col(field).is_null()))
        checks.append((f"{word} is longer than {MAX_ID_LENGTH}", pl.col(field).str.len_chars() > MAX_ID_LENGTH))
    if layout.timestamp:
        moment = pl.col("timestamp_ms")
        checks.append(("timestamp is empty", pl.col("timestamp").is_null()))
        checks.append(("timestamp does not parse", moment.is_null()))
        checks.append(("timestamp before 1970", moment < 0))
        checks.append(("timestamp in the future", moment > now_ms + MAX_FUTURE_MS))
    return pl.coalesce(*(pl.when(check).then(pl.lit(reason)) for reason, check in checks))


def _bad_rows(path: Path, rows: pl.DataFrame, reasons: pl.Series) -> pl.DataFrame:
    columns = [pl.col(c).fill_null("") for c in rows.columns if c != LINE]
    text = pl.concat_str(columns, separator=",") if columns else pl.lit("")
    return rows.select(
        file=pl.lit(path.name), line=pl.col(LINE).cast(pl.UInt32), reason=reasons.cast(pl.String), row=text
    )


def _bad_lines(path: Path, bad: list[BadLine]) -> pl.DataFrame:
    schema = {"file": pl.String, "line": pl.UInt32, "reason": pl.String, "row": pl.String}
    return pl.DataFrame([(path.name, *line) for line in sorted(bad)], schema=schema, orient="row")


def _check_share(path: Path, quarantine: pl.DataFrame, num_rows: int, config: FeaturesConfig) -> None:
    if len(quarantine) <= max(1, config.max_bad_share * num_rows):
        return
    first = quarantine.row(0, named=True)
    lines = ", ".join(str(line) for line in quarantine["line"].unique(maintain_order=True).head(3))
    raise DataError(
        f"{path}: {len(quarantine):,} of {num_rows:,} rows cannot be read, at most {config.max_bad_share:.0%} are "
        f"tolerated; lines {lines} …; first: {first['reason']}: {first['row'][:80]!r}{_hint(first['reason'], config)}"
    )


def _hint(reason: str, config: FeaturesConfig) -> str:
    if "does not parse" in reason and config.timestamp_format is not None:
        return f"; it is not of the form {config.timestamp_format!r}, correct --timestamp-format"
    if "timestamp" in reason:
        return "; give --timestamp-format, or check the column"
    return "; save the file as UTF-8" if "UTF-8" in reason else "; correct the file, or raise max_bad_share"
