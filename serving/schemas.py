"""Requests and answers of the API.

What is made for every answer is a plain dataclass: pydantic's models take twenty times as long to make.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic.config import JsonDict

from recsys.contracts.events import DEFAULT_EVENT_TYPE, MAX_ID_LENGTH
from recsys.runtime.filters import NO_NUL
from serving.rules import Filters

Id = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID_LENGTH, pattern=NO_NUL)]
ContextText = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=NO_NUL)]
EventType = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=NO_NUL)]

Source = Literal[
    "model",
    "last_answer",
    "nearest",
    "popular_in_category",
    "popular_in_country",
    "popular_on_device",
    "popular_at_time",
    "popular",
]
Degraded = Literal["deadline", "overload", "engine_error", "store_error"]
Missing = Literal["unknown_user", "no_known_items", "no_items_match"]

PATH = "/v1/recommendations"
PART_HOURS = 6
"""Length of a part of the day."""
IMPRESSION = "impression"
MAX_REQUESTS = 100
MAX_REQUEST_EVENTS = 5_000
MAX_EVENT_BATCH = 1_000
_ANSWER: JsonDict = {
    "request_id": "5f0c1d3a9b7e4c2f8a6d0e1b2c3d4e5f",
    "items": [
        {
            "item_id": "85123A",
            "score": 7.25,
            "title": "White hanging heart",
            "reason": {"kind": "similar", "because_of": "22423", "title": "Cake stand"},
        }
    ],
    "release": "2026-11-24",
    "arm": "all",
    "source": "model",
    "degraded": None,
    "reason": None,
    "timings_ms": {"wait": 0.2, "history": 0.4, "encode": 2.1, "rank": 0.9, "total": 4.0},
}


class Schema(BaseModel):
    """Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Context(Schema):
    """What is known of the moment. All of it is optional."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={"examples": [{"country": "DE", "device": "phone", "time": "2026-11-24T20:15:00+01:00"}]},
    )
    country: ContextText | None = None
    device: ContextText | None = None
    time: datetime | None = None
    """The user's own, with its offset: it counts as one of four parts of the day."""

    def values(self) -> list[tuple[str, str]]:
        """What is given, the most telling first."""
        part = None if self.time is None else str(self.time.hour // PART_HOURS)
        given = (("country", self.country), ("device", self.device), ("daypart", part))
        return [(field, value.strip().casefold()) for field, value in given if value is not None]


class HistoryEvent(Schema):
    """One event of a history that comes with the request, oldest first."""

    item_id: Id
    event_type: EventType = DEFAULT_EVENT_TYPE
    timestamp: datetime | None = None
    """For the sender's convenience. The order is that of the list."""


class RecommendationRequest(Schema):
    """For whom, and how many. Exactly one of `user_id` and `events`."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"user_id": "14911", "k": 10, "filters": {"category": ["lamps"], "max_price": 20}},
                {"events": [{"item_id": "85123A"}], "k": 5},
            ]
        },
    )
    user_id: Id | None = None
    events: list[HistoryEvent] | None = Field(default=None, max_length=MAX_REQUEST_EVENTS)
    k: int = Field(default=10, ge=1, le=100)
    exclude: list[Id] = Field(default=[], max_length=1_000)
    exclude_seen: bool = False
    exclude_purchased: bool = False
    """Leave out items that the user has events of type `purchase` on."""
    filters: Filters = Filters()
    diversity: float = Field(default=0, ge=0, le=1, allow_inf_nan=False)
    """0: by score alone; towards 1, items unlike those above them."""
    min_confidence: float = Field(default=0, ge=0, le=1, allow_inf_nan=False)
    """End the list at items less than so many times as likely as the first; the release's temperature says how likely
    a score is."""
    context: Context | None = None
    """Where and when: what is popular there answers a user of whom nothing is known."""
    deadline_ms: float | None = Field(default=None, ge=1, le=10_000)

    @model_validator(mode="after")
    def _one_history(self) -> "RecommendationRequest":
        if (self.user_id is None) == (self.events is None):
            raise ValueError("give exactly one of user_id and events")
        return self


class RecommendationBatch(Schema):
    """Several requests, answered together inside the longest of their deadlines."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"requests": [{"user_id": "14911"}, {"user_id": "17850"}]}]}
    )
    requests: list[RecommendationRequest] = Field(min_length=1, max_length=MAX_REQUESTS)

    @model_validator(mode="after")
    def _others_are_not_kept_waiting(self) -> Self:
        num_events = sum(len(request.events or ()) for request in self.requests)
        if num_events > MAX_REQUEST_EVENTS:
            raise ValueError(
                f"{num_events:,} events in all, at most {MAX_REQUEST_EVENTS:,} are taken; send fewer requests"
            )
        return self


