"""What is answered where its bytes arrive, and what never is."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable

import pytest

from recsys.contracts.ids import Vocabulary
from serving.endpoint import Endpoint
from serving.lag import LoopLag, RecentCount
from serving.rules import Rules
from serving.schemas import RecommendationRequest
from serving.shedding import SheddingProtocol, Turns, usual_head

HEAD = "POST /v1/recommendations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def message(body: str, head: str = HEAD, length: int | None = None) -> bytes:
    return f"{head}Content-Length: {len(body) if length is None else length}\r\n\r\n{body}".encode()


def in_one_piece(shop, *sent: bytes) -> list[dict]:
    """Answers to messages over one connection. A client library may send head and body one after the other."""
    answers, address = [], shop.client.base_url
    with socket.create_connection((address.host, address.port), timeout=30) as connection:
        for each in sent:
            connection.sendall(each)
            received = b""
            while b"\r\n\r\n" not in received or not received.endswith(b"}"):
                received += connection.recv(65_536)
            answers.append(json.loads(received.partition(b"\r\n\r\n")[2]))
    return answers


@pytest.fixture
def behind(shop, monkeypatch):
    """A shop whose event loop is behind. Its engine answered once before."""
    shop.tell("sku-3", "sku-5")
    shop.known = shop.ask(user_id="ann", k=4)
    monkeypatch.setattr(Endpoint, "is_behind", lambda *_: True)
    return shop


def test_a_request_is_read_from_its_bytes() -> None:
    body = '{"user_id": "ann", "k": 3}'
    headers, found, length = usual_head(message(body))
    assert (found, length) == (body.encode(), len(body))
    assert (b"host", b"localhost") in headers
    assert usual_head(message(body)[:-5])[1:] == (body.encode()[:-5], len(body))
    named = HEAD.replace("application/json", "Application/JSON; charset=utf-8")
    assert usual_head(message(body, named))[1:] == (body.encode(), len(body))


@pytest.mark.parametrize(
    "unusual",
    [
        message('{"user_id": "ann"}') * 2,
        message('{"user_id": "ann"}', length=17),  # another message begins
        message('{"user_id": "ann"}', HEAD + "Content-Length: 3\r\n"),
        message('{"user_id": "ann"}', HEAD + "Transfer-Encoding: chunked\r\n"),
        message('{"user_id": "ann"}', HEAD + "Connection: close\r\n"),
        message('{"user_id": "ann"}', HEAD.replace("recommendations", "events")),
        message('{"user_id": "ann"}', HEAD.replace("POST", "GET")),
        message('{"user_id": "ann"}', "POST /v1/recommendations HTTP/1.1\r\n"),
        message('{"user_id": "ann"}', HEAD.replace("application/json", "application/json-seq")),
        message("{}" + " " * 20_000),
        message('{"user_id": "ann"}', length=-1),
        message('{"user_id": "ann"}', length=int("9" * 4000)),  # no number of Python's from text, if it were longer
        message(""),
        HEAD.encode(),
        b"",
    ],
)
def test_anything_unusual_goes_the_usual_way(unusual: bytes) -> None:
    assert usual_head(unusual) is None


def test_while_the_loop_is_behind_the_last_answer_comes_back_labelled(behind) -> None:
    (shed,) = in_one_piece(behind, message('{"user_id": "ann", "k": 4}'))
    assert (shed["source"], shed["degraded"], shed["arm"]) == ("last_answer", "overload", "all")
    assert shed["items"] == behind.known["items"]
    assert shed.keys() == behind.known.keys()
    assert shed["request_id"] != behind.known["request_id"]
    metrics = behind.client.get("/metrics").text
    assert 'recsys_degraded_total{reason="overload"} 1.0' in metrics
    assert "recsys_impressions_lost_total 1.0" in metrics


def test_while_the_loop_is_behind_todays_rules_hold(behind) -> None:
    (shed,) = in_one_piece(behind, message('{"user_id": "nobody", "k": 2}'))
    assert [item["item_id"] for item in shed["items"]] == ["sku-19", "sku-18"]
    behind.endpoint.releases.set_rules(Rules(denied=["sku-5", "sku-19"]))
    (shed,) = in_one_piece(behind, message('{"user_id": "ann", "k": 4}'))
    assert (shed["source"], [item["item_id"] for item in shed["items"]][:2]) == ("popular", ["sku-18", "sku-17"])


@pytest.mark.parametrize(("k", "source"), [(1, "last_answer"), (3, "last_answer"), (5, "popular")])
def test_of_a_last_answer_that_is_longer_the_first_are_given(behind, k: int, source: str) -> None:
    (shed,) = in_one_piece(behind, message(json.dumps({"user_id": "ann", "k": k})))
    assert (shed["source"], len(shed["items"])) == (source, k)
    if source == "last_answer":
        assert shed["items"] == behind.known["items"][:k]


def test_while_the_loop_is_behind_pins_hold(behind) -> None:
    last = [item["item_id"] for item in behind.known["items"]]
    for pinned, source in ((last[1], "last_answer"), ("sku-9", "popular")):
        behind.endpoint.releases.set_rules(Rules(pins=[{"item_id": pinned, "position": 2}]))
        (shed,) = in_one_piece(behind, message('{"user_id": "ann", "k": 4}'))
        assert (shed["source"], shed["items"][1]["item_id"], len(shed["items"])) == (source, pinned, 4)


def test_while_the_loop_is_behind_an_answer_to_a_filter_is_not_given(behind, monkeypatch) -> None:
    with monkeypatch.context() as calm:
        calm.setattr(Endpoint, "is_behind", lambda *_: False)
        filtered = behind.ask(user_id="ann", k=4, filters={"category": ["cups"]})
    assert filtered["source"] == "model"
    (shed,) = in_one_piece(behind, message('{"user_id": "ann", "k": 4}'))
    assert shed["items"] == behind.known["items"]


@pytest.mark.parametrize(
    ("wishes", "source", "items"),
    [
        ({"user_id": "ann", "exclude": ["sku-19"]}, "last_answer", None),
        ({"user_id": "nobody", "exclude": ["sku-19"]}, "popular", ["sku-18", "sku-17"]),
        ({"user_id": "nobody", "filters": {"category": ["cups"]}}, "popular", ["sku-19", "sku-16"]),
        ({"events": [{"item_id": "sku-3"}], "exclude_seen": True}, "popular_in_category", None),
    ],
)
def test_while_the_loop_is_behind_wishes_are_honoured(behind, wishes, source, items) -> None:
    (shed,) = in_one_piece(behind, message(json.dumps({"k": 2, **wishes})))
    found = [item["item_id"] for item in shed["items"]]
    assert (shed["source"], shed["degraded"], len(found)) == (source, "overload", 2)
    assert items is None or found == items
    assert not set(wishes.get("exclude", ["sku-3"])) & set(found)


def test_while_the_loop_is_behind_a_filter_that_nothing_matches_says_so(behind) -> None:
    (shed,) = in_one_piece(behind, message(json.dumps({"user_id": "ann", "filters": {"category": ["none such"]}})))
    assert (shed["items"], shed["reason"], shed["degraded"]) == ([], "no_items_match", "overload")


def test_while_the_loop_is_behind_all_but_recommendations_goes_the_usual_way(behind) -> None:
    assert behind.tell("sku-1")["stored"] == 1
    assert behind.client.post("/v1/recommendations", json={"user_id": 7}).status_code == 422
    assert behind.client.post("/v1/recommendations", json={"user_id": "ann", "k": 0}).status_code == 422


def test_a_connection_goes_on_after_a_shed_answer(behind, monkeypatch) -> None:
    shed, model = message('{"user_id": "ann", "k": 4}'), message('{"user_id": "ann", "k": 3, "exclude": ["sku-9"]}')
    monkeypatch.setattr(Endpoint, "is_behind", lambda *_: next(turns))
    turns = iter([True, False, True, False])
    answers = in_one_piece(behind, shed, model, shed, model)
    assert [a["degraded"] for a in answers] == ["overload", None] * 2


def test_while_the_loop_is_behind_each_client_of_a_proxy_has_its_own_rate(open_shop, monkeypatch) -> None:
    shop = open_shop(deadline_ms=10_000, requests_per_s=0.001, burst=1, proxies=["127.0.0.1"])
    monkeypatch.setattr(Endpoint, "is_behind", lambda *_: True)
    asking = [message('{"user_id": "ann"}', f"{HEAD}X-Forwarded-For: 203.0.113.{n}\r\n") for n in (7, 8, 7)]
    shed, other, refused = in_one_piece(shop, *asking)
    assert (shed["degraded"], other["degraded"]) == ("overload", "overload")
    assert refused["detail"][0]["msg"] == "too many requests; wait a little"


@pytest.mark.parametrize("still_behind", [True, False])
def test_a_message_may_come_in_pieces(behind, monkeypatch, still_behind: bool) -> None:
    turns = iter([True, still_behind])
    asked = threading.Event()

    def is_behind(*_) -> bool:
        asked.set()
        return next(turns)

    monkeypatch.setattr(Endpoint, "is_behind", is_behind)
    address, whole = behind.client.base_url, message('{"user_id": "ann", "k": 4}')
    with socket.create_connection((address.host, address.port), timeout=30) as connection:
        connection.sendall(whole[:-5])
        assert asked.wait(30)
        connection.sendall(whole[-5:])
        answer = json.loads(connection.recv(65_536).partition(b"\r\n\r\n")[2])
    assert answer["degraded"] == ("overload" if still_behind else None)


def test_a_client_who_goes_on_sending_is_not_held(behind, monkeypatch) -> None:
    answers = iter([True])
    monkeypatch.setattr(Endpoint, "is_behind", lambda *_: next(answers, False))
    monkeypatch.setattr(Turns, "wait", lambda *_: None)  # its turn never comes
    (answer,) = in_one_piece(behind, message('{"user_id": "ann", "k": 4}' + " " * 200_000))
    assert (answer["degraded"], len(answer["items"])) == (None, 4)


def test_it_is_behind_when_requests_may_have_waited_two_fifths_of_the_deadline(open_shop, monkeypatch) -> None:
    endpoint = open_shop(deadline_ms=100).endpoint
    for waited_s, is_behind in ((0.039, False), (0.041, True)):
        monkeypatch.setattr(LoopLag, "seconds", waited_s)
        assert endpoint.is_behind(0) == is_behind


def test_while_it_sheds_many_a_tenth_is_enough_and_work_gets_less_time(open_shop, monkeypatch) -> None:
    endpoint, now = open_shop(deadline_ms=100, reserve_ms=10).endpoint, [7.0]
    service = endpoint.service
    monkeypatch.setattr(LoopLag, "seconds", 0.015)
    monkeypatch.setattr(LoopLag, "recent_s", 0.0)
    monkeypatch.setattr(service, "_clock", lambda: now[0])
    monkeypatch.setattr(service, "_shed", RecentCount(0.1, lambda: now[0]))
    monkeypatch.setattr(service.handy, "told", lambda *_: b"{}")

    def shed(num: int) -> tuple[bool, float]:
        service.shed([RecommendationRequest(user_id="ann", exclude=["sku-1"])] * num, [now[0]] * num)
        return endpoint.is_behind(0), round(service.left_s(now[0]), 6)

    assert shed(0) == (False, 0.09)
    assert shed(5) == (False, 0.09)  # as a pause of the machine leaves behind: the others keep their time
    assert shed(5) == (True, 0.04)
    now[0] += 1
    assert shed(0) == (False, 0.09)


def test_an_overload_that_begins_hurries_those_who_wait(open_shop, monkeypatch) -> None:
    shop = open_shop(deadline_ms=10_000)
    shop.tell("sku-3")
    service = shop.endpoint.service
    shop.engine.go_on.clear()
    answers: list[dict] = []
    asks = threading.Thread(target=lambda: answers.append(shop.ask(user_id="ann", k=1)))
    asks.start()
    while not service.num_under_way:
        time.sleep(0.001)
    time.sleep(0.05)
    monkeypatch.setattr(service, "_clock", lambda: time.monotonic() + 6)
    asks.join(0.2)
    assert asks.is_alive()  # four of its seconds are left
    monkeypatch.setattr(type(service), "is_shedding", True)
    asks.join(30)
    assert [answer["degraded"] for answer in answers] == ["deadline"]


def test_it_is_behind_when_half_of_the_places_are_waited_for(open_shop) -> None:
    endpoint = open_shop(num_workers=2, max_waiting=64, deadline_ms=10_000).endpoint
    assert [endpoint.is_behind(num) for num in (34, 35)] == [False, True]


def test_it_is_behind_when_a_worker_is_expected_to_be_free_after_two_fifths_of_the_deadline(
    open_shop, monkeypatch
) -> None:
    endpoint = open_shop(num_workers=2, max_waiting=64, deadline_ms=100).endpoint
    monkeypatch.setattr(LoopLag, "seconds", 0.0)
    monkeypatch.setattr(endpoint.service.pool, "_typical_s", 0.004)
    assert [endpoint.is_behind(num) for num in (1, 18, 20)] == [False, False, True]
    monkeypatch.setattr(LoopLag, "seconds", 0.005)  # both together count
    assert [endpoint.is_behind(num) for num in (15, 17)] == [False, True]
    monkeypatch.setattr(type(endpoint.service.cold_pool), "taken", property(lambda pool: 3 * (pool.name == "cold")))
    assert not endpoint.is_behind(17)  # cold users have a lane of their own
    monkeypatch.setattr(endpoint.service.pool, "_typical_s", 10.0)  # as after a stall
    assert not endpoint.is_behind(1)


def test_who_may_not_ask_is_refused_also_while_the_loop_is_behind(open_shop, monkeypatch) -> None:
    shop = open_shop(tokens=[{"name": "web", "sha256": "0" * 64, "scopes": ["read"]}])
    monkeypatch.setattr(Endpoint, "is_behind", lambda *_: True)
    (refused,) = in_one_piece(shop, message('{"user_id": "ann"}'))
    assert "Authorization" in refused["detail"][0]["msg"]


def test_the_vocabulary_is_not_needed_for_a_shed_answer(behind, monkeypatch) -> None:
    def fail(*_args):
        raise AssertionError("the last answer is encoded already")

    monkeypatch.setattr(Vocabulary, "item", fail)
    assert in_one_piece(behind, message('{"user_id": "ann", "k": 4}'))[0]["source"] == "last_answer"


class Told:
    """A message that says when it is read, answered, or passed on."""

    def __init__(self, read=lambda since: None, number: int = 0) -> None:
        self._read = read
        self.number = number
        self.became: list[bytes | str] = []

    def read(self, since: float) -> RecommendationRequest | None:
        self._read(since)
        return RecommendationRequest(user_id="ann", k=1 + self.number)

    def answer(self, content: bytes) -> None:
        self.became.append(content)

    def pass_on(self, since: float) -> None:
        self.became.append("passed on")

    def drop(self) -> None:
        self.became.append("dropped")


class Sheds:
    """Answers each request with its k, but fails where it is to."""

    def __init__(self, fails: Callable[[list[RecommendationRequest]], bool] = lambda _: False) -> None:
        self._fails = fails
        self.together: list[int] = []

    def shed(self, requests: list[RecommendationRequest], since: list[float]) -> list[bytes]:
        assert len(requests) == len(since)
        self.together.append(len(requests))
        if self._fails(requests):
            raise ValueError
        return [b"%d" % request.k for request in requests]


def test_messages_that_wait_have_their_turns_and_what_else_is_ready_goes_on_between() -> None:
    done: list[int | str] = []
    now = [0.0]

    def take(number: int) -> None:
        now[0] += 1 / 4096
        done.append(number)

    shedder = Sheds()

    async def main() -> None:
        turns, loop = Turns(shedder, LoopLag(), lambda: now[0]), asyncio.get_running_loop()

        def look() -> None:
            done.append("between")
            if len(turns):
                loop.call_soon(look)

        for n in range(40):
            turns.wait(Told(lambda _, n=n: take(n)))
        assert (len(turns), done) == (40, [])
        loop.call_soon(look)
        while len(turns):
            await asyncio.sleep(0)

    asyncio.run(main())
    assert [each for each in done if each != "between"] == list(range(40))
    assert shedder.together[:2] == [4, 12]  # nothing was measured yet; then as many as four milliseconds are enough for
    assert done.index("between") == 17
    assert max(shedder.together) <= 16


def test_workers_give_way_while_the_loop_is_behind_or_has_a_backlog(open_shop, monkeypatch) -> None:
    service, now = open_shop().endpoint.service, [100.0]
    lag = LoopLag(lambda: now[0])
    monkeypatch.setattr(service, "lag", lag)
    pools = (service.pool, service.cold_pool, service.unseen.pool)

    def give_way() -> bool:
        (answer,) = {pool._gives_way() for pool in pools}
        return answer

    assert not give_way()  # there is no loop
    lag._beats = (99.982, 99.99)
    assert not give_way()
    now[0] += 0.005
    assert give_way()
    lag._beats = (now[0] - 0.01, now[0] - 0.005)
    assert not give_way()
    lag.backlog_since = now[0] - 0.021
    assert give_way()


def test_a_backlog_lasts_until_the_last_has_had_its_turn() -> None:
    now, backlogs = [100.0], []

    async def main() -> None:
        lag = LoopLag(lambda: now[0])
        lag.beat()
        turns = Turns(Sheds(), lag, lambda: now[0])
        for _ in range(2):
            turns.wait(Told(lambda _: backlogs.append(lag.backlog_since)))
            now[0] += 0.02
            lag.beat()
        while len(turns):
            await asyncio.sleep(0)
        backlogs.append(lag.backlog_since)

    asyncio.run(main())
    assert backlogs == [100.0, 100.0, None]


def test_what_is_shed_after_its_own_deadline_is_late_by_that(behind, monkeypatch) -> None:
    def late(**wishes) -> float:
        in_one_piece(behind, message(json.dumps({"user_id": "ann", **wishes})))
        return behind.endpoint.metrics.registry.get_sample_value("recsys_late_total")

    monkeypatch.setattr(LoopLag, "waited_s", lambda *_: 0.2)  # of ten seconds
    assert (late(), late(deadline_ms=201), late(deadline_ms=199)) == (0, 0, 1)


def test_what_is_kept_encoded_leaves_with_its_release(behind, monkeypatch) -> None:
    handy = behind.endpoint.service.handy
    in_one_piece(behind, message('{"user_id": "nobody"}'))
    assert {name for name, *_ in [*handy._popular, *handy._parts, *handy._frames]} == {"r1"}
    monkeypatch.setattr(type(handy._releases), "loaded", ["r2"])
    in_one_piece(behind, message('{"user_id": "nobody", "k": 3}'))
    assert (len(handy._popular), handy._parts, list(handy._frames)) == (1, {}, [("r1", "all", "popular", None)])


def test_where_each_takes_long_few_are_shed_in_one_turn_of_the_loop() -> None:
    now, shedder = [0.0], Sheds()
    shed = shedder.shed

    def slowly(requests, since) -> list[bytes]:
        now[0] += 0.002 * len(requests)
        return shed(requests, since)

    shedder.shed = slowly

    async def main() -> None:
        turns = Turns(shedder, LoopLag(), lambda: now[0])
        for n in range(12):
            turns.wait(Told(number=n))
        while len(turns):
            await asyncio.sleep(0)

    asyncio.run(main())
    assert shedder.together == [4, 2, 2, 2, 2]  # the first by a guess


def take_turns(shedder: Sheds, messages: list[Told]) -> list[BaseException]:
    """What the loop was told to have failed."""
    failures = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context["exception"]))
        turns = Turns(shedder, LoopLag(), lambda: 0.0)
        for message in messages:
            turns.wait(message)
        while len(turns):
            await asyncio.sleep(0)
        assert turns.lag.backlog_since is None

    asyncio.run(main())
    return failures


@pytest.mark.parametrize("where", ["read", "shed", "answer", "pass_on"])
def test_one_that_fails_does_not_keep_the_others_from_their_answers(where: str, caplog, monkeypatch) -> None:
    messages = [Told(number=n) for n in range(20)]
    if where != "shed":
        monkeypatch.setattr(messages[5], where, lambda _: 1 / 0)
    is_shed_at_once = where in {"read", "answer"}
    shedder = Sheds(lambda requests: not is_shed_at_once and 6 in [request.k for request in requests])
    assert take_turns(shedder, messages) == []
    others = [message.became for message in messages[:5] + messages[6:]]
    assert others == [[b"%d" % n] for n in range(1, 21) if n != 6]
    assert messages[5].became == (["passed on"] if where == "shed" else ["dropped"])
    assert [record.getMessage() for record in caplog.records] == {
        "read": ["not answered"],
        "answer": ["not answered"],
        "shed": ["not shed"],
        "pass_on": ["not shed", "not answered"],
    }[where]


def test_a_failure_of_ours_leaves_no_request_without_an_answer(behind, monkeypatch, caplog) -> None:
    monkeypatch.setattr(type(behind.endpoint.service), "shed", lambda *_: 1 / 0)
    (answer,) = in_one_piece(behind, message('{"user_id": "ann", "k": 4}'))
    assert (answer["degraded"], len(answer["items"])) == (None, 4)
    assert "not shed" in caplog.text


def test_what_waited_for_its_turn_has_waited(behind, monkeypatch) -> None:
    now = [100.0]
    lag = LoopLag(lambda: now[0])
    lag.beat()
    lag.beat()
    since, now[0] = lag.seen_since, now[0] + 0.05
    lag.beat()
    lag.beat()  # the loop itself is on time again
    assert (lag.waited_s(since), lag.seconds) == (pytest.approx(0.04), 0)
    monkeypatch.setattr(behind.endpoint.service, "lag", lag)
    requests = [RecommendationRequest(user_id="ann", k=4), RecommendationRequest(user_id="ann", k=4, exclude=["sku-1"])]

    async def shed() -> list[bytes]:
        return behind.endpoint.shed([*requests, requests[0]], [since, since - 0.01, since + 0.03])

    answers = [json.loads(answer) for answer in asyncio.run(shed())]
    assert [answer["timings_ms"]["total"] for answer in answers] == [40, 50, 10]
    of_shed = {"method": "POST", "route": "/v1/recommendations", "status": "200"}
    value = behind.endpoint.metrics.registry.get_sample_value
    assert value("recsys_requests_total", of_shed) == 1 + 3  # one came before the overload
    assert value("recsys_degraded_total", {"reason": "overload"}) == 3
    assert value("recsys_impressions_lost_total") == 3


def test_what_fails_is_not_counted_before_it_is_answered_the_usual_way(behind, monkeypatch, caplog) -> None:
    handy = type(behind.endpoint.service.handy)
    monkeypatch.setattr(handy, "items", lambda *_: 1 / 0)
    (answer,) = in_one_piece(behind, message('{"user_id": "ann", "k": 4}'))
    assert answer["degraded"] is None
    behind.endpoint.service.handy.say()
    shown = behind.client.get("/metrics").text
    assert 'recsys_degraded_total{reason="overload"}' not in shown
    assert "recsys_impressions_lost_total 0.0" in shown
    assert not [record for record in caplog.records if record.name == "serving.handy"]


def test_messages_of_one_connection_are_answered_in_their_order(shop, monkeypatch) -> None:
    shop.tell("sku-3")
    address, turns = shop.client.base_url, iter([False])
    seen = threading.Event()

    def is_behind(*_) -> bool:
        seen.set()
        return next(turns, True)

    monkeypatch.setattr(Endpoint, "is_behind", is_behind)
    shop.engine.go_on.clear()
    with socket.create_connection((address.host, address.port), timeout=30) as connection:
        connection.sendall(message('{"user_id": "ann", "k": 4}'))
        while not shop.endpoint.service.num_under_way:
            time.sleep(0.001)
        seen.clear()
        connection.sendall(message('{"user_id": "ann", "k": 2}'))
        assert seen.wait(30)
        time.sleep(0.05)  # its turn
        shop.engine.go_on.set()
        found, received = [], b""
        while len(found) < 2:
            received += connection.recv(65_536)
            found = [part.count(b"item_id") for part in received.split(b"HTTP/1.1 200")[1:] if part.endswith(b"}")]
    assert found == [4, 2]


def test_what_goes_the_usual_way_after_waiting_has_waited_too(behind, monkeypatch) -> None:
    moments, waited_since = [], LoopLag.waited_since
    monkeypatch.setattr(LoopLag, "seen_since", 7.0)
    monkeypatch.setattr(
        LoopLag, "waited_since", lambda lag, moment: (moments.append(moment), waited_since(lag, moment))[1]
    )
    assert behind.client.post("/v1/recommendations", json={"user_id": 7}).status_code == 422
    assert set(moments) == {7.0}


def test_each_of_many_that_are_shed_together_gets_its_own_answer(behind, monkeypatch) -> None:
    together, shed = [], type(behind.endpoint.service).shed

    def noting(service, requests, since) -> list[bytes]:
        together.append(len(requests))
        time.sleep(0.02)  # so that others come meanwhile
        return shed(service, requests, since)

    monkeypatch.setattr(type(behind.endpoint.service), "shed", noting)
    monkeypatch.setattr("serving.shedding._TURN_S", 1.0)  # or slow ones are taken one by one
    address, wishes = behind.client.base_url, [{}, {"exclude": ["sku-1"]}, {"exclude_seen": True}]
    connections = [socket.create_connection((address.host, address.port), timeout=30) for _ in range(40)]
    for n, connection in enumerate(connections):
        connection.sendall(message(json.dumps({"user_id": "ann", "k": 1 + n % 7, **wishes[n % 3]})))
    for n, connection in enumerate(connections):
        answer = json.loads(connection.recv(65_536).partition(b"\r\n\r\n")[2])
        assert (answer["degraded"], len(answer["items"])) == ("overload", 1 + n % 7)
        connection.close()
    assert sum(together) == 40
    assert 2 <= max(together) <= 16


def test_a_length_that_is_no_number_of_ours_is_refused(behind) -> None:
    bad = f"{HEAD}Content-Length: {'9' * 5000}\r\n\r\n{{}}".encode()
    assert usual_head(bad) is None
    address = behind.client.base_url
    with socket.create_connection((address.host, address.port), timeout=30) as connection:
        connection.sendall(bad)
        assert connection.recv(65_536).startswith(b"HTTP/1.1 400 ")


def test_a_client_that_left_while_its_message_waited_gets_nothing_and_the_next_gets_its_answer(
    behind, monkeypatch
) -> None:
    taken, wait = [], Turns.wait

    def later(self: Turns, message) -> None:
        asyncio.get_running_loop().call_later(0.2, lambda: (taken.append(1), wait(self, message)))

    monkeypatch.setattr(Turns, "wait", later)
    address = behind.client.base_url
    with socket.create_connection((address.host, address.port), timeout=30) as connection:
        connection.sendall(message('{"user_id": "ann", "k": 4}'))
    (shed,) = in_one_piece(behind, message('{"user_id": "ann", "k": 4}'))
    assert (shed["degraded"], len(taken)) == ("overload", 2)
    assert 'recsys_degraded_total{reason="overload"} 1.0' in behind.client.get("/metrics").text


@pytest.mark.parametrize("rest", [b"", b"}"], ids=["whole", "in pieces"])
def test_what_is_held_when_the_server_ends_is_answered(behind, monkeypatch, rest: bytes) -> None:
    protocols, connected = [], SheddingProtocol.connection_made
    monkeypatch.setattr(
        SheddingProtocol, "connection_made", lambda *call: (protocols.append(call[0]), connected(*call))
    )
    monkeypatch.setattr(Turns, "wait", lambda *_: None)  # its turn never comes
    whole = message('{"user_id": "ann", "k": 4}')
    address = behind.client.base_url
    with socket.create_connection((address.host, address.port), timeout=30) as connection:
        connection.sendall(whole.removesuffix(rest))
        while not any(protocol._is_waiting for protocol in protocols):
            time.sleep(0.001)
        (held,) = [protocol for protocol in protocols if protocol._is_waiting]
        held.loop.call_soon_threadsafe(held.shutdown)
        connection.sendall(rest)
        head, _, body = connection.recv(65_536).partition(b"\r\n\r\n")
        assert b"connection: close" in head.lower()
        assert len(json.loads(body)["items"]) == 4
        assert connection.recv(1) == b""


def test_what_was_seen_before_and_after_a_session_began_is_hidden_from_shed_answers(behind, monkeypatch) -> None:
    monkeypatch.undo()  # not behind while the session grows
    behind.tell("sku-1")  # a token below those of before
    assert behind.ask(user_id="ann", k=1)["source"] == "model"
    monkeypatch.setattr(Endpoint, "is_behind", lambda *_: True)
    (answer,) = in_one_piece(behind, message('{"user_id": "ann", "k": 20, "exclude_seen": true}'))
    assert answer["degraded"] == "overload"
    assert {item["item_id"] for item in answer["items"]} == {f"sku-{n}" for n in range(20)} - {
        "sku-1",
        "sku-3",
        "sku-5",
    }
