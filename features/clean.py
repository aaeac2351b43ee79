"""Raw rows to canonical events: every row is kept, left out by a rule, or set aside with a reason."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import polars as pl
import polars.selectors as cs

from features import sources
from features.config import FeaturesConfig
from features.formats import Format
from features.lines import LINE, NO_OBJECT, BadLine, RawFile
from features.values import as_text
from recsys.contracts.errors import DataError, RefusedError
from recsys.contracts.events import DEFAULT_EVENT_TYPE, MAX_ID_LENGTH
from recsys.histories import EVENT_KEY

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

EARLIEST_NUMBER_MS: Final = 631_152_000_000
"""Numbers for moments before 1990 are no epoch numbers: dates in digits, such as 20101201, are all among them."""
_DATETIME_FORMATS: Final = {"%Y-%m-%d %H:%M:%S%.f": 19, "%Y-%m-%d %H:%M": 16, "%Y-%m-%d": 10}
"""What is tried in turn, and the least number of bytes with two digits in every field."""
_CUT_SHORT: Final = r"[-:]\d$"
"""A date or time that ends in a field of one digit: 10:1 may be what is left of 10:15."""
_ZONED_FORMATS: Final = ("%Y-%m-%d %H:%M:%S%.f%:z", "%Y-%m-%d %H:%M%:z")
OPTIONAL: Final = ("event_type", "title", "category", "price", "event_id", "title_parts")
"""Fields that a file need not have."""
_NO_EPOCH: Final = "timestamp is no epoch number (it would be before 1990)"
_TEXT: Final = cs.string()
_TIGHT: Final = range(0x21, 0x80)
"""Bytes that are no white space, nor part of it."""
_MAY_BE_LOOSE: Final = [
    (_TEXT.str.len_bytes().min() == 0).name.suffix(":empty"),
    *(
        # Those below come round to the greatest.
        (
            (_TEXT.cast(pl.Binary).bin.get(end, null_on_oob=True) - pl.lit(_TIGHT.start, pl.UInt8)).max() >= len(_TIGHT)
        ).name.suffix(f":{end}")
        for end in (0, -1)
    ),
]
"""Whether any text of a column may be empty, or begin or end with white space: half the work of taking it off."""
MAX_TYPE_LENGTH: Final = 64
"""Longest event type, in characters."""
HOPELESS_ROWS: Final = 100_000
"""From so many bad rows on, a file is not read to its end if they are too many for what is left of it, too."""
_BAD_ROWS_SAID = 100
KEY_SEED: Final = 20_260_101
"""Of the hash that event ids are known by."""


class MissingColumnError(DataError):
    """A file has no column that is required."""


@dataclass(frozen=True, slots=True)
class CleanBatch:
    """Rows of one file, each accounted for."""

    events: pl.DataFrame
    """Columns of SCHEMA, and `event_key` where the file has event ids."""
    quarantine: pl.DataFrame
    """file, line, reason, row; the user, and what stands in the field in question, where these can be read."""
    left_out: dict[str, int]
    num_rows: int
    fields: tuple[str, ...] = ()
    """Canonical fields that the file has."""
    share: float = 1.0
    """How much of the file has been read after this batch."""
    open_end: bool | None = None
    """Whether the last event is of a last line without a line break; None where nothing can be told from that."""


def clean(path: Path, source: int, layout: Format, config: FeaturesConfig, now_ms: int) -> CleanBatch:
    """One file as a whole.

    Raises:
        DataError: see `clean_batches`.
    """
    batches = list(clean_batches(path, source, layout, config, now_ms))
    left_out: Counter[str] = Counter()
    for batch in batches:
        left_out.update(batch.left_out)
    return CleanBatch(
        pl.concat([batch.events for batch in batches], how="diagonal"),
        pl.concat([batch.quarantine for batch in batches]),
        dict(left_out),
        sum(batch.num_rows for batch in batches),
        batches[-1].fields,
    )


def clean_batches(
    path: Path, source: int, layout: Format, config: FeaturesConfig, now_ms: int, pool: Executor | None = None
) -> Iterator[CleanBatch]:
    """Read and check one file, batch by batch; with a pool, the next one is read while this one is checked.

    Raises:
        DataError: a required column is missing.
        RefusedError: the file is damaged, or too many of its rows are bad: known after its last batch, or before it
            where the rows to come cannot make up for those that were read.
    """
    num_rows, num_bad, first_bad = 0, 0, _bad_lines(path, [])
    raws = sources.read(path, layout)
    for raw in raws if pool is None else _one_ahead(raws, pool):
        batch = _clean(path, source, layout, config, now_ms, raw, num_rows)
        num_rows += batch.num_rows
        num_bad += len(batch.quarantine)
        if len(first_bad) < _BAD_ROWS_SAID:
            first_bad = pl.concat([first_bad, batch.quarantine.head(_BAD_ROWS_SAID)])
        if batch.share < 1 and num_bad >= HOPELESS_ROWS:
            _check_share(path, num_bad, first_bad, num_rows, config, batch.share)
        yield batch
    _check_share(path, num_bad, first_bad, num_rows, config)


def _one_ahead(raws: Iterator[RawFile], pool: Executor) -> Iterator[RawFile]:
    coming = pool.submit(next, raws, None)
    while (raw := coming.result()) is not None:
        coming = pool.submit(next, raws, None)
        yield raw


def _clean(
    path: Path, source: int, layout: Format, config: FeaturesConfig, now_ms: int, raw: RawFile, num_before: int
) -> CleanBatch:
    quarantine = _bad_lines(path, raw.bad)
    if raw.rows.is_empty() and raw.bad:
        return CleanBatch(pl.DataFrame(schema=SCHEMA), quarantine, {}, len(raw.bad), share=raw.share)
    columns = _columns(path, raw.rows, layout)
    rows = _canonical(raw.rows, columns, layout, config, source, num_before).collect()
    left_out = _first_reason(rows, list(layout.left_out))
    reason = _first_reason(rows, _problems(rows, layout, columns, now_ms))
    counts: dict[str, int] = {}
    schema = SCHEMA | ({EVENT_KEY: pl.UInt64} if "event_id" in columns else {})
    events = rows.select(schema.keys())
    if left_out is not None:
        counts = dict(left_out.drop_nulls().value_counts().rows())
        events = events.filter(left_out.is_null() & (reason.is_null() if reason is not None else True))
    elif reason is not None:
        events = events.filter(reason.is_null())
    if reason is not None:
        is_bad = reason.is_not_null() if left_out is None else reason.is_not_null() & left_out.is_null()
        found = _found(raw.rows.filter(is_bad), columns, reason.filter(is_bad))
        bad_rows = _bad_rows(path, raw.rows.filter(is_bad), rows.filter(is_bad), reason.filter(is_bad), found)
        quarantine = pl.concat([bad_rows, quarantine]).sort("line", maintain_order=True)
    events = events.cast(schema)  # type: ignore[arg-type]
    num_rows = len(rows) + len(raw.bad)
    return CleanBatch(events, quarantine, counts, num_rows, tuple(columns), raw.share, _open_end(raw, events))


def _open_end(raw: RawFile, events: pl.DataFrame) -> bool | None:
    """A cut-off line that is set aside, or left out, tells nothing about other files."""
    if not raw.open_end:
        return raw.open_end
    last = max([*raw.rows[LINE].tail(1), *(line for line, _, _ in raw.bad)])
    return True if events["row"].tail(1).to_list() == [last] else None


def _first_reason(rows: pl.DataFrame, checks: list[tuple[str, pl.Expr]]) -> pl.Series | None:
    """The first check that holds for each row, null where none does; None where none does for any row.

    Most batches are clean, so reasons are spelled out only where there are any.
    """
    if not checks or not rows.select(pl.any_horizontal(check.any() for _, check in checks)).item():
        return None
    return rows.select(r=pl.coalesce(*(pl.when(check).then(pl.lit(reason)) for reason, check in checks)))["r"]


def _columns(path: Path, frame: pl.DataFrame, layout: Format) -> dict[str, list[str]]:
    """Canonical field -> the file's columns, best first; optional fields only where the file has them."""
    names = [name for name in frame.columns if name != LINE]
    known = {_plain(name): name for name in reversed(names)} | {name: name for name in names}
    wanted: dict[str, tuple[str, ...]] = {"user_id": layout.user, "item_id": layout.item, "timestamp": layout.timestamp}
    wanted |= {name: getattr(layout, name) for name in OPTIONAL}
    wanted |= {name: (name,) for name in layout.extra}
    found: dict[str, list[str]] = {}
    for field, candidates in wanted.items():
        matches = [known[name] if name in known else known.get(_plain(name)) for name in candidates]
        there = list(dict.fromkeys(name for name in matches if name is not None))
        if there:
            found[field] = there
        elif candidates and field not in OPTIONAL:
            hint = "check --format"
            if layout.name == "generic":
                hint = f"map it with --map {field.removesuffix('_id')}=COLUMN"
                hint += ", or set the delimiter" if len(names) == 1 else ""
            if path.suffix.lower() == ".parquet":
                hint += "; columns of lists, structs, binary data and durations are not read"
            listed = ", ".join(names)[:300] or "none"
            raise MissingColumnError(f"{path}: no column {candidates[0]!r}; found {listed}; {hint}")
    return found


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", "")