@dataclass(frozen=True, slots=True)
class Because:
    """Why an item was recommended."""

    kind: Literal["similar", "again"]
    """`again`: the user has had this very item."""
    because_of: str | None
    """The other item of the user's recent history that is most like it; null only where there is no other."""
    title: str | None
    """Of `because_of`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecommendedItem:
    """One item of the answer, best first."""

    item_id: str
    score: float
    """Higher is better in one list; of no unit. The model's are log-odds times the release's temperature."""
    title: str | None
    reason: Because | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecommendationAnswer:
    """The answer. `source` says who ranked it, `degraded` why it is not the model's."""

    __pydantic_config__ = ConfigDict(json_schema_extra={"examples": [_ANSWER]})
    request_id: str
    """Echo it in events that follow from this answer."""
    items: list[RecommendedItem]
    release: str
    arm: str
    source: Source
    """Who ranked the first items; what follows in the list fills it up when that is not the model."""
    degraded: Degraded | None = None
    """A trouble of ours: the model did not answer in time, or failed."""
    reason: Missing | None = None
    """Nothing is known of this user yet, so that the popular items are the proper answer; or no item matches."""
    partial: bool = False
    """The model knew the last window of a long history alone: what it makes of the windows before was not at hand, and
    is made now for the next answer."""
    timings_ms: dict[str, float]
    """By stage: `wait` for a worker, `history`, `encode`, `rank`; `total` counts from the arrival."""


class RecommendationAnswers(Schema):
    """One answer per request, in their order."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"answers": [_ANSWER]}]})
    answers: list[RecommendationAnswer]


class SimilarItems(Schema):
    """Items most like one, best first; scores are cosines."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "items": [{"item_id": "22423", "score": 0.8, "title": "Cake stand"}],
                    "release": "2026-11-24",
                    "source": "nearest",
                }
            ]
        }
    )
    items: list[RecommendedItem]
    release: str
    source: Source
    """`nearest`, or what was at hand when the index was not."""
    degraded: Degraded | None = None
    """The trouble, if there was one; scores are numbers of events of late then."""


class IncomingEvent(Schema):
    """Something a user did."""

    user_id: Id
    item_id: Id
    event_type: EventType = DEFAULT_EVENT_TYPE
    timestamp: datetime | None = None
    """ISO 8601 or epoch seconds/milliseconds; now, if left out. Without a zone: UTC."""
    event_id: Id | None = None
    request_id: Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=NO_NUL)] | None = None
    """Of the answer that led here. Required of an event of type `impression`: what the shop displayed."""
    value: float | None = Field(default=None, ge=0, le=1e12, allow_inf_nan=False)
    """What a purchase brought."""
    context: Context | None = None
    """Counted by item, without the user."""

    @model_validator(mode="after")
    def _impression_of_an_answer(self) -> "IncomingEvent":
        if self.event_type == IMPRESSION and self.request_id is None:
            raise ValueError("an impression needs the request_id of the answer")
        return self

    def timestamp_ms(self, now_ms: int) -> int:
        """Milliseconds since 1970."""
        if self.timestamp is None:
            return now_ms
        moment = self.timestamp if self.timestamp.tzinfo else self.timestamp.replace(tzinfo=UTC)
        return round(moment.timestamp() * 1000)


class EventBatch(Schema):
    """Events, stored all or none."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"events": [{"user_id": "14911", "item_id": "85123A", "event_type": "purchase"}]}]
        },
    )
    events: list[IncomingEvent] = Field(min_length=1, max_length=MAX_EVENT_BATCH)


class EventsStored(Schema):
    """What was stored; `duplicates` were not: their ids are known, or they happened before their user was forgotten."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"stored": 2, "duplicates": 1}]})
    stored: int
    duplicates: int


class JoinRequest(Schema):
    """An anonymous session, whose events become the user's."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"session_id": "cookie-5f0c1d"}]})
    session_id: Id


class Changed(Schema):
    """How many events were moved or deleted."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"events": 12}]})
    events: int


class UserHistory(Schema):
    """Events of a user, oldest first."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "events": [{"item_id": "85123A", "event_type": "view", "timestamp": "2026-11-24T10:00:00Z"}],
                    "before": "1795514400000-17",
                }
            ]
        }
    )
    events: list[HistoryEvent]
    before: str | None = None
    """Ask with this as `before` for the events that came before these; null where these are the first."""


class Preparing(Schema):
    """Sessions that this worker encodes before it switches; what answered before goes on meanwhile."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"releases": ["b"], "num_users": 900, "num_done": 120}]})
    releases: list[str]
    """Those that are to answer."""
    num_users: int
    num_done: int


class ReleaseList(Schema):
    """Releases on disk and in memory."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"current": "b", "loaded": ["a", "b"], "releases": ["a", "b"], "preparing": None}]
        }
    )
    current: str
    loaded: list[str]
    releases: list[str]
    preparing: Preparing | None = None
    """None while no switch is being prepared here."""


class Availability(Schema):
    """Stock of some items; others stay as they are."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"items": {"85123A": False}}]})
    items: dict[Id, bool] = Field(min_length=1, max_length=10_000)


class AvailabilityChanged(Schema):
    """What a change of stock changed."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"items": {"85123A": False}, "num_unavailable": 312}]})
    items: dict[str, bool]
    """Those that were not so before."""
    num_unavailable: int
    """Items that are out of stock now."""


class Unavailable(Schema):
    """Items that are out of stock, by their id."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"items": ["22423", "85123A"], "num_unavailable": 312}]})
    items: list[str]
    num_unavailable: int
    """All there are."""


class Health(Schema):
    """State of the process."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "ready", "release": "2026-11-24"}]})
    status: str
    release: str | None = None


class Problem(Schema):
    """One thing that is wrong, and where."""

    loc: list[str | int]
    msg: str


class Problems(Schema):
    """The body of every answer that is not a success."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"detail": [{"loc": ["body", "k"], "msg": "Input should be greater than or equal to 1"}]}]
        }
    )
    detail: list[Problem]
