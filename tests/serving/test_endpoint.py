from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace

import httpx
import pytest

from recsys.contracts.errors import StoreError
from recsys.contracts.events import Event
from recsys.contracts.ids import Vocabulary
from recsys.runtime.recommender import Recommender
from recsys.store import EventStore
from serving.app import create_app
from serving.config import ServeConfig
from serving.live import Releases
from serving.sessions import SessionCache
from tests.serving.conftest import FakeEngine, fake_release, running


def items(answer: dict) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def test_new_events_count_in_the_very_next_answer(shop) -> None:
    shop.tell("sku-3")
    assert items(shop.ask(user_id="ann", k=2)) == ["sku-3", "sku-0"]
    assert shop.tell("sku-5") == {"stored": 1, "duplicates": 0}
    answer = shop.ask(user_id="ann", k=2)
    assert items(answer) == ["sku-5", "sku-0"]
    assert (answer["source"], answer["degraded"], answer["reason"], answer["release"]) == ("model", None, None, "r1")
    assert set(answer["timings_ms"]) == {"wait", "history", "encode", "rank", "total"}
    assert answer["items"][0]["title"] == "Title of sku-5"


def test_given_events_need_no_user(shop) -> None:
    answer = shop.ask(events=[{"item_id": "sku-1"}, {"item_id": "sku-7"}], k=1)
    assert items(answer) == ["sku-7"]


def test_excluded_and_seen_items_are_left_out(shop) -> None:
    shop.tell("sku-3")
    assert items(shop.ask(user_id="ann", k=1, exclude=["sku-3"])) == ["sku-0"]
    assert items(shop.ask(user_id="ann", k=1, exclude_seen=True)) == ["sku-0"]


def test_items_of_events_since_the_last_answer_are_left_out_too(shop) -> None:
    shop.tell("sku-3")
    shop.ask(user_id="ann")
    shop.tell("sku-5", "sku-3")
    assert {"sku-3", "sku-5"}.isdisjoint(items(shop.ask(user_id="ann", k=20, exclude_seen=True)))
    (live,) = shop.endpoint.releases._live.values()
    assert sorted(live.sessions.peek("ann").seen.tolist()) == [4, 6]  # each once


def test_of_events_in_the_request_the_purchased_ones_are_left_out(shop) -> None:
    told = [{"item_id": "sku-3", "event_type": "purchase"}, {"item_id": "sku-5"}]
    shown = items(shop.ask(events=told, k=20, exclude_purchased=True))
    assert "sku-3" not in shown
    assert "sku-5" in shown


def test_new_items_that_were_seen_are_left_out_like_all_others(tmp_path) -> None:
    release = fake_release(FakeEngine())
    known = release.vocabulary.items
    release = replace(release, vocabulary=Vocabulary([*known[:-1], replace(known[-1], is_new=True)]))
    store, cache = EventStore.open(f"sqlite:///{tmp_path / 'store.db'}"), SessionCache(10**8)
    app = create_app(ServeConfig(deadline_ms=10_000), Releases(Recommender(release), store, cache), store, cache)
    with running(app) as address, httpx.Client(base_url=address, timeout=30) as client:
        told = [{"item_id": "sku-3"}, {"item_id": "sku-19"}]
        client.post("/v1/events", json={"events": [{"user_id": "ann", **event} for event in told]})
        for whose in ({"events": told}, {"user_id": "ann"}):
            answer = client.post("/v1/recommendations", json={**whose, "k": 20, "exclude_seen": True}).json()
            assert {"sku-3", "sku-19"}.isdisjoint(items(answer))
            assert len(answer["items"]) == 18


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"user_id": "nobody"}, "unknown_user"),
        ({"events": []}, "no_known_items"),
        ({"events": [{"item_id": "never seen"}]}, "no_known_items"),
    ],
)
def test_who_is_not_known_gets_popular_items_with_the_reason(shop, body: dict, reason: str) -> None:
    answer = shop.ask(**body, k=1)
    assert (items(answer), answer["source"], answer["reason"], answer["degraded"]) == (
        ["sku-19"],
        "popular",
        reason,
        None,
    )


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "user_id and events"),
        ({"user_id": "a", "events": []}, "user_id and events"),
        ({"user_id": ""}, "user_id"),
        ({"user_id": "a" * 257}, "user_id"),
        ({"user_id": 7}, "user_id"),
        ({"user_id": "a", "k": 0}, "k"),
        ({"user_id": "a", "k": 101}, "k"),
        ({"user_id": "a", "K": 5}, "K"),
        ({"user_id": "a", "deadline_ms": -1}, "deadline_ms"),
        ({"events": [{"item": "x"}]}, "item_id"),
        ({"events": [{"item_id": "x"}] * 10_000}, "events"),
    ],
)
def test_a_bad_request_names_the_field(shop, body: dict, field: str) -> None:
    response = shop.client.post("/v1/recommendations", json=body)
    assert response.status_code == 422
    assert field in response.text


@pytest.mark.parametrize("path", ["/v1/recommendations", "/v1/events"])
@pytest.mark.parametrize("content", [b"{", b"", b"\xff", b"[]", b"null"])
def test_malformed_json_is_refused(shop, path: str, content: bytes) -> None:
    response = shop.client.post(path, content=content, headers={"Content-Type": "application/json"})
    assert response.status_code in {400, 422}
    assert response.json()["detail"]


