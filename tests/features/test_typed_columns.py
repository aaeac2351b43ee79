"""A Parquet file may hold any type in any column: it is read, or refused in one line, never half understood."""

from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest

from features.build import FeaturesConfig, read_events
from recsys.contracts.errors import RecsysError

NUM_ROWS = 6
S = 1_700_000_000
FIELDS = ("user_id", "item_id", "timestamp", "event_type", "title", "category", "price", "event_id")
VALUES = {
    "text": "2024-01-01T00:00:00Z",
    "digits beyond numbers": "9" * 24,
    "seconds": S,
    "microseconds": S * 1_000_000,
    "negative": -5,
    "float": 1.7e9,
    "infinity": float("inf"),
    "no number": float("nan"),
    "decimal": Decimal("1.50"),
    "truth": True,
    "date": date(2024, 1, 1),
    "date before 1970": date(1960, 1, 1),
    "moment": datetime(2024, 1, 1),
    "moment with a zone": datetime(2024, 1, 1, tzinfo=UTC),
    "moment far ahead": datetime(9999, 1, 1),
    "time of day": time(1),
    "duration": timedelta(days=1),
    "nothing": None,
    "text as bytes": b"a",
    "bytes": b"\xff",
    "list": [1],
    "struct": {"a": 1},
}
TYPES = {
    "categorical": ("a", pl.Categorical),
    "enum": ("a", pl.Enum(["a"])),
    "int8": (7, pl.Int8),
    "uint64": (2**64 - 1, pl.UInt64),
    "int128": (2**100, pl.Int128),
    "float32": (1.5, pl.Float32),
    "nanoseconds": (datetime(2024, 1, 1), pl.Datetime("ns")),
    "empty text": (None, pl.String),
}
COLUMNS = {name: (value, None) for name, value in VALUES.items()} | TYPES


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("kind", COLUMNS)
def test_any_type_in_any_column_is_read_or_refused_in_one_line(tmp_path: Path, field: str, kind: str) -> None:
    value, dtype = COLUMNS[kind]
    usual = {"user_id": "u", "item_id": "i", "timestamp": S}
    columns = {name: [each] * NUM_ROWS for name, each in usual.items()}
    frame = pl.DataFrame(columns | {field: pl.Series([value] * NUM_ROWS, dtype=dtype)})
    frame.write_parquet(tmp_path / "log.parquet")
    with suppress(RecsysError):
        assert len(read_events(FeaturesConfig(), [tmp_path / "log.parquet"])) == NUM_ROWS
        return
    with pytest.raises(RecsysError, match=r"^[^\n]*log\.parquet: [^\n]+$"):
        read_events(FeaturesConfig(), [tmp_path / "log.parquet"])
