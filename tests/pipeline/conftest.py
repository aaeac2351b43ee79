"""A log with event types and times."""

from pathlib import Path

import polars as pl
import pytest

from tests.conftest import NUM_ITEMS, write_events

TYPES = ["view", "purchase", "return"]


@pytest.fixture(scope="session")
def typed_features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty users walk a ring, an event a second: view, purchase, return, and again. The cut is at 90 s."""
    place = tmp_path_factory.mktemp("typed") / "features"
    rows = [(f"u{u:02d}", 1 + (u + i) % NUM_ITEMS, 1000 * i, i % 3) for u in range(40) for i in range(70 + u)]
    events = pl.DataFrame(rows, ["user_id", "item_index", "timestamp_ms", "event_type"], orient="row")
    metrics = {"split_ms": 90_000, "event_types": TYPES}
    write_events(place, events, NUM_ITEMS, metrics, {"target_types": ["view", "purchase"]})
    return place
