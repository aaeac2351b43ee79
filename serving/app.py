"""The HTTP endpoint. Latency counts from the moment the request's head has been read."""

import logging
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from recsys.contracts.errors import StoreError
from recsys.contracts.events import Event
from recsys.runtime.recommender import Recommender
from recsys.store import EventStore
from serving.answers import AnswerService
from serving.config import ServeConfig
from serving.metrics import Metrics
from serving.schemas import EventBatch, EventsStored, Health, RecommendationAnswer, RecommendationRequest

_Scope = MutableMapping[str, Any]
_ASGI = Callable[[_Scope, Any, Any], Awaitable[None]]


class ArrivalClock:
    """Notes when a request arrived, before its body is read and checked."""

    def __init__(self, app: _ASGI) -> None:
        self._app = app

    async def __call__(self, scope: _Scope, receive: Any, send: Any) -> None:
        """Pass on, with the moment in the request's state."""
        if scope["type"] == "http":
            scope.setdefault("state", {})["arrived"] = time.monotonic()
        await self._app(scope, receive, send)


def create_app(config: ServeConfig, recommender: Recommender, store: EventStore) -> FastAPI:
    """The application over one release and one store; ready once it has warmed up."""
    metrics = Metrics(recommender.release.name)
    service = AnswerService(config, recommender, store, metrics)
    ready = False

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        nonlocal ready
        recommender.warm_up()
        ready = True
        yield
        service.close()
        store.close()

    app = FastAPI(title="recsys", description="Recommendations inside a deadline.", version="1", lifespan=lifespan)
    app.add_middleware(ArrivalClock)

    @app.exception_handler(StoreError)
    async def store_trouble(_: Request, error: StoreError) -> JSONResponse:
        return JSONResponse({"detail": [{"loc": ["store"], "msg": str(error)}]}, status_code=503)

    @app.post("/v1/recommendations", tags=["recommendations"])
    async def recommendations(body: RecommendationRequest, request: Request) -> RecommendationAnswer:
        """What this user, or someone with these events, will want next."""
        return await service.answer(body, request.state.arrived)

    @app.post("/v1/events", tags=["events"], responses={503: {"description": "The store could not keep them."}})
    def events(body: EventBatch) -> EventsStored:
        """Keep events. They are durable when this answers, and count in the next recommendation."""
        now_ms = int(time.time() * 1000)
        result = store.append(
            [
                Event(**event.model_dump(exclude={"timestamp"}), timestamp_ms=event.timestamp_ms(now_ms))
                for event in body.events
            ]
        )
        metrics.events.inc(result.stored)
        return EventsStored(stored=result.stored, duplicates=result.duplicates)

    @app.get("/healthz", tags=["operation"])
    def healthz() -> Health:
        """The process lives."""
        return Health(status="ok")

    @app.get("/readyz", tags=["operation"], responses={503: {"description": "Not warmed up."}})
    def readyz(response: Response) -> Health:
        """The process can answer inside the deadline."""
        if not ready:
            response.status_code = 503
            return Health(status="warming up")
        return Health(status="ready", release=recommender.release.name)

    @app.get("/metrics", tags=["operation"], response_class=Response)
    def prometheus() -> Response:
        """Counters in Prometheus' text format."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


def run(config: ServeConfig, releases: Path, store_url: str) -> None:
    """Load, warm up, and serve until SIGTERM or SIGINT; requests under way are finished."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    store = EventStore.open(store_url)
    recommender = Recommender.load(releases, num_threads=config.num_threads)
    app = create_app(config, recommender, store)
    print(f"release {recommender.release.name}, http://{config.host}:{config.port}/docs", file=sys.stderr)  # noqa: T201
    uvicorn.run(app, host=config.host, port=config.port, log_level="warning", access_log=False)
