"""Raw rows to canonical events: every row is kept, left out by a rule, or set aside with a reason."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import polars as pl
import polars.selectors as cs

from features import bad_rows, sources
from features.ahead import one_ahead
from features.config import FeaturesConfig
from features.formats import Format
from features.lines import LINE, RawFile
from features.moments import is_no_epoch, to_milliseconds
from features.values import as_text
from recsys.contracts.errors import DataError
from recsys.contracts.events import DEFAULT_EVENT_TYPE
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
OPTIONAL: Final = ("event_type", "title", "category", "price", "event_id", "title_parts")
"""Fields that a file need not have."""
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
HOPELESS_ROWS: Final = 100_000
"""From so many bad rows on, a file is not read to its end if they are too many for what is left of it, too."""
KEY_SEED: Final = 20_260_101
"""Of the hash that event ids are known by."""


class MissingColumnError(DataError):
    """A file has no column that is required."""

    def __init__(self, found: str, hint: str) -> None:
        super().__init__(f"{found}; {hint}")
        self.found = found
        """The line without what to do."""


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
    num_rows, num_bad, first_bad = 0, 0, bad_rows.of_lines(path, [])
    raws = sources.read(path, layout)
    for raw in raws if pool is None else one_ahead(raws, pool):
        batch = _clean(path, source, layout, config, now_ms, raw, num_rows)
        num_rows += batch.num_rows
        num_bad += len(batch.quarantine)
        if len(first_bad) < bad_rows.NUM_SAID:
            first_bad = pl.concat([first_bad, batch.quarantine.head(bad_rows.NUM_SAID)])
        if batch.share < 1 and num_bad >= HOPELESS_ROWS:
            bad_rows.check_share(path, num_bad, first_bad, num_rows, config, batch.share)
        yield batch
    bad_rows.check_share(path, num_bad, first_bad, num_rows, config)


def _clean(
    path: Path, source: int, layout: Format, config: FeaturesConfig, now_ms: int, raw: RawFile, num_before: int
) -> CleanBatch:
    quarantine = bad_rows.of_lines(path, raw.bad)
    if raw.rows.is_empty() and raw.bad:
        return CleanBatch(pl.DataFrame(schema=SCHEMA), quarantine, {}, len(raw.bad), share=raw.share)
    columns = _columns(path, raw.rows, layout)
    rows = _canonical(raw.rows, columns, layout, config, source, num_before).collect()
    left_out = _first_reason(rows, list(layout.left_out))
    reason = _first_reason(rows, bad_rows.problems(rows, layout, columns, now_ms))
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
        bad = bad_rows.of_rows(path, raw.rows.filter(is_bad), rows.filter(is_bad), columns, reason.filter(is_bad))
        quarantine = pl.concat([bad, quarantine]).sort("line", maintain_order=True)
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
            raise MissingColumnError(f"{path}: no column {candidates[0]!r}; found {listed}", hint)
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
        moment, no_epoch = pl.lit(milliseconds), is_no_epoch(moments, milliseconds, config.timestamp_format)
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
