"""The canonical event, what every source format is mapped to, and its order."""

from dataclasses import dataclass
from typing import Final

EVENT_ORDER: Final = ("user_id", "timestamp_ms", "source", "row")
"""Histories are in the order (timestamp, source, row) within a user; events of one moment keep the
order of their file. Events from the store carry `source` = the store and `row` = its sequence number."""

DEFAULT_EVENT_TYPE: Final = "interaction"
"""The type of events from logs that have none."""

NEGATIVE_TYPES: Final = ("return", "dislike")
"""Types of events that say what a user does not want: part of the history, and never what is predicted or a success."""

MAX_ID_LENGTH: Final = 256
"""Longest user_id or item_id, in characters; longer ones are bad rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing a user did with an item."""

    user_id: str
    item_id: str
    timestamp_ms: int
    """Milliseconds since 1970-01-01 UTC; the order number where a log has no times."""
    event_type: str = DEFAULT_EVENT_TYPE
    event_id: str | None = None
    """The sender's id; the store keeps one event per id."""
    request_id: str | None = None
    """Id of the recommendation answer that led to the event, echoed by the shop."""
    value: float | None = None
    """What a purchase brought, in the shop's currency."""