def _canonical(
    rows: pl.DataFrame,
    columns: dict[str, list[str]],
    layout: Format,
    config: FeaturesConfig,
    source: int,
    num_before: int,
) -> pl.LazyFrame:
    """Columns of SCHEMA, what checks need, and the columns that rules read; row by row as in the file."""
    rows = _stripped(rows)

    def texts(field: str) -> list[pl.Expr]:
        return [as_text(pl.col(name), rows.schema[name]) for name in columns.get(field, ())]

    def text(field: str) -> pl.Expr:
        """The first column that is not empty; null if there is none."""
        found = texts(field)
        return found[0] if len(found) == 1 else pl.coalesce(*found, pl.lit(None, pl.String))

    parts = [part.str.split(".").list.last().str.replace_all("_", " ") for part in texts("title_parts")]
    title = pl.concat_str(text("title"), *parts, separator=" ", ignore_nulls=True) if parts else text("title")
    kind = text("event_type")
    if layout.event_types:
        kind = kind.replace(dict(layout.event_types))
    if layout.timestamp:
        moments = rows.select(pl.coalesce(columns["timestamp"]).alias("t"))["t"]
        milliseconds = to_milliseconds(moments, config.timestamp_format)
        moment, no_epoch = pl.lit(milliseconds), _is_no_epoch(moments, milliseconds, config.timestamp_format)
    else:
        no_epoch = pl.lit(False)
        moment = pl.int_range(pl.len(), dtype=pl.Int64) + ((source << 32) + num_before)
    price = text("price").cast(pl.Float64, strict=False)
    return (
        rows.lazy()
        .select(
            user_id=text("user_id"),
            item_id=text("item_id"),
            no_timestamp=pl.all_horizontal(pl.lit(True), *(pl.col(n).is_null() for n in columns.get("timestamp", []))),
            timestamp_ms=moment,
            no_epoch=no_epoch,
            event_type=kind.fill_null(layout.fixed_event_type or DEFAULT_EVENT_TYPE),
            title=pl.when(title != "").then(title),
            category=text("category"),
            price=pl.when(price.is_finite()).then(price),
            bad_price=text("price").is_not_null() & price.is_null(),
            infinite_price=price.is_infinite(),
            source=pl.lit(source, pl.UInt32),
            row=pl.col(LINE),
            **({EVENT_KEY: _event_key(text("event_id"))} if "event_id" in columns else {}),
            **{name: texts(name)[0] for name in layout.extra},
        )
        .with_columns(layout.user_expr, layout.item_expr)
        .with_columns(event_type=pl.col("event_type") if layout.type_expr is None else layout.type_expr)
    )


