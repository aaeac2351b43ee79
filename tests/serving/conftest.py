"""A real server on loopback, over a fake model that can be stalled and broken."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import uvicorn

from recsys.contracts.errors import UnknownItemError
from recsys.runtime.recommender import ScoredItem
from recsys.store import EventStore
from serving.app import create_app
from serving.config import ServeConfig

KNOWN = [f"sku-{n}" for n in range(20)]


class FakeRecommender:
    """Recommends the known items, most recent one of the history first."""

    def __init__(self) -> None:
        self.release = SimpleNamespace(name="r1")
        self.go_on = threading.Event()
        self.go_on.set()
        self.broken = False

    def warm_up(self) -> None:
        pass

    def recommend(self, history, k=10, *, exclude=(), exclude_seen=False) -> list[ScoredItem]:
        self.go_on.wait(30)
        if self.broken:
            raise RuntimeError("the engine is on fire")
        known = [item for item in history if item in KNOWN]
        if not known:
            raise UnknownItemError("nothing known")
        ranked = [known[-1], *(item for item in KNOWN if item != known[-1])]
        hidden = {*exclude, *(known if exclude_seen else ())}
        return [ScoredItem(item, 1.0, f"Title of {item}") for item in ranked if item not in hidden][:k]

    def popular(self, k, *, exclude=()) -> list[ScoredItem]:
        return [ScoredItem(item, 1.0, None) for item in KNOWN[::-1] if item not in exclude][:k]


class Shop:
    """What a test talks to."""

    def __init__(self, client: httpx.Client, recommender: FakeRecommender, store: EventStore) -> None:
        self.client = client
        self.recommender = recommender
        self.store = store

    def ask(self, **body) -> dict:
        response = self.client.post("/v1/recommendations", json=body)
        assert response.status_code == 200, response.text
        return response.json()

    def tell(self, *items: str, user: str = "ann", **fields) -> dict:
        events = [{"user_id": user, "item_id": item, **fields} for item in items]
        return self.client.post("/v1/events", json={"events": events}).json()


@contextlib.contextmanager
def running(app) -> Iterator[str]:
    """The address of a real uvicorn server in a thread."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(30)


@pytest.fixture
def open_shop(tmp_path: Path) -> Iterator[Callable[..., Shop]]:
    with contextlib.ExitStack() as stack:

        def opened(**settings) -> Shop:
            recommender = FakeRecommender()
            store = EventStore.open(f"sqlite:///{tmp_path / 'store.db'}")
            address = stack.enter_context(running(create_app(ServeConfig(**settings), recommender, store)))
            client = stack.enter_context(httpx.Client(base_url=address, timeout=30))
            stack.callback(recommender.go_on.set)
            return Shop(client, recommender, store)

        yield opened


@pytest.fixture
def shop(open_shop: Callable[..., Shop]) -> Shop:
    return open_shop(deadline_ms=10_000)
