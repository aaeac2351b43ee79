"""A real server on loopback, over a fake model that can be stalled and broken."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
import uvicorn

from recsys.contracts.ids import Floats, Item, Tokens, Vocabulary
from recsys.contracts.precision import CacheFormat
from recsys.runtime.engine import EngineInfo, Session
from recsys.runtime.fusion import Fusion
from recsys.runtime.index import ItemIndex
from recsys.runtime.recommender import Recommender
from recsys.runtime.release import Release
from recsys.store import EventStore
from recsys.transitions import TransitionTable
from recsys.windows import WindowConfig
from serving.app import _handles, _listen, create_app, server_settings
from serving.config import ServeConfig
from serving.live import Releases
from serving.sessions import SessionCache

KNOWN = [f"sku-{n}" for n in range(20)]


class FakeEngine:
    """The item of the last event is the most likely next one, then the items in their order. It can be stalled."""

    def __init__(self) -> None:
        self.info = EngineInfo(
            name="fake", precision="f32", width=len(KNOWN), num_threads=1, window_size=8, cache=CacheFormat.FLOAT32
        )
        self.go_on = threading.Event()
        self.go_on.set()
        self.broken = False
        self.encoded: list[int] = []
        """Length of every window that was encoded."""

    def encode(self, windows: Sequence[Tokens]) -> Floats:
        self.go_on.wait(30)
        if self.broken:
            raise RuntimeError("the engine is on fire")
        self.encoded += [len(window) for window in windows]
        vectors = np.tile(1 - np.arange(len(KNOWN), dtype=np.float32) / 100, (len(windows), 1))
        for row, window in enumerate(windows):
            vectors[row, window[-1] - 1] = 2
        return vectors

    def open(self, windows: Sequence[Tokens]) -> list[Session]:
        vectors = self.encode(windows)
        return [Session(vectors[i], len(tokens), 1_000, tokens) for i, tokens in enumerate(windows)]

    def append(self, sessions: Sequence[Session], events: Sequence[Tokens]) -> list[Session]:
        return self.open([np.concatenate([s.cache, more]) for s, more in zip(sessions, events, strict=True)])

    def warm_up(self) -> None:
        pass


CATEGORIES = ["lamps", "cups", None]
METRICS = {
    "ndcg10": {"reference": 0.5, "engine": 0.49},
    "cost": {"float32_mb": 4.25, "float32_encode_ms": 61.0, "engine_encode_ms": 14.0},
}


def fake_release(engine, name: str = "r1", window: WindowConfig | None = None) -> Release:
    """Items sku-0 … sku-19, later ones more popular; sku-n costs n and is of category n modulo 3."""
    items = [
        Item(
            item_id=item_id,
            item_index=n + 1,
            num_events=n + 1,
            title=f"Title of {item_id}",
            category=CATEGORIES[n % 3],
            price=float(n),
        )
        for n, item_id in enumerate(KNOWN)
    ]
    nothing = np.zeros(len(KNOWN) + 2, dtype=np.int64)
    return Release(
        name=name,
        folder=Path(name),
        manifest=SimpleNamespace(metrics=METRICS, files={}),
        vocabulary=Vocabulary(items),
        window=window or WindowConfig(),
        fusion=Fusion(),
        transitions=TransitionTable(nothing, np.empty(0, dtype=np.int32), np.empty(0, dtype=np.float16)),
        engine=engine,
        index=ItemIndex.build(np.eye(len(KNOWN), dtype=np.float32)),
    )


def fake_app(config: ServeConfig, engine, store: EventStore, window: WindowConfig | None = None, **of_releases):
    """The application over a fake release."""
    cache = SessionCache(10**8)
    releases = Releases(Recommender(fake_release(engine, window=window)), store, cache, **of_releases)
    return create_app(config, releases, store, cache)


class Shop:
    """What a test talks to."""

    def __init__(self, client: httpx.Client, engine: FakeEngine, store: EventStore, app) -> None:
        self.client = client
        self.engine = engine
        self.store = store
        self.endpoint = app.state.endpoint

    def ask(self, **body) -> dict:
        response = self.client.post("/v1/recommendations", json=body)
        assert response.status_code == 200, response.text
        return response.json()

    def tell(self, *items: str, user: str = "ann", **fields) -> dict:
        events = [{"user_id": user, "item_id": item, **fields} for item in items]
        return self.client.post("/v1/events", json={"events": events}).json()


class Server(uvicorn.Server):
    async def main_loop(self) -> None:
        """Until it should end; uvicorn's own looks only ten times a second."""
        await self.on_tick(0)
        while not self.should_exit:
            await asyncio.sleep(0.01)


@contextlib.contextmanager
def running(app) -> Iterator[str]:
    """The address of a real uvicorn server in a thread."""
    server = Server(server_settings(app, ServeConfig(drain_s=5)))
    with _listen(ServeConfig(port=0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": _handles(listening)})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)


@pytest.fixture
def open_shop(tmp_path: Path) -> Iterator[Callable[..., Shop]]:
    with contextlib.ExitStack() as stack:

        def opened(**settings) -> Shop:
            engine = FakeEngine()
            store = EventStore.open(f"sqlite:///{tmp_path / 'store.db'}")
            app = fake_app(ServeConfig(**settings), engine, store)
            address = stack.enter_context(running(app))
            # Plain HTTP: to read certificates would take longer than most tests.
            client = stack.enter_context(httpx.Client(base_url=address, timeout=30, verify=False))
            stack.callback(engine.go_on.set)
            return Shop(client, engine, store, app)

        yield opened


@pytest.fixture
def shop(open_shop: Callable[..., Shop]) -> Shop:
    return open_shop(deadline_ms=10_000)
