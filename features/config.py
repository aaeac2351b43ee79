"""Settings of the feature batch."""

from pydantic import Field

from recsys.contracts.config import Config


class FeaturesConfig(Config):
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
    timestamp_format: str | None = None
    """strftime pattern; without it epoch numbers and ISO 8601 are recognised."""
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    """Of a generic text file; found by the file's ending otherwise."""
    min_count: int = Field(default=5, ge=1)
    """Items with fewer fitted events are pruned when windows are cut."""
    split_quantile: float = Field(default=0.9, gt=0, lt=1)
    """T is this quantile of the timestamps."""
    num_partitions: int = Field(default=8, ge=1, le=4096)
    max_bad_share: float = Field(default=0.05, ge=0, le=1)
    """Bad rows of a file above this share, and above one row, stop the job."""
