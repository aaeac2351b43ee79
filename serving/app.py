"""The HTTP endpoint. Latency counts from the moment the request's head has been read."""

import logging
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from recsys.contracts.errors import ConfigError
from recsys.contracts.events import Event
from recsys.runtime.recommender import Recommender
from recsys.store import EventStore
from serving.answers import AnswerService
from serving.arrival import Arrival
from serving.config import ServeConfig
from serving.metrics import Metrics
from serving.problems import BAD_BODY, STORE_TROUBLE, add_handlers
from serving.schemas import EventBatch, EventsStored, Health, RecommendationAnswer, RecommendationRequest

logger = logging.getLogger(__name__)


def create_app(config: ServeConfig, recommender: Recommender, store: EventStore) -> FastAPI:
    """The application over one release and one store, which it closes at shutdown; ready once it has warmed up."""
    metrics = Metrics(recommender.release.name)
    service = AnswerService(config, recommender, store, metrics)
    warmed = threading.Event()

    def warm_up() -> None:
        try:
            recommender.warm_up()
        except Exception:
            logger.exception("warm-up failed; not ready")
        else:
            warmed.set()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # Beside the event loop: /healthz answers while the engine warms up, /readyz with 503.
        threading.Thread(target=warm_up, name="warm-up", daemon=True).start()
        yield
        service.close()
        store.close()

    app = FastAPI(title="recsys", description="Recommendations inside a deadline.", version="1", lifespan=lifespan)
    app.add_middleware(Arrival)
    add_handlers(app)

    @app.post("/v1/recommendations", tags=["recommendations"], responses=BAD_BODY)
    async def recommendations(body: RecommendationRequest, request: Request) -> RecommendationAnswer:
        """What this user, or someone with these events, will want next."""
        return await service.answer(body, request.state.arrived)

    @app.post("/v1/events", tags=["events"], responses={**BAD_BODY, **STORE_TROUBLE})
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

    @app.get("/readyz", tags=["operation"], responses={503: {"model": Health, "description": "Not warmed up."}})
    def readyz(response: Response) -> Health:
        """The process can answer inside the deadline."""
        if not warmed.is_set():
            response.status_code = 503
            return Health(status="warming up")
        return Health(status="ready", release=recommender.release.name)

    @app.get("/metrics", tags=["operation"], response_class=Response)
    def prometheus() -> Response:
        """Counters in Prometheus' text format."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


def run(config: ServeConfig, releases: Path, store_url: str) -> None:
    """Load, warm up, and serve until SIGTERM or SIGINT; requests under way are finished.

    Raises:
        RecsysError: the store, the release or the port cannot be used.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    store = EventStore.open(store_url)
    recommender = Recommender.load(releases, num_threads=config.num_threads)
    recommender.warm_up()  # a broken engine stops us here, before the port is taken
    settings = uvicorn.Config(
        create_app(config, recommender, store),
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=config.drain_s,
    )
    with _listen(config) as listening:
        host, port = listening.getsockname()[:2]
        print(f"release {recommender.release.name}, http://{host}:{port}/docs", file=sys.stderr, flush=True)  # noqa: T201
        with suppress(KeyboardInterrupt):  # uvicorn raises it again once it has shut down
            uvicorn.Server(settings).run(sockets=[listening])


def _listen(config: ServeConfig) -> socket.socket:
    """A listening socket: who reads the line that is printed next can connect."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigError(f"cannot listen on {config.host}:{config.port}: {error.strerror}; choose another") from None
