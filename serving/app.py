"""The HTTP endpoint. Latency counts from the moment the request's head has been read."""

import gc
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import uvicorn
from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool

from recsys.contracts import artifact
from recsys.contracts.errors import ConfigError
from recsys.runtime.recommender import Recommender
from recsys.store import EventStore
from serving import log
from serving.accounting import Accounting
from serving.admin import admin_routes
from serving.api import event_routes, recommendation_routes, user_routes
from serving.arrival import Arrival
from serving.config import ServeConfig
from serving.endpoint import Endpoint
from serving.express import Express
from serving.guard import SAFE_HEADERS, Guard
from serving.live import Releases
from serving.operation import operation_routes
from serving.problems import add_handlers
from serving.sessions import SessionCache
from serving.shedding import SheddingProtocol, lifespan_state

_SWITCH_S: Final = 0.0002
"""Longest that a worker thread keeps the interpreter while the event loop wants it; Python's own is 5 ms, and a
request needs it several times."""
_NUM_ACCEPTS: Final = 128
"""Handles of the listening socket. The event loop accepts one connection from each before it turns to the requests that
it has: with one handle, connections that all came at once waited for seconds under load."""


def create_app(config: ServeConfig, releases: Releases, store: EventStore, cache: SessionCache) -> FastAPI:
    """The application over live releases and one store, which it closes at shutdown; ready once it has warmed up."""
    endpoint = Endpoint(config, releases, store, cache)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
        endpoint.start()  # beside the event loop: /healthz answers while the engine warms up
        await run_in_threadpool(int)  # what the first call loads would hold the event loop up
        endpoint.service.lag.start()
        yield lifespan_state(endpoint)
        endpoint.service.lag.stop()
        endpoint.close()

    # The framework's own pages of the API load scripts from elsewhere: /openapi.json and the console stay.
    app = FastAPI(
        title="recsys",
        description="Recommendations inside a deadline.",
        version="1",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.add_middleware(Express, endpoint=endpoint)
    app.add_middleware(Guard, access=endpoint.access)
    app.add_middleware(Arrival, lag=endpoint.service.lag)  # the clock starts here
    app.add_middleware(
        Accounting, metrics=endpoint.metrics, others=endpoint.others
    )  # the outermost: refusals of all others are noted
    add_handlers(app)
    for routes in (recommendation_routes, event_routes, user_routes, admin_routes, operation_routes):
        app.include_router(routes(endpoint))
    for route in app.routes:  # they are put together at the first look, which on the event loop held answers up
        route.matches({"type": "http", "method": "GET", "path": "/", "headers": [], "path_params": {}})
    app.state.endpoint = endpoint
    return app


def load_app(config: ServeConfig, path: Path, store_url: str) -> tuple[FastAPI, Releases]:
    """The application over the release at `path`, or over a folder of releases and its current one.

    Raises:
        RecsysError: the store or the release cannot be used, or its engine does not work.
    """
    store = EventStore.open(store_url)
    cache = SessionCache(int(config.session_cache_mb * 1e6))

    def load(folder: Path) -> Recommender:
        return Recommender.load(folder, num_threads=config.num_threads)

    folder = None if (path / artifact.MANIFEST_NAME).exists() else path
    releases = Releases(load(path), store, cache, folder, load, config.prepare_s)
    releases.current.check()
    return create_app(config, releases, store, cache), releases


def run(config: ServeConfig, path: Path, store_url: str) -> None:
    """Load, warm up, and serve until SIGTERM or SIGINT; requests under way are finished.

    Raises:
        RecsysError: the store, the release or the port cannot be used.
    """
    log.configure()
    sys.setswitchinterval(_SWITCH_S)
    app, releases = load_app(config, path, store_url)  # a broken engine stops us here, before the port is taken
    gc.collect()
    gc.freeze()  # a look through a large catalogue for garbage would stop every answer meanwhile
    settings = server_settings(app, config)
    with _listen(config) as listening:
        host, port = listening.getsockname()[:2]
        print(f"release {releases.current.name}, http://{host}:{port}/console", file=sys.stderr, flush=True)  # noqa: T201
        with suppress(KeyboardInterrupt):  # uvicorn raises it again once it has shut down
            uvicorn.Server(settings).run(sockets=_handles(listening))


def server_settings(app: FastAPI, config: ServeConfig) -> uvicorn.Config:
    """How the application is served."""
    return uvicorn.Config(
        app,
        http=SheddingProtocol,
        loop="uvloop",
        log_config=None,  # uvicorn's own would close the handlers that there are; its lines come to ours
        log_level="warning",
        access_log=False,
        proxy_headers=False,  # who asks is told by `guard.client_address`, for answers that are given unread, too
        headers=[(name.decode(), value.decode()) for name, value in SAFE_HEADERS],
        timeout_keep_alive=75,  # longer than proxies keep theirs, so that they close first
        timeout_graceful_shutdown=config.drain_s,
    )


def _handles(listening: socket.socket) -> list[socket.socket]:
    """The same listening socket many times."""
    return [listening, *(listening.dup() for _ in range(_NUM_ACCEPTS - 1))]


def _listen(config: ServeConfig) -> socket.socket:
    """A listening socket: who reads the line that is printed next can connect."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        listening = socket.create_server((config.host, config.port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigError(f"cannot listen on {config.host}:{config.port}: {error.strerror}; choose another") from None
    # Connections inherit it. asyncio would not set it on them: this socket names no protocol. Without it a body
    # waits for the acknowledgement of its head, which takes 40 ms.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening
