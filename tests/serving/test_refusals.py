"""One shape for every refusal, whatever arrives; and the state of readiness."""

import json
import logging
import socket
import threading
import time

import httpx
import pytest

from recsys.contracts.errors import ConfigError, StoreError
from serving.config import ServeConfig
from serving.log import JsonLines

JSON = {"Content-Type": "application/json"}


def locations(response: httpx.Response) -> list[list[str | int]]:
    """Checks the shape on the way."""
    detail = response.json()["detail"]
    assert detail
    assert all(set(problem) == {"loc", "msg"} for problem in detail)
    return [problem["loc"] for problem in detail]


def raw(shop, sent: bytes) -> bytes:
    """All that comes back before the server hangs up."""
    address = shop.client.base_url
    with socket.create_connection((address.host, address.port), timeout=30) as connection:
        connection.sendall(sent)
        received = b""
        while more := connection.recv(65_536):
            received += more
    return received


@pytest.mark.parametrize(
    ("content", "status", "loc"),
    [
        (b'{"user_id": "a", "k": NaN}', 422, ["body", "k"]),
        (b'{"user_id": "\\ud800"}', 422, ["body"]),
        (b'{"user_id": "a\\u0000b"}', 422, ["body", "user_id"]),
        (b'{"user_id": "a", "\\ud800": 1}', 422, ["body"]),
        (b'{"user_id": "a", "deadline_ms": 0.5}', 422, ["body", "deadline_ms"]),
        (b'{"user_id": "a", "events": []}', 422, ["body"]),
        (b"{", 422, ["body"]),
        (b"\xff", 422, ["body"]),
        (b"[" * 100_000, 422, ["body"]),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_shape(shop, content: bytes, status: int, loc: list) -> None:
    response = shop.client.post("/v1/recommendations", content=content, headers=JSON)
    assert (response.status_code, locations(response)) == (status, [loc])


def test_a_refusal_does_not_echo_what_was_sent(shop) -> None:
    response = shop.client.post("/v1/recommendations", json={"user_id": "private", "k": "private"})
    assert response.status_code == 422
    assert "private" not in response.text


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", "/v1/events", 405)])
def test_an_unknown_path_or_method_has_the_same_shape(shop, method: str, path: str, status: int) -> None:
    response = shop.client.request(method, path)
    assert (response.status_code, locations(response)) == (status, [["request"]])


@pytest.mark.parametrize(
    ("path", "most"),
    [
        ("/v1/events", 1_000_000),
        ("/v1/recommendations", 500_000),
        ("/v1/recommendations:batch", 1_000_000),
        ("/v1/users/ann/join", 64_000),
    ],
)
def test_a_body_that_does_not_declare_its_length_is_refused_once_it_is_too_large(shop, path: str, most: int) -> None:
    body = b" " * (most + 1)  # its last piece is the byte too many: all of it has been read by then
    pieces = (body[start : start + most] for start in range(0, len(body), most))
    response = shop.client.post(path, content=pieces, headers=JSON)
    assert (response.status_code, locations(response)) == (413, [["request"]])
    assert f"more than {most:,} bytes" in response.text
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["connection"] == "close"


def test_a_body_that_declares_too_much_is_refused_unread(shop) -> None:
    sent = "POST /v1/events HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000001\r\n\r\n"
    head, _, body = raw(shop, sent.encode()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413 ")
    assert b"x-content-type-options: nosniff" in head
    assert json.loads(body)["detail"][0]["msg"] == "more than 1,000,000 bytes; send less at once"


@pytest.mark.parametrize("path", ["/v1/events", "/v1/recommendations", "/v1/users/ann/join"])
@pytest.mark.parametrize("headers", [{"Content-Type": "text/plain"}, {}])
def test_a_body_that_is_not_said_to_be_json_is_refused(shop, path: str, headers: dict) -> None:
    response = shop.client.post(path, content=b'{"user_id": "ann"}', headers=headers)
    assert (response.status_code, locations(response)) == (415, [["request"]])
    assert "application/json" in response.text


def test_a_request_whose_body_comes_slowly_arrives_with_its_last_byte(shop) -> None:
    body = b'{"user_id": "ann"}'
    head = b"POST /v1/recommendations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    address = shop.client.base_url
    with socket.create_connection((address.host, address.port), timeout=30) as connection:
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body[:5])
        time.sleep(0.3)
        connection.sendall(body[5:])
        answer = json.loads(connection.recv(65_536).partition(b"\r\n\r\n")[2])
    assert (answer["degraded"], answer["source"]) == (None, "popular")


def test_settings_that_do_not_go_together_are_refused_without_printing_them() -> None:
    token = {"name": "shop", "sha256": "a" * 64, "scopes": ["read"]}
    with pytest.raises(ConfigError) as refused:
        ServeConfig.from_mapping({"deadline_ms": 10, "tokens": [token]}, "recsys serve")
    assert "aaaa" not in str(refused.value)


@pytest.mark.parametrize(("num_events", "status"), [(1_000, 200), (1_001, 422), (0, 422)])
def test_a_batch_holds_1_to_1000_events(shop, num_events: int, status: int) -> None:
    events = [{"user_id": "a", "item_id": "sku-1"}] * num_events
    assert shop.client.post("/v1/events", json={"events": events}).status_code == status


@pytest.mark.parametrize(("num_events", "status"), [(5_000, 200), (5_001, 422)])
def test_a_request_brings_at_most_5000_events(shop, num_events: int, status: int) -> None:
    body = {"events": [{"item_id": "sku-1", "timestamp": 1_700_000_000_000}] * num_events}
    assert shop.client.post("/v1/recommendations", json=body).status_code == status


def test_events_on_items_outside_the_vocabulary_are_stored(shop) -> None:
    assert shop.tell("brand new") == {"stored": 1, "duplicates": 0}
    assert shop.store.history("ann") == ["brand new"]


def test_an_unexpected_failure_is_a_500_in_the_same_shape(shop, monkeypatch) -> None:
    def broken(*_args, **_kwargs):
        raise RuntimeError("secret detail")

    monkeypatch.setattr(shop.store, "append", broken)
    response = shop.client.post("/v1/events", json={"events": [{"user_id": "a", "item_id": "b"}]})
    assert (response.status_code, locations(response)) == (500, [["server"]])
    assert "secret" not in response.text
    assert response.headers["x-content-type-options"] == "nosniff"


def test_what_is_no_http_is_refused_with_safe_headers(shop) -> None:
    head = raw(shop, b"nonsense\r\n\r\n").partition(b"\r\n\r\n")[0]
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"x-content-type-options: nosniff" in head


def test_a_fallback_still_leaves_out_seen_items(shop, monkeypatch) -> None:
    shop.engine.broken = True
    given = shop.ask(events=[{"item_id": "sku-19"}], k=20, exclude_seen=True, exclude=["sku-18"])
    assert (len(given["items"]), given["degraded"]) == (18, "engine_error")
    shop.tell("sku-19")
    stored = shop.ask(user_id="ann", k=20, exclude_seen=True)
    assert (len(stored["items"]), stored["degraded"]) == (19, "engine_error")
    assert "sku-19" not in {item["item_id"] for item in stored["items"]}


def test_a_late_answer_shows_the_stage_that_was_done(open_shop) -> None:
    shop = open_shop(deadline_ms=2_000)
    shop.tell("sku-3")
    shop.engine.go_on.clear()
    answer = shop.ask(user_id="ann")
    assert answer["degraded"] == "deadline"
    assert set(answer["timings_ms"]) == {"wait", "history", "total"}  # stuck in the model


def test_a_lost_impression_is_counted_and_the_answer_still_goes_out(shop, monkeypatch) -> None:
    tried = threading.Event()

    def gone(_batch):
        tried.set()
        raise StoreError("store: impression not kept: disk is gone")

    monkeypatch.setattr(shop.store, "record_impressions", gone)
    assert shop.ask(user_id="nobody")["source"] == "popular"
    assert tried.wait(30)
    shop.endpoint.close()  # whoever writes has ended
    assert "recsys_impressions_lost_total 1.0" in shop.client.get("/metrics").text


def test_one_log_line_per_answer_without_the_user(shop, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="serving"):
        answer = shop.ask(user_id="very-private")
    (line,) = [JsonLines().format(record) for record in caplog.records if record.name.startswith("serving")]
    told = json.loads(line)
    expected = {"message": "answer", "request_id": answer["request_id"], "release": "r1", "arm": "all"}
    expected |= {"source": "popular", "degraded": None, "reason": "unknown_user", "timings_ms": answer["timings_ms"]}
    assert {name: told[name] for name in expected} == expected
    assert "very-private" not in line
    assert "very-private" not in caplog.text


def test_a_reserve_that_leaves_no_time_is_refused() -> None:
    with pytest.raises(ConfigError, match="reserve_ms 25 leaves nothing of deadline_ms 10"):
        ServeConfig.from_mapping({"deadline_ms": 10}, "recsys serve")


def test_a_batch_has_no_more_events_than_one_request_may_have(shop) -> None:
    half = {"events": [{"item_id": "sku-1"}] * 2_501, "k": 1}
    assert shop.client.post("/v1/recommendations:batch", json={"requests": [half]}).status_code == 200
    refused = shop.client.post("/v1/recommendations:batch", json={"requests": [half, half]})
    assert refused.status_code == 422
    assert "5,002 events in all, at most 5,000" in refused.json()["detail"][0]["msg"]
