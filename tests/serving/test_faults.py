"""Stalled engine, index and store, with real threads: an answer in time, and where it came from."""

import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from recsys.contracts.errors import StoreError
from serving.endpoint import Endpoint
from tests.serving.test_shedding import in_one_piece, message


@pytest.fixture
def hurried(open_shop, monkeypatch):
    """Few workers and little time, so that a stall shows at once; however busy this machine is, it is not behind."""
    monkeypatch.setattr(Endpoint, "is_behind", lambda *_: False)
    return open_shop(deadline_ms=200, reserve_ms=50, num_workers=1, max_waiting=1)


def stall(monkeypatch, target, name: str) -> threading.Event:
    """Make a method wait until the event is set."""
    go_on = threading.Event()
    true = getattr(target, name)

    def stalled(*args, **kwargs):
        go_on.wait(30)
        return true(*args, **kwargs)

    monkeypatch.setattr(target, name, stalled)
    return go_on


def items(answer: dict) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def test_a_stalled_engine_after_an_answer_gives_the_last_answer_under_todays_rules(hurried) -> None:
    hurried.tell("sku-3")
    first = hurried.ask(user_id="ann", k=5)
    assert first["source"] == "model"
    hurried.tell("sku-4")
    hurried.engine.go_on.clear()
    again = hurried.ask(user_id="ann", k=5, exclude=[items(first)[0]])
    assert (again["source"], again["degraded"]) == ("last_answer", "deadline")
    assert items(again)[:4] == items(first)[1:]
    assert len(items(again)) == 5  # filled up


def test_a_stalled_engine_for_a_new_user_gives_items_near_the_last_event(hurried) -> None:
    hurried.tell("sku-3")
    hurried.engine.go_on.clear()
    answer = hurried.ask(user_id="ann", k=3)
    assert (answer["source"], answer["degraded"]) == ("nearest", "deadline")
    assert "sku-3" not in items(answer)


def test_a_stalled_index_gives_popular_items_of_the_last_category(hurried, monkeypatch) -> None:
    hurried.tell("sku-3")  # a lamp: sku-0, 3, 6 … 18
    index = hurried.endpoint.releases.current.recommender.release.index
    go_on = stall(monkeypatch, index, "cosines")
    answer = hurried.ask(user_id="ann", k=2)
    assert (answer["source"], answer["degraded"], items(answer)) == (
        "popular_in_category",
        "deadline",
        ["sku-18", "sku-15"],
    )
    go_on.set()


def test_a_stalled_store_gives_popular_items_and_then_sheds(hurried, monkeypatch) -> None:
    go_on = stall(monkeypatch, hurried.store, "glance")
    answers = [hurried.ask(user_id="new", k=1, deadline_ms=1_000) for _ in range(4)]  # a busy machine gets slack
    assert [a["degraded"] for a in answers] == ["deadline", "deadline", "overload", "overload"]
    assert {(a["source"], *items(a)) for a in answers} == {("popular", "sku-19")}
    go_on.set()
    metrics = hurried.client.get("/metrics").text
    assert 'recsys_degraded_total{reason="overload"} 2.0' in metrics
    assert 'recsys_degraded_total{reason="deadline"} 2.0' in metrics


def test_a_store_that_is_gone_is_answered_from_memory(hurried, monkeypatch) -> None:
    hurried.tell("sku-3")
    first = hurried.ask(user_id="ann", k=2)

    def gone(_user_id: str):
        raise StoreError("store: history not read: disk is gone")

    monkeypatch.setattr(hurried.store, "glance", gone)
    again = hurried.ask(user_id="ann", k=2, deadline_ms=10_000)
    assert (again["source"], again["degraded"], items(again)) == ("last_answer", "store_error", items(first))


def test_whatever_stalls_nothing_is_answered_after_its_deadline(hurried) -> None:
    """By the server's own clock, which starts when the request's head was read. A busy machine gets slack."""
    hurried.tell("sku-3")
    hurried.engine.go_on.clear()
    totals = [hurried.ask(user_id=f"u{n % 2}", events=None, k=5)["timings_ms"]["total"] for n in range(5)]
    assert max(totals) < 200 + 1_000


