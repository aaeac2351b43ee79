"""The endpoints beside the recommendation itself."""

import json
import time
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from recsys.contracts.ids import Vocabulary
from recsys.runtime.index import ItemIndex
from recsys.runtime.recommender import Recommender
from recsys.store import ArmCounts, EventStore
from recsys.store.schema import recall_hours
from serving import express
from serving.app import create_app
from serving.config import ServeConfig
from serving.live import Releases
from serving.sessions import SessionCache
from tests.serving.conftest import FakeEngine, fake_release, running


def items(answer: dict) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def test_a_batch_answers_each_request_in_order(shop) -> None:
    shop.tell("sku-3")
    body = {"requests": [{"user_id": "ann", "k": 1}, {"user_id": "nobody", "k": 1}]}
    answers = shop.client.post("/v1/recommendations:batch", json=body).json()["answers"]
    assert [(items(a), a["source"]) for a in answers] == [(["sku-3"], "model"), (["sku-19"], "popular")]
    assert shop.client.post("/v1/recommendations:batch", json={"requests": [{"user_id": "a"}] * 101}).status_code == 422


def test_items_carry_the_reason(shop) -> None:
    shop.tell("sku-5", "sku-3")
    again, similar = [shop.ask(user_id="ann", k=20)["items"][place] for place in (0, -1)]
    other = {"because_of": "sku-5", "title": "Title of sku-5"}
    assert (again["item_id"], again["reason"]) == ("sku-3", {"kind": "again", **other})
    assert similar["reason"]["kind"] == "similar"
    shop.tell("sku-4", user="bob")
    alone = shop.ask(user_id="bob", k=1)["items"][0]
    assert (alone["item_id"], alone["reason"]) == ("sku-4", {"kind": "again", "because_of": None, "title": None})
    assert shop.ask(user_id="nobody", k=1)["items"][0]["reason"] is None


def test_similar_items_leave_out_the_item_and_what_is_out_of_stock(shop) -> None:
    found = shop.client.get("/v1/items/sku-3/similar", params={"k": 5}).json()
    assert len(found["items"]) == 5
    assert "sku-3" not in items(found)
    shop.endpoint.releases.set_availability({items(found)[0]: False})
    assert items(found)[0] not in items(shop.client.get("/v1/items/sku-3/similar", params={"k": 100}).json())
    assert shop.client.get("/v1/items/unknown/similar").status_code == 404


def test_a_deny_list_and_stock_hold_from_the_next_request_on(shop) -> None:
    shop.tell("sku-3")
    assert items(shop.ask(user_id="ann", k=1)) == ["sku-3"]
    releases = shop.endpoint.releases
    releases.set_availability({"sku-3": False})
    assert items(shop.ask(user_id="ann", k=1)) == ["sku-0"]
    assert items(shop.ask(user_id="ann", k=1, filters={"available": False})) == ["sku-3"]
    releases.set_rules(releases.rules.model_copy(update={"denied": ["sku-3"]}))
    assert items(shop.ask(user_id="ann", k=1, filters={"available": False})) == ["sku-0"]


def test_purchased_items_are_left_out_when_asked(shop) -> None:
    shop.tell("sku-3", event_type="purchase", value=9.5)
    shop.tell("sku-4", event_type="view")
    assert items(shop.ask(user_id="ann", k=20, exclude_purchased=True)) == [
        "sku-4",
        *(f"sku-{n}" for n in range(20) if n not in {3, 4}),
    ]


def test_history_then_forgotten_then_new(shop) -> None:
    shop.tell("sku-3", timestamp="2026-01-02T00:00:00Z")
    shop.tell("sku-4")
    history = shop.client.get("/v1/users/ann/history").json()["events"]
    assert [e["item_id"] for e in history] == ["sku-3", "sku-4"]
    assert history[0]["timestamp"] == "2026-01-02T00:00:00Z"
    assert shop.ask(user_id="ann")["source"] == "model"
    assert shop.client.delete("/v1/users/ann").json() == {"events": 2}
    answer = shop.ask(user_id="ann")
    assert (answer["source"], answer["reason"]) == ("popular", "unknown_user")
    assert shop.client.get("/v1/users/ann/history").json() == {"events": [], "before": None}
    shop.tell("sku-9")
    assert items(shop.ask(user_id="ann", k=1)) == ["sku-9"]


