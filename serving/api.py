"""What shops call: recommendations, similar items, events, users."""

import time
from datetime import UTC, datetime
from typing import Final

from fastapi import APIRouter, Query, Request
from starlette.exceptions import HTTPException

from recsys.contracts.events import NEGATIVE_TYPES, Event
from recsys.contracts.ids import PAD
from serving.arms import NO_ARM
from serving.endpoint import Endpoint
from serving.paths import ITEM, USER, ItemId, UserId
from serving.problems import BAD_BODY, GUARDED, NOT_FOUND, STORE_TROUBLE
from serving.schemas import (
    IMPRESSION,
    Changed,
    EventBatch,
    EventsStored,
    HistoryEvent,
    JoinRequest,
    RecommendationAnswer,
    RecommendationAnswers,
    RecommendationBatch,
    RecommendationRequest,
    SimilarItems,
    UserHistory,
)
from serving.similar import similar

_PLACE: Final = r"^-?[0-9]{1,18}-[0-9]{1,18}$"
"""Of an event in its user's history: the moment in milliseconds and the number."""


def recommendation_routes(endpoint: Endpoint) -> APIRouter:
    """Answers inside the deadline."""
    router = APIRouter(tags=["recommendations"], responses={**BAD_BODY, **GUARDED})

    @router.post("/v1/recommendations")
    async def recommendations(body: RecommendationRequest, request: Request) -> RecommendationAnswer:
        """What this user, or someone with these events, will want next."""
        return await endpoint.service.answer(body, request.state.arrived)

    @router.post("/v1/recommendations:batch")
    async def batch(body: RecommendationBatch, request: Request) -> RecommendationAnswers:
        """Several requests at once; each has its own deadline and label, and counts for its client's limit."""
        endpoint.access.also(request.scope, len(body.requests) - 1)
        return RecommendationAnswers(answers=await endpoint.service.answer_all(body.requests, request.state.arrived))

    @router.get(f"/v1/items{ITEM}/similar", responses=NOT_FOUND)
    async def similar_items(
        item_id: ItemId, request: Request, k: int = Query(default=10, ge=1, le=100, examples=[10])
    ) -> SimilarItems:
        """Items most like this one, by the current release, inside the deadline."""
        live = endpoint.releases.current
        token = int(live.recommender.release.vocabulary.tokens([item_id])[0])
        if token == PAD:
            raise HTTPException(404, "no such item in the current release")
        found = await similar(endpoint.service, live, token, k, request.state.arrived)
        took_ms = (time.monotonic() - request.state.arrived) * 1000
        endpoint.metrics.count(found.source, found.release, NO_ARM, found.degraded, {"total": took_ms})
        request.state.of_answer = {"release": found.release, "source": found.source, "degraded": found.degraded}
        return found

    return router


def event_routes(endpoint: Endpoint) -> APIRouter:
    """What users did."""
    router = APIRouter(tags=["events"], responses={**BAD_BODY, **GUARDED, **STORE_TROUBLE})

    @router.post("/v1/events")
    async def events(body: EventBatch) -> EventsStored:
        """Keep events. They are durable when this answers, and count in the next recommendation.

        Events of type `impression` say what was displayed of an answer; they do not enter histories.
        """
        now_ms = int(time.time() * 1000)
        told = [
            Event(**event.model_dump(exclude={"timestamp", "context"}), timestamp_ms=event.timestamp_ms(now_ms))
            for event in body.events
        ]
        done_with = [(e, sent.context) for e, sent in zip(told, body.events, strict=True) if e.event_type != IMPRESSION]
        contexts = {
            place: context.values()
            for place, (event, context) in enumerate(done_with)
            if context is not None and event.event_type not in NEGATIVE_TYPES
        }
        shown = [event for event in told if event.event_type == IMPRESSION]
        done = await endpoint.write(lambda: endpoint.store.append([event for event, _ in done_with], contexts, shown))
        endpoint.metrics.events.inc(done.stored)
        return EventsStored(stored=done.stored, duplicates=done.duplicates)

    return router


def user_routes(endpoint: Endpoint) -> APIRouter:
    """One user's events: shown, joined, forgotten."""
    responses = {**BAD_BODY, **GUARDED, **STORE_TROUBLE}
    router = APIRouter(prefix="/v1/users", tags=["users"], responses=responses)

    @router.get(f"{USER}/history")
    def history(
        user_id: UserId,
        limit: int = Query(default=100, ge=1, le=1_000, examples=[100]),
        before: str | None = Query(default=None, pattern=_PLACE, examples=["1795514400000-17"]),
    ) -> UserHistory:
        """The latest events of a user, oldest first; or the latest `before` those of another answer."""
        place = None if before is None else _place(before)
        found, first = endpoint.store.page(user_id, limit, place)
        return UserHistory(
            before=None if first is None else f"{first[0]}-{first[1]}",
            events=[
                HistoryEvent(item_id=e.item_id, event_type=e.event_type, timestamp=_moment(e.timestamp_ms))
                for e in found
            ],
        )

    @router.post(f"{USER}/join")
    def join(user_id: UserId, body: JoinRequest) -> Changed:
        """Give an anonymous session's events to this user, who has signed in."""
        if body.session_id == user_id:
            raise HTTPException(422, "session_id is the user itself; give the id that the session had before")
        moved = endpoint.store.join(body.session_id, user_id)
        endpoint.forget({body.session_id})
        return Changed(events=moved)

    @router.delete(USER)
    def forget(user_id: UserId) -> Changed:
        """Forget a user: in the store and in this process now, in other workers' memory within `poll_s`.

        The nightly job is told to leave their events out of logs. Events of before are not stored again; later ones
        are, as anybody's.
        """
        deleted = endpoint.store.forget(user_id)
        endpoint.forget({user_id})
        return Changed(events=deleted)

    return router


def _place(text: str) -> tuple[int, int]:
    """What `_PLACE` matches, in numbers."""
    timestamp_ms, _, seq = text.rpartition("-")
    return int(timestamp_ms), int(seq)


def _moment(timestamp_ms: int) -> datetime | None:
    """None for moments outside the calendar: a log may count instead of telling the time."""
    try:
        return datetime.fromtimestamp(timestamp_ms / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return None
