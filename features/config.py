"""Settings of the feature batch."""

from typing import Final

from pydantic import Field

from recsys.contracts.events import NEGATIVE_TYPES
from recsys.contracts.pruning import PruningPolicy

READING_FIELDS: Final = (
    *("format", "timestamp_format", "delimiter", "drop_copies"),
    *(
        f"{name}_column"
        for name in ("user", "item", "timestamp", "event_type", "title", "category", "price", "event_id")
    ),
)
"""Settings that decide which events a file holds: where one changes, everything is read again."""
READING_RULES: Final = 2
"""Number of the rules by which values of typed files (Parquet, JSON) become texts: one more where they change."""


class FeaturesConfig(PruningPolicy):
    """How a log is read and cut."""

    format: str = "generic"
    """A named format, or `generic`: columns by the names below."""
    user_column: str = "user_id"
    item_column: str = "item_id"
    timestamp_column: str = "timestamp"
    event_type_column: str = "event_type"
    title_column: str = "title"
    category_column: str = "category"
    price_column: str = "price"
    event_id_column: str = "event_id"
    """Of several rows of a user with one event id, the first is kept."""
    drop_copies: bool = False
    """Leave out rows that an earlier file has already: same user, item, moment and event type."""
    timestamp_format: str | None = None
    """strftime pattern; without it epoch numbers and ISO 8601 are recognised."""
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    """Of a generic text file; found by the file's ending otherwise."""
    split_quantile: float = Field(default=0.9, gt=0, lt=1)
    """T is this quantile of the timestamps."""
    history_types: tuple[str, ...] = ()
    """Event types that make the history; empty: all. Everything is stored; this is a choice of the reader."""
    target_types: tuple[str, ...] = ()
    """Event types that validation and test want; empty: all."""
    negative_types: tuple[str, ...] = NEGATIVE_TYPES
    """Event types that say what a user does not want: read, and never predicted."""
    events_per_partition: int = Field(default=1_000_000, ge=1)
    """Events sorted in memory at a time: what bounds the memory of the job."""
    max_bad_share: float = Field(default=0.05, ge=0, le=1)
    """Bad rows of a file above this share stop the job; a single one does not, beside other rows."""
    verify_nights: int = Field(default=30, ge=1)
    """A history file that nights only link is read again, and held to its sha256, once in so many nights; 1: always."""