def test_an_anonymous_session_becomes_the_users(shop) -> None:
    shop.tell("sku-3", user="ann", timestamp=1_000)
    shop.tell("sku-8", user="cookie-7")
    assert items(shop.ask(user_id="ann", k=1)) == ["sku-3"]
    assert shop.client.post("/v1/users/ann/join", json={"session_id": "cookie-7"}).json() == {"events": 1}
    assert items(shop.ask(user_id="ann", k=1)) == ["sku-8"]
    assert shop.ask(user_id="cookie-7")["reason"] == "unknown_user"


def test_displays_do_not_enter_histories(shop) -> None:
    answer = shop.ask(user_id="ann", k=1)
    shown = {"event_type": "impression", "request_id": answer["request_id"]}
    assert shop.tell("sku-19", **shown) == {"stored": 1, "duplicates": 0}
    assert shop.tell("sku-19", **shown) == {"stored": 0, "duplicates": 1}
    assert shop.store.history("ann") == []
    body = {"events": [{"user_id": "ann", "item_id": "x", "event_type": "impression"}]}
    assert shop.client.post("/v1/events", json=body).status_code == 422


def test_live_recall_reaches_the_metrics_and_the_console(shop) -> None:
    shop.tell("sku-3", timestamp=1_000)
    answer = shop.ask(user_id="ann", k=2)
    shop.tell("sku-3", "sku-9", request_id=answer["request_id"], event_type="purchase", value=2.0)
    for _ in range(1_000):
        shop.endpoint.count_recall()
        text = shop.client.get("/metrics").text
        if 'recsys_live_recall{arm="all",bound="value",release="r1"} 0.5' in text:
            break
    assert 'recsys_live_targets{arm="all",release="r1"} 2.0' in text
    assert 'recsys_live_revenue{arm="all",release="r1"} 2.0' in text
    status = shop.client.get("/v1/status").json()
    assert (status["recall"][0]["hits"], status["recall"][0]["recall"]["value"]) == (1, 0.5)
    assert status["answers"] == {"model": 1}
    (release,) = status["releases"]
    assert (release["name"], release["accuracy"]) == ("r1", {"ndcg10": {"before": 0.5, "after": 0.49}})
    assert release["encode_ms"] == {"before": 61.0, "after": 14.0}
    assert release["size_mb"] == {"before": 4.25, "after": 0.0}  # a release without files
    assert release["latency"]["p50_ms"] == status["latency"]["p50_ms"] > 0


