"""The event store: histories for the endpoint, and what the endpoint showed. SQLite by default, PostgreSQL by URL."""

from recsys.store.counts import ArmCounts
from recsys.store.events import HISTORY_CAP, AppendResult, EventStore, Glance
from recsys.store.histories import StoredHistory
from recsys.store.impressions import Impression
from recsys.store.outcomes import Entry, Outcome, Outcomes
from recsys.store.recall import Attribution

__all__ = [
    "HISTORY_CAP",
    "AppendResult",
    "ArmCounts",
    "Attribution",
    "Entry",
    "EventStore",
    "Glance",
    "Impression",
    "Outcome",
    "Outcomes",
    "StoredHistory",
]