def test_events_are_idempotent_by_id_and_keep_their_time(shop) -> None:
    shop.tell("sku-2", event_id="e2", timestamp="2026-01-02T00:00:00Z")
    assert shop.tell("sku-2", event_id="e2") == {"stored": 0, "duplicates": 1}
    shop.tell("sku-1", timestamp="2026-01-01T00:00:00")  # earlier, though told later
    assert shop.store.history("ann") == ["sku-1", "sku-2"]


@pytest.mark.parametrize(
    "event", [{"user_id": "a"}, {"item_id": "a"}, {"user_id": "a", "item_id": "b", "timestamp": "x"}]
)
def test_one_bad_event_stores_none_of_its_batch(shop, event: dict) -> None:
    good = {"user_id": "a", "item_id": "sku-1"}
    assert shop.client.post("/v1/events", json={"events": [good, event]}).status_code == 422
    assert shop.store.num_events() == 0


def test_a_history_of_100000_events_is_answered(shop) -> None:
    for start in range(0, 100_000, 10_000):
        rows = [Event(user_id="big", item_id=f"sku-{n % 20}", timestamp_ms=n) for n in range(start, start + 10_000)]
        shop.store.append(rows)
    assert items(shop.ask(user_id="big", k=1)) == ["sku-19"]


def test_a_stalled_engine_never_makes_an_answer_late(open_shop) -> None:
    shop = open_shop(deadline_ms=50, num_workers=1, max_waiting=1)
    shop.tell("sku-3")
    shop.engine.go_on.clear()
    answers = [shop.ask(user_id="ann", k=1) for _ in range(4)]  # the engine is still blocked here
    assert {a["degraded"] for a in answers} <= {"deadline", "overload"}
    assert all(items(a) for a in answers)
    shop.engine.go_on.set()
    assert "recsys_degraded_total{reason=" in shop.client.get("/metrics").text


@pytest.mark.parametrize("whose", ["cold users", "warm users", "nobody"])
def test_a_batch_as_large_as_may_be_finds_its_places(shop, whose: str) -> None:
    users = [f"u{n}" for n in range(100)]
    for user in users:
        shop.store.append([Event(user_id=user, item_id="sku-3", timestamp_ms=1)])
    requests = [{"events": [{"item_id": "sku-3"}]} if whose == "nobody" else {"user_id": user} for user in users]
    for _ in range(2 if whose == "warm users" else 1):
        answers = shop.client.post("/v1/recommendations:batch", json={"requests": requests}).json()["answers"]
    assert [(each["degraded"], each["source"]) for each in answers] == [(None, "model")] * 100


def test_overload_is_answered_at_once_and_labelled(open_shop) -> None:
    shop = open_shop(deadline_ms=5_000, num_workers=1, max_waiting=0)
    shop.tell("sku-3")
    shop.engine.go_on.clear()
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(shop.ask, user_id="ann", k=1) for _ in range(4)]
        refused = []
        for future in as_completed(waiting):  # three find no place; one holds the worker
            refused.append(future)
            if len(refused) == 3:
                break
        shop.engine.go_on.set()
        labels = sorted(str(future.result()["degraded"]) for future in waiting)
    assert labels == ["None", "overload", "overload", "overload"]


def test_a_broken_engine_and_a_broken_store_are_labelled(shop, monkeypatch, caplog) -> None:
    shop.tell("sku-3")
    shop.engine.broken = True
    assert shop.ask(user_id="ann")["degraded"] == "engine_error"

    def gone(*_args, **_kwargs):
        raise StoreError("store: history not read: disk is gone")

    monkeypatch.setattr(shop.store, "glance", gone)
    assert shop.ask(user_id="ann")["degraded"] == "store_error"
    monkeypatch.setattr(shop.store, "append", gone)
    response = shop.client.post("/v1/events", json={"events": [{"user_id": "a", "item_id": "b"}]})
    assert response.json() == {
        "detail": [{"loc": ["store"], "msg": "the store cannot be used at the moment; try again later"}]
    }
    assert response.status_code == 503
    assert "store: history not read: disk is gone" in caplog.text


def test_health_readiness_metrics_and_the_openapi_description(shop) -> None:
    assert shop.client.get("/healthz").json()["status"] == "ok"
    assert any(shop.client.get("/readyz").status_code == 200 for _ in range(10_000))  # it warms up first
    assert shop.client.get("/readyz").json() == {"status": "ready", "release": "r1"}
    shop.ask(user_id="ann")
    metrics = shop.client.get("/metrics").text
    assert 'recsys_answers_total{arm="all",release="r1",source="popular"} 1.0' in metrics
    assert "recsys_memory_bytes" in metrics
    paths = shop.client.get("/openapi.json").json()["paths"]
    assert {"/v1/recommendations", "/v1/events", "/healthz", "/readyz", "/metrics"} <= set(paths)


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/docs/oauth2-redirect"])
def test_no_page_loads_scripts_from_elsewhere(shop, path: str) -> None:
    assert shop.client.get(path).status_code == 404


def test_impressions_are_kept(shop) -> None:
    answer = shop.ask(user_id="ann", k=2)
    shop.endpoint.service.impressions.write()
    with shop.store.engine.connect() as connection:
        rows = connection.exec_driver_sql("select request_id, user_id, source, items from impressions").all()
    assert rows == [(answer["request_id"], "ann", "popular", '["sku-19", "sku-18"]')]