def test_the_console_counts_the_days_that_the_metrics_count(open_shop) -> None:
    shop = open_shop(recall_days=1)
    counts = json.dumps(asdict(ArmCounts(answers=7)))
    hour = int(time.time() // 3600)
    hours = [(hour, "tonight"), (hour - 12, "tonight"), (hour - 26, "older")]
    rows = [{"hour": at, "release": release, "arm": "all", "counts": counts} for at, release in hours]
    with shop.store.engine.begin() as connection:
        connection.execute(recall_hours.insert(), rows)
    found = shop.client.get("/v1/status").json()["recall"]
    assert [(row["release"], row["answers"]) for row in found] == [("tonight", 14)]


def test_hours_are_shown_with_their_intervals_and_not_more_than_two_days_of_them(shop) -> None:
    hour = int(time.time() // 3600)
    counts = ArmCounts(answers=4, clicked=2, converted=2, revenue=8.0, revenue_squared=34.0)
    told = [(hour, counts), (hour - 1, counts), (hour - 40, ArmCounts(answers=1)), (hour - 60, counts)]
    rows = [{"hour": at, "release": "r1", "arm": "all", "counts": json.dumps(asdict(each))} for at, each in told]
    with shop.store.engine.begin() as connection:
        connection.execute(recall_hours.insert(), rows)
    found = shop.client.get("/v1/recall").json()["hours"]
    assert [row["answers"] for row in found] == [1, 4, 4]
    assert datetime.fromisoformat(found[-1]["hour"]).timestamp() == hour * 3600
    share = found[-1]["revenue_per_answer"]
    assert (share["value"], share["low"] < 2.0 < share["high"]) == (2.0, True)
    assert found[-1]["click_rate"]["value"] == 0.5
    assert found[0]["revenue_per_answer"] is None
    assert len(shop.client.get("/v1/recall", params={"hours": 2}).json()["hours"]) == 2
    assert shop.client.get("/v1/recall", params={"hours": 49}).status_code == 422


def test_a_retry_of_an_event_of_before_does_not_bring_a_forgotten_user_back(shop) -> None:
    told = {"event_id": "e1", "timestamp": "2026-01-02T00:00:00Z"}
    shop.tell("sku-3", **told)
    shop.client.delete("/v1/users/ann")
    assert shop.tell("sku-3", **told) == {"stored": 0, "duplicates": 1}
    assert shop.ask(user_id="ann")["reason"] == "unknown_user"
    assert shop.tell("sku-3", event_id="e2") == {"stored": 1, "duplicates": 0}  # of now: a user who has come back
    assert shop.ask(user_id="ann")["source"] == "model"


def test_a_user_is_not_joined_to_itself(shop) -> None:
    shop.tell("sku-3")
    answer = shop.client.post("/v1/users/ann/join", json={"session_id": "ann"})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["msg"] == "session_id is the user itself; give the id that the session had before"
    with shop.store.engine.connect() as connection:
        assert connection.exec_driver_sql("select count(*) from joins").scalar() == 0


def test_a_long_history_is_read_page_by_page(shop) -> None:
    told = [f"item-{n}" for n in range(7)]
    shop.tell(*told[:5], timestamp=1_000)  # at one moment: the order of arrival counts
    shop.tell(*told[5:], timestamp=2_000)
    pages, before = [], {}
    while True:
        page = shop.client.get("/v1/users/ann/history", params={"limit": 3, **before}).json()
        pages.append([event["item_id"] for event in page["events"]])
        if page["before"] is None:
            break
        before = {"before": page["before"]}
    assert pages == [told[4:], told[1:4], told[:1]]
    assert shop.client.get("/v1/users/ann/history", params={"before": "yesterday"}).status_code == 422


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_a_probe_may_ask_for_the_head_only(shop, path: str) -> None:
    answers = (shop.client.head(path) for _ in range(10_000))
    answer = next(answer for answer in answers if answer.status_code == 200)  # once it is ready
    assert answer.content == b""


ODD_IDS = ["a/b", "a/history", "a/join", "a/similar", "/", "a/", "//a", "..", ".", "../..", "%", "%2F", "a b", " ",
           "a?b#c", "line\nbreak", "at the end\n", "history", "x" * 256, "ü" * 256]  # fmt: skip


def in_path(any_id: str) -> str:
    """Percent-encoded, dots as well: clients would take `..` for the folder above."""
    return quote(any_id, safe="").replace(".", "%2E")


def test_whatever_an_event_calls_its_user_is_shown_joined_and_forgotten(shop) -> None:
    shop.tell("sku-3", user="bystander")
    for user in ODD_IDS:
        path = f"/v1/users/{in_path(user)}"
        shop.tell("sku-1", user=user)
        shop.tell("sku-2", user="cookie")
        history = shop.client.get(f"{path}/history").json()
        assert [event["item_id"] for event in history["events"]] == ["sku-1"], user
        assert shop.client.post(f"{path}/join", json={"session_id": "cookie"}).json() == {"events": 1}, user
        assert shop.client.delete(path).json() == {"events": 2}, user
        assert shop.store.history(user) == [], user
    assert shop.store.history("bystander") == ["sku-3"]


def test_an_item_of_any_id_has_similar_ones(tmp_path: Path) -> None:
    release = fake_release(FakeEngine())
    items = [replace(item, item_id=odd) for item, odd in zip(release.vocabulary.items, ODD_IDS, strict=True)]
    recommender = Recommender(replace(release, vocabulary=Vocabulary(items)))
    store, cache = EventStore.open(f"sqlite:///{tmp_path / 'store.db'}"), SessionCache(10**8)
    app = create_app(ServeConfig(), Releases(recommender, store, cache), store, cache)
    with running(app) as address, httpx.Client(base_url=address) as client:
        for odd in ODD_IDS:
            found = client.get(f"/v1/items/{in_path(odd)}/similar", params={"k": 100}).json()["items"]
            assert {item["item_id"] for item in found} == set(ODD_IDS) - {odd}


@pytest.mark.parametrize("is_broken", [False, True])
def test_what_answers_are_made_from_is_checked_against_exact_search(open_shop, monkeypatch, is_broken: bool) -> None:
    monkeypatch.setattr("serving.unseen._CHECKED_AT_ONCE", 7)
    if is_broken:
        true = ItemIndex.all_scores
        monkeypatch.setattr(ItemIndex, "all_scores", lambda index, vector_D: -true(index, vector_D))
    shop = open_shop(deadline_ms=10_000, index_check_share=1)
    shop.ask(events=[{"item_id": "sku-3"}])
    for _ in range(1_000):
        text = shop.client.get("/metrics").text
        if "recsys_index_checked_items_total 10.0" in text:
            break
    assert "recsys_index_checked_items_total 10.0" in text
    assert ("recsys_index_missed_items_total 0.0" in text) != is_broken


@pytest.mark.parametrize(
    "event",
    [
        {"item_id": "x" * 257},
        {"item_id": "x", "timestamp": "1e400"},
        {"item_id": "x", "timestamp": "99999-01-01"},
        {"item_id": "x", "timestamp": {"$gt": 0}},
        {"item_id": ["x"]},
        {"item_id": "x", "value": -1},
        {"item_id": "x", "value": 1e400},
        {"item_id": "x", "event_type": ""},
        {"item_id": "x", "event_type": "y" * 65},
        {"item_id": "x", "request_id": "r" * 65},
        {"item_id": "x", "event_id": "\x00"},
        {"item_id": "x", "surplus": 1},
        {"item_id": None},
        {"item_id": True},
    ],
)
def test_a_poison_event_is_refused_and_stores_nothing(shop, event: dict) -> None:
    import json

    body = json.dumps({"events": [{"user_id": "ann", **event}]})
    response = shop.client.post("/v1/events", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 422, response.text
    assert shop.store.num_events() == 0


@pytest.mark.parametrize(
    "name",
    ["'; drop table events; --", "../../etc/passwd", "<script>alert(1)</script>", "𝔘𝔫𝔦", "%00", "a\nb\tc", "\u202e"],
)
def test_hostile_names_are_only_names(shop, name: str) -> None:
    shop.tell(name, user=name)
    response = shop.client.get(f"/v1/users/{in_path(name)}/history")
    assert [e["item_id"] for e in response.json()["events"]] == [name]
    assert shop.store.history(name) == [name]
    assert shop.ask(user_id=name)["reason"] == "no_known_items"


@pytest.mark.parametrize("timestamp", ["2999-01-01T00:00:00Z", "0001-01-01T00:00:00", -1, 0])
def test_events_of_any_moment_are_kept_and_shown(shop, timestamp) -> None:
    assert shop.tell("sku-1", timestamp=timestamp)["stored"] == 1
    assert shop.client.get("/v1/users/ann/history").status_code == 200
    assert shop.ask(user_id="ann")["source"] == "model"


def test_the_short_way_answers_as_the_documented_route_does(shop, monkeypatch) -> None:
    shop.tell("sku-3", "sku-4")
    body = {"user_id": "ann", "k": 3, "filters": {"min_price": 2}}
    short = shop.ask(**body)
    monkeypatch.setattr(express, "PATH", "/elsewhere")
    documented = shop.ask(**body)
    for answer in (short, documented):
        answer.pop("request_id"), answer.pop("timings_ms")
    assert short == documented
    assert short["items"][0]["reason"] == {"kind": "again", "because_of": "sku-3", "title": "Title of sku-3"}


@pytest.mark.parametrize("body", [b'{"user_id": 7}', b'{"user_id": "a", "k": 0}', b'{"events": [{}, {"item_id": ""}]}'])
def test_what_breaks_a_rule_is_refused_as_by_the_documented_route(shop, monkeypatch, body: bytes) -> None:
    def refusal() -> tuple[int, str]:
        response = shop.client.post("/v1/recommendations", content=body, headers={"content-type": "application/json"})
        return response.status_code, response.text

    short = refusal()
    monkeypatch.setattr(express, "PATH", "/elsewhere")
    assert short == refusal()
    assert short[0] in {400, 422}
