"""Requests and answers of the API."""

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from recsys.contracts.events import DEFAULT_EVENT_TYPE, MAX_ID_LENGTH

_NO_NUL = r"^[^\x00]+$"  # PostgreSQL cannot store it
Id = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID_LENGTH, pattern=_NO_NUL)]
EventType = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=_NO_NUL)]

MAX_REQUEST_EVENTS = 5_000
MAX_EVENT_BATCH = 1_000


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HistoryEvent(_Schema):
    """One event of a history that comes with the request, oldest first."""

    item_id: Id
    event_type: EventType = DEFAULT_EVENT_TYPE
    timestamp: datetime | None = None
    """For the sender's convenience. The order is that of the list."""


class RecommendationRequest(_Schema):
    """For whom, and how many. Exactly one of `user_id` and `events`."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"user_id": "14911", "k": 10}, {"events": [{"item_id": "85123A"}], "k": 5}]},
    )
    user_id: Id | None = None
    events: list[HistoryEvent] | None = Field(default=None, max_length=MAX_REQUEST_EVENTS)
    k: int = Field(default=10, ge=1, le=100)
    exclude: list[Id] = Field(default=[], max_length=1_000)
    exclude_seen: bool = False
    deadline_ms: float | None = Field(default=None, ge=1, le=10_000)

    @model_validator(mode="after")
    def _one_history(self) -> "RecommendationRequest":
        if (self.user_id is None) == (self.events is None):
            raise ValueError("give exactly one of user_id and events")
        return self


class RecommendedItem(_Schema):
    """One item of the answer, best first."""

    item_id: str
    score: float
    title: str | None


class RecommendationAnswer(_Schema):
    """The answer. `source` says who ranked it, `degraded` why it is not the model's."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "request_id": "5f0c1d3a9b7e4c2f8a6d0e1b2c3d4e5f",
                    "items": [{"item_id": "85123A", "score": 7.25, "title": "White hanging heart"}],
                    "release": "2026-11-24",
                    "source": "model",
                    "degraded": None,
                    "reason": None,
                    "timings_ms": {"history": 1.2, "model": 14.8, "total": 16.9},
                }
            ]
        }
    )
    request_id: str
    """Echo it in events that follow from this answer."""
    items: list[RecommendedItem]
    release: str
    source: Literal["model", "popular"]
    degraded: Literal["deadline", "overload", "engine_error", "store_error"] | None = None
    """A trouble of ours: the model did not answer in time, or failed."""
    reason: Literal["unknown_user", "no_known_items"] | None = None
    """Nothing is known of this user yet: the popular items are the proper answer."""
    timings_ms: dict[str, float]


class IncomingEvent(_Schema):
    """Something a user did."""

    user_id: Id
    item_id: Id
    event_type: EventType = DEFAULT_EVENT_TYPE
    timestamp: datetime | None = None
    """ISO 8601 or epoch seconds/milliseconds; now, if left out. Without a zone: UTC."""
    event_id: Id | None = None
    request_id: Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=_NO_NUL)] | None = None

    def timestamp_ms(self, now_ms: int) -> int:
        """Milliseconds since 1970."""
        if self.timestamp is None:
            return now_ms
        moment = self.timestamp if self.timestamp.tzinfo else self.timestamp.replace(tzinfo=UTC)
        return round(moment.timestamp() * 1000)


class EventBatch(_Schema):
    """Events, stored all or none."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"events": [{"user_id": "14911", "item_id": "85123A", "event_type": "purchase"}]}]
        },
    )
    events: list[IncomingEvent] = Field(min_length=1, max_length=MAX_EVENT_BATCH)


class EventsStored(_Schema):
    """What was stored."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"stored": 2, "duplicates": 1}]})
    stored: int
    duplicates: int


class Health(_Schema):
    """State of the process."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "ready", "release": "2026-11-24"}]})
    status: str
    release: str | None = None


class Problem(_Schema):
    """One thing that is wrong, and where."""

    loc: list[str | int]
    msg: str


class Problems(_Schema):
    """The body of every answer that is not a success."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"detail": [{"loc": ["body", "k"], "msg": "Input should be greater than or equal to 1"}]}]
        }
    )
    detail: list[Problem]