def _stripped(rows: pl.DataFrame) -> pl.DataFrame:
    """Texts without white space around them; empty ones are null."""
    answers = rows.select(_MAY_BE_LOOSE).rows(named=True)
    names = {name.rpartition(":")[0] for answer in answers for name, may_be in answer.items() if may_be}
    loose = [pl.col(name).str.strip_chars() for name in rows.columns if name in names]
    return rows.with_columns(pl.when(text != "").then(text) for text in loose) if loose else rows


def _event_key(event_id: pl.Expr) -> pl.Expr:
    """What an event id is known by; 0 where there is none."""
    return pl.when(event_id.is_not_null()).then(event_id.hash(KEY_SEED)).otherwise(pl.lit(0, pl.UInt64))


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


def _is_no_epoch(column: pl.Series, milliseconds: pl.Series, pattern: str | None) -> pl.Expr:
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


def _problems(
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


def _bad_rows(
    path: Path, rows: pl.DataFrame, checked: pl.DataFrame, reason: pl.Series, found: pl.Series
) -> pl.DataFrame:
    columns = [pl.col(c).cast(pl.String).fill_null("") for c in rows.columns if c != LINE]
    text = pl.concat_str(columns, separator=",") if columns else pl.lit("")
    return rows.select(
        file=pl.lit(path.name),
        line=pl.col(LINE).cast(pl.UInt32),
        reason=reason.cast(pl.String),
        row=text,
        user=checked["user_id"],
        found=found,
    )


def _bad_lines(path: Path, bad: list[BadLine]) -> pl.DataFrame:
    texts = dict.fromkeys(("reason", "row", "user", "found"), pl.String)
    schema = {"file": pl.String, "line": pl.UInt32, **texts}
    return pl.DataFrame([(path.name, *line, None, None) for line in sorted(bad)], schema=schema, orient="row")


def _check_share(
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