def test_a_filter_is_honoured_by_every_fallback_and_says_when_nothing_matches(hurried) -> None:
    hurried.tell("sku-3")
    hurried.engine.broken = True
    filters = {"category": ["cups"], "min_price": 5, "max_price": 11}
    assert set(items(hurried.ask(user_id="ann", k=20, filters=filters))) == {"sku-7", "sku-10"}
    nothing = hurried.ask(user_id="ann", filters={"category": ["none such"]})
    assert (nothing["items"], nothing["reason"]) == ([], "no_items_match")


def test_a_loop_that_is_late_is_given_an_answer_without_the_model(hurried, monkeypatch) -> None:
    hurried.tell("sku-3", "sku-4")
    monkeypatch.setattr(type(hurried.endpoint.service.lag), "seconds", 0.2)
    answer = hurried.ask(user_id="ann", k=1)
    assert answer["degraded"] == "deadline"
    assert answer["source"] == "popular"
    assert 2 not in hurried.engine.encoded


def test_similar_items_do_not_wait_for_a_stalled_index(hurried, monkeypatch) -> None:
    index = hurried.endpoint.releases.current.recommender.release.index
    go_on = stall(monkeypatch, index, "cosines")
    answers = [hurried.client.get("/v1/items/sku-4/similar", params={"k": 2}).json() for _ in range(3)]
    assert [answer["degraded"] for answer in answers] == ["deadline", "deadline", "overload"]  # one works, one waits
    for answer in answers:
        assert answer["source"] == "popular_in_category"
        assert items(answer) == ["sku-19", "sku-16"]  # not the item itself; 4, 16 and 19 are of one category
    go_on.set()


def test_while_events_cannot_be_written_the_server_is_healthy_and_answers_with_the_model(shop, monkeypatch) -> None:
    shop.tell("sku-3")
    assert shop.ask(user_id="ann", k=2)["source"] == "model"
    go_on, append = threading.Event(), shop.store.append
    monkeypatch.setattr(shop.store, "append", lambda *told: go_on.wait(30) and append(*told))
    body = {"events": [{"user_id": "bob", "item_id": "sku-4"}]}
    with ThreadPoolExecutor(45) as pool:
        address = str(shop.client.base_url)
        posts = [pool.submit(httpx.post, f"{address}/v1/events", json=body, timeout=30) for _ in range(45)]
        try:
            while shop.endpoint._writers.taken < len(posts):
                assert not any(post.done() for post in posts)
            assert shop.client.get("/healthz").status_code == 200
            assert any(shop.client.get("/readyz").status_code == 200 for _ in range(10_000))  # it warms up first
            (answer,) = in_one_piece(shop, message('{"user_id": "ann", "k": 2}'))
            assert (answer["source"], answer["degraded"]) == ("model", None)
        finally:
            go_on.set()
        assert [post.result().status_code for post in posts] == [200] * len(posts)


def test_while_every_thread_of_the_framework_is_stalled_metrics_are_read_and_users_answered(shop, monkeypatch) -> None:
    shop.tell("sku-3")
    go_on, taken = threading.Event(), threading.Semaphore(0)

    def stalled(_since_ms: int) -> dict:
        taken.release()
        go_on.wait(30)
        return {}

    monkeypatch.setattr(shop.store.attribution, "by_hour", stalled)
    with ThreadPoolExecutor(45) as pool:
        address = f"{shop.client.base_url}/v1/recall"
        looks = [pool.submit(httpx.get, address, timeout=60) for _ in range(45)]
        try:
            assert all(taken.acquire(timeout=30) for _ in range(40))  # as many as the framework has
            metrics = shop.client.get("/metrics")
            assert metrics.status_code == 200
            assert "recsys_requests_total" in metrics.text
            answer = shop.ask(user_id="ann", k=2)
            assert (answer["source"], answer["degraded"]) == ("model", None)
            assert shop.client.get("/readyz").status_code == 200
            assert not any(look.done() for look in looks)
        finally:
            go_on.set()
        assert {look.result().status_code for look in looks} == {200}


def test_events_that_find_no_place_to_wait_are_refused_and_may_be_sent_again(shop, monkeypatch) -> None:
    monkeypatch.setattr(shop.endpoint._writers, "_submit", lambda _: None)
    refused = shop.client.post("/v1/events", json={"events": [{"user_id": "bob", "item_id": "sku-4"}]})
    assert refused.status_code == 503
    assert "try again" in refused.json()["detail"][0]["msg"]
