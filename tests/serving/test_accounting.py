"""Each request is one line in the log and one count, and neither tells whose it was."""

import json
import logging
import re

import pytest

from serving import accounting
from serving.schemas import RecommendationRequest


@pytest.fixture
def said(shop, caplog):
    """What the log says of requests, without what differs from one to the next."""
    caplog.set_level(logging.INFO, logger="serving")

    def lines() -> list[tuple]:
        found = [record.fields for record in caplog.records if record.getMessage() in {"request", "answer"}]
        return [(line.get("method", "answer"), line.get("route"), line.get("status")) for line in found]

    return lines


def counted(shop) -> dict[tuple[str, str, str], float]:
    """(method, route, status) of all but the look at the counts itself."""
    pattern = r'^recsys_requests_total{method="(\w+)",route="([^"]*)",status="(\d+)"} (\S+)$'
    found = re.findall(pattern, shop.client.get("/metrics").text, re.MULTILINE)
    return {(method, route, status): float(count) for method, route, status, count in found}


def test_each_request_is_one_line_and_one_count_by_its_route(shop, said, caplog) -> None:
    post, client = "POST", shop.client
    shop.tell("sku-3", user="very-private")
    shop.ask(user_id="very-private")
    client.post("/v1/recommendations:batch", json={"requests": [{"user_id": "very-private"}] * 2})
    client.post("/v1/recommendations", json={"user_id": "very-private", "k": 0})
    client.get("/v1/items/sku-3/similar")
    client.get("/v1/users/very-private/history")
    client.delete("/v1/users/very-private")
    client.put("/v1/users/very-private")
    client.get("/very-private")
    client.get("/v1/admin/rules")
    client.post("/v1/events", content=b"x" * 9_000_000)
    client.get("/healthz")
    requests = [
        (post, "/v1/events", 200), (post, "/v1/recommendations", 422), ("GET", "/v1/items/{item_id}/similar", 200),
        ("GET", "/v1/users/{user_id}/history", 200), ("DELETE", "/v1/users/{user_id}", 200),
        ("PUT", "/v1/users/{user_id}", 405), ("GET", "none", 404), ("GET", "none", 403), (post, "/v1/events", 413),
        ("GET", "/healthz", 200),
    ]  # fmt: skip
    found = said()
    assert [line for line in found if line[0] != "answer"] == requests
    assert len([line for line in found if line[0] == "answer"]) == 3
    answers = {(post, "/v1/recommendations", "200"): 1.0, (post, "/v1/recommendations:batch", "200"): 1.0}
    assert counted(shop) == answers | {(method, route, str(status)): 1.0 for method, route, status in requests}
    assert "very-private" not in json.dumps([vars(record) for record in caplog.records], default=str)


def test_a_failure_of_ours_is_a_line_with_its_status(shop, said, monkeypatch) -> None:
    monkeypatch.setattr(shop.endpoint.store, "page", lambda *_: 1 / 0)
    assert shop.client.get("/v1/users/ann/history").status_code == 500
    assert said() == [("GET", "/v1/users/{user_id}/history", 500)]


def test_similar_items_are_counted_as_answers_with_their_trouble_and_their_time(shop, caplog, monkeypatch) -> None:
    monkeypatch.setattr(shop.endpoint.releases.current, "neighbours", lambda _: 1 / 0)
    with caplog.at_level(logging.INFO, logger=accounting.__name__):
        assert shop.client.get("/v1/items/sku-3/similar").json()["degraded"] == "engine_error"
    (line,) = [record.fields for record in caplog.records if record.name == accounting.__name__]
    assert (line["source"], line["degraded"]) == ("popular_in_category", "engine_error")
    text = shop.client.get("/metrics").text
    assert 'recsys_degraded_total{reason="engine_error"} 1.0' in text
    assert 'recsys_request_seconds_count{stage="total"} 1.0' in text


def test_what_is_shed_is_counted_too(shop) -> None:
    async def shed() -> None:
        shop.endpoint.shed([RecommendationRequest(user_id="ann", k=2)], [0.0])

    import asyncio

    asyncio.run(shed())
    assert counted(shop) == {("POST", "/v1/recommendations", "200"): 1.0}
