"""The public formats known by name: where each canonical field stands, and which rows are left out."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

import polars as pl

from features.config import FeaturesConfig
from recsys.contracts.errors import ConfigError


class Layout(StrEnum):
    """How a text file is laid out."""

    TABLE = "table"
    """Delimited, Parquet or JSON lines, by the file's ending."""
    SPLIT = "split"
    """Fields between a separator of several characters, or white space; no header."""
    SEQUENCE = "sequence"
    """One line a user: the user, then the items, between spaces."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One named format. Column names match without regard to case, spaces around them and underscores."""

    name: str
    user: tuple[str, ...]
    item: tuple[str, ...]
    timestamp: tuple[str, ...] = ()
    """Empty: the log has no times, only an order."""
    event_type: tuple[str, ...] = ()
    title: tuple[str, ...] = ()
    title_parts: tuple[str, ...] = ()
    """Columns whose last dotted part (`appliances.water_heater`) is put after the title."""
    category: tuple[str, ...] = ()
    """For this and every optional field: the first of these columns that is not empty in a row."""
    price: tuple[str, ...] = ()
    event_id: tuple[str, ...] = ()
    """The sender's id; of several rows of a user with one id, the first is kept."""
    layout: Layout = Layout.TABLE
    header: tuple[str, ...] = ()
    """Names of the columns where the file has no header."""
    separator: str | None = None
    event_types: Mapping[str, str] = field(default_factory=dict)
    """The format's words for event types, and ours."""
    fixed_event_type: str | None = None
    type_expr: pl.Expr | None = None
    """The event type, from the columns in `extra`, where no column has it."""
    left_out: tuple[tuple[str, pl.Expr], ...] = ()
    """Rules (reason, which rows), in order; such rows are counted, not quarantined."""
    user_expr: pl.Expr = field(default_factory=lambda: pl.col("user_id"))
    """Cleans the user, after white space is stripped; an empty one is null."""
    item_expr: pl.Expr = field(default_factory=lambda: pl.col("item_id"))
    file_pattern: str = r".*"
    """Files of a folder that belong to the log."""
    titles_file: str | None = None
    """A file beside the log with `item::title::category` lines."""
    extra: tuple[str, ...] = ()
    """Columns that `left_out` and `type_expr` read; they must be there."""
    numbers: tuple[str, ...] = ()
    """Those of `extra` that hold a number in every row."""


_GOODS = r"^\d{5}"
"""Stock codes of goods start with five digits; postage, fees, samples and adjustments do not."""

_IS_CANCELLATION = pl.col("InvoiceNo").str.to_uppercase().str.starts_with("C") | (
    pl.col("Quantity").cast(pl.Float64, strict=False) <= 0
)
_HAS_NO_USER = pl.col("user_id").is_null()
_IS_NO_GOODS = ~pl.col("item_id").str.contains(_GOODS)
_LEAST_LIKED = 3.0
"""Of one to five stars: fewer are a dislike."""

_FORMATS = (
    Format(
        name="online-retail",
        user=("CustomerID",),
        item=("StockCode",),
        timestamp=("InvoiceDate",),
        title=("Description",),
        price=("UnitPrice",),
        fixed_event_type="purchase",
        extra=("InvoiceNo", "Quantity"),
        numbers=("Quantity",),
        left_out=(
            ("guest", _HAS_NO_USER),
            ("cancellation", _IS_CANCELLATION),
            ("not goods", _IS_NO_GOODS),
        ),
        user_expr=pl.col("user_id").str.strip_suffix(".0"),
        item_expr=pl.col("item_id").str.to_uppercase(),
    ),
    Format(
        name="taobao",
        header=("user", "item", "category", "behaviour", "timestamp"),
        separator=",",
        user=("user",),
        item=("item",),
        timestamp=("timestamp",),
        event_type=("behaviour",),
        category=("category",),
        event_types={"pv": "view", "fav": "favourite", "cart": "cart", "buy": "purchase"},
    ),
    Format(
        name="rees46",
        user=("user_id",),
        item=("product_id",),
        timestamp=("event_time",),
        event_type=("event_type",),
        title=("brand",),
        title_parts=("category_code",),
        category=("category_code", "category_id"),
        price=("price",),
    ),
    Format(
        name="movielens",
        layout=Layout.SPLIT,
        separator="::",
        header=("user", "item", "rating", "timestamp"),
        user=("user", "userId"),
        item=("item", "movieId"),
        timestamp=("timestamp",),
        file_pattern=r"(ratings.*|u\.data)",
        titles_file="movies.dat",
    ),
    Format(name="rectools", user=("user_id",), item=("item_id",), timestamp=("datetime",)),
    Format(
        name="recbole",
        separator="\t",
        user=("user_id:token",),
        item=("item_id:token",),
        timestamp=("timestamp:float",),
        file_pattern=r".*\.inter(\.gz)?",
    ),
    Format(
        name="gorse",
        user=("UserId",),
        item=("ItemId",),
        timestamp=("Timestamp", "time_stamp"),
        event_type=("FeedbackType",),
    ),
    Format(
        name="personalize",
        user=("USER_ID", "userId"),
        item=("ITEM_ID", "itemId"),
        timestamp=("TIMESTAMP",),
        event_type=("EVENT_TYPE", "eventType"),
    ),
    Format(name="sequences", layout=Layout.SEQUENCE, user=("user",), item=("item",)),
    Format(name="pairs", layout=Layout.SPLIT, header=("user", "item"), user=("user",), item=("item",)),
)
_PLAIN: Final = {entry.name: entry for entry in _FORMATS}
_WITH_NEGATIVES = (
    replace(
        _PLAIN["online-retail"],
        name="online-retail-returns",
        left_out=(("guest", _HAS_NO_USER), ("not goods", _IS_NO_GOODS)),
        type_expr=pl.when(_IS_CANCELLATION).then(pl.lit("return")).otherwise(pl.lit("purchase")),
    ),
    replace(
        _PLAIN["movielens"],
        name="movielens-ratings",
        extra=("rating",),
        numbers=("rating",),
        type_expr=pl.when(pl.col("rating").cast(pl.Float64, strict=False) < _LEAST_LIKED)
        .then(pl.lit("dislike"))
        .otherwise(pl.lit("like")),
    ),
)
FORMATS: Final[Mapping[str, Format]] = _PLAIN | {entry.name: entry for entry in _WITH_NEGATIVES}


def resolve(config: FeaturesConfig) -> Format:
    """The named format, or one made of the column options.

    Raises:
        ConfigError: an unknown name.
    """
    if config.format == "generic":
        return Format(
            name="generic",
            separator=config.delimiter,
            user=(config.user_column,),
            item=(config.item_column,),
            timestamp=(config.timestamp_column,),
            event_type=(config.event_type_column,),
            title=(config.title_column,),
            category=(config.category_column,),
            price=(config.price_column,),
            event_id=(config.event_id_column,),
        )
    if config.format not in FORMATS:
        raise ConfigError(f"format {config.format!r}: expected generic or one of {', '.join(sorted(FORMATS))}")
    return FORMATS[config.format]
