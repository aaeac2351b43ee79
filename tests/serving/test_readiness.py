"""Ready means: rules, arms and the `current` pointer are known. Events and requests are taken before, too."""

from pathlib import Path

import httpx
import pytest

from recsys.contracts import artifact
from recsys.contracts.errors import StoreError
from recsys.store import EventStore
from serving.app import create_app
from serving.arms import ARMS_DOCUMENT, Arms
from serving.config import ServeConfig
from serving.rules import RULES_DOCUMENT, Rules
from tests.serving.conftest import FakeEngine, fake_app, running
from tests.serving.test_live import Site, site  # noqa: F401  # a fixture

LOOKS_ONCE = ServeConfig(deadline_ms=10_000, poll_s=3_600, recall_s=3_600)


def until_ready(client: httpx.Client) -> None:
    assert any(client.get("/readyz").status_code == 200 for _ in range(10_000))


@pytest.fixture
def store(tmp_path: Path) -> EventStore:
    return EventStore.open(f"sqlite:///{tmp_path / 'store.db'}")  # the server closes it


def test_a_denied_item_is_never_shown_by_a_server_that_is_ready(store: EventStore) -> None:
    store.write_document(RULES_DOCUMENT, lambda _: Rules(denied=["sku-3"]).model_dump())
    with running(fake_app(LOOKS_ONCE, FakeEngine(), store)) as address, httpx.Client(base_url=address) as client:
        until_ready(client)
        answer = client.post("/v1/recommendations", json={"events": [{"item_id": "sku-3"}], "k": 20}).json()
    assert len(answer["items"]) == 19
    assert "sku-3" not in {item["item_id"] for item in answer["items"]}


def test_a_server_that_is_ready_knows_a_running_experiment_and_where_current_points(site: Site) -> None:  # noqa: F811
    arms = Arms.from_mapping({"arms": [{"name": "old"}, {"name": "new", "release": "c"}]}, "arms")
    site.store.write_document(ARMS_DOCUMENT, lambda _: arms.model_dump())
    releases = site.releases()
    artifact.set_current(site.folder, "b")
    app = create_app(LOOKS_ONCE, releases, site.store, releases._cache)
    with running(app) as address, httpx.Client(base_url=address) as client:
        until_ready(client)
        answers = [client.post("/v1/recommendations", json={"user_id": f"u{n}"}).json() for n in range(20)]
    assert {(answer["arm"], answer["release"]) for answer in answers} == {("old", "b"), ("new", "c")}


def test_not_ready_until_the_store_could_be_read_though_events_are_taken_and_requests_answered(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []

    def gone(name: str) -> None:
        looks.append(name)
        raise StoreError(f"store: {name} not read: busy")

    config = ServeConfig(deadline_ms=10_000, poll_s=0.01, recall_s=3_600)
    app = fake_app(config, FakeEngine(), store)
    with monkeypatch.context() as broken:
        broken.setattr(store, "document", gone)
        with running(app) as address, httpx.Client(base_url=address) as client:
            assert any(app.state.endpoint._is_warm for _ in iter(lambda: client.get("/readyz").status_code, 200))
            assert any(looks.count(ARMS_DOCUMENT) > 3 for _ in range(10_000) if client.get("/healthz"))
            assert client.get("/readyz").json() == {"status": "warming up", "release": None}
            event = {"user_id": "ann", "item_id": "sku-1"}
            assert client.post("/v1/events", json={"events": [event]}).json()["stored"] == 1
            answer = client.post("/v1/recommendations", json={"events": [{"item_id": "sku-1"}], "k": 1}).json()
            assert [item["item_id"] for item in answer["items"]] == ["sku-1"]
            broken.undo()
            until_ready(client)
