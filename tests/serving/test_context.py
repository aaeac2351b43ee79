"""Users of whom nothing is known, answered by where and when they are."""

import pytest

from recsys.contracts.events import Event
from recsys.store import EventStore
from serving.context import MIN_EVENTS
from serving.schemas import Context


def items(answer: dict) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def seen(shop, item: str, times: int, **context: str) -> None:
    rows = [{"user_id": f"u{n}", "item_id": item, "context": context} for n in range(times)]
    assert shop.client.post("/v1/events", json={"events": rows}).json()["stored"] == times


def test_a_new_user_gets_what_is_popular_in_the_country_and_the_answer_says_so(shop) -> None:
    seen(shop, "sku-2", MIN_EVENTS, country="DE")
    seen(shop, "sku-7", 2, country="de")
    seen(shop, "sku-9", MIN_EVENTS, country="FR")
    shop.endpoint.learn_contexts()
    answer = shop.ask(user_id="new", k=4, context={"country": "DE"})
    assert (answer["source"], answer["degraded"], answer["reason"]) == ("popular_in_country", None, "unknown_user")
    assert items(answer) == ["sku-2", "sku-7", "sku-19", "sku-18"]  # filled up with popular ones
    assert items(shop.ask(user_id="new", k=1, context={"country": "FR"})) == ["sku-9"]


def test_the_most_telling_value_with_enough_events_decides(shop) -> None:
    seen(shop, "sku-2", MIN_EVENTS - 1, country="DE")
    seen(shop, "sku-4", MIN_EVENTS, device="phone")
    seen(shop, "sku-6", MIN_EVENTS, time="2026-11-24T20:15:00+01:00")
    shop.endpoint.learn_contexts()
    context = {"country": "DE", "device": "Phone", "time": "2026-11-25T23:59:00+01:00"}
    assert shop.ask(user_id="new", k=1, context=context)["source"] == "popular_on_device"
    evening = shop.ask(user_id="new", k=1, context={"time": context["time"]})
    assert (evening["source"], items(evening)) == ("popular_at_time", ["sku-6"])
    elsewhere = shop.ask(user_id="new", k=1, context={"country": "NL", "time": "2026-11-25T03:00:00+01:00"})
    assert (elsewhere["source"], items(elsewhere)) == ("popular", ["sku-19"])


def test_rules_hold_for_popular_items_of_a_context_and_known_users_are_the_models(shop) -> None:
    seen(shop, "sku-2", MIN_EVENTS, country="DE")
    shop.endpoint.learn_contexts()
    assert items(shop.ask(user_id="new", k=1, exclude=["sku-2"], context={"country": "DE"})) == ["sku-19"]
    shop.tell("sku-3")
    assert shop.ask(user_id="ann", k=1, context={"country": "DE"})["source"] == "model"


def test_an_unknown_field_of_a_context_is_refused(shop) -> None:
    body = {"user_id": "new", "context": {"weather": "rain"}}
    assert shop.client.post("/v1/recommendations", json=body).status_code == 422
    assert Context(country=" De ").values() == [("country", "de")]


@pytest.fixture
def store(tmp_path):
    opened = EventStore.open(f"sqlite:///{tmp_path / 'store.db'}")
    yield opened
    opened.close()


def test_an_event_that_is_told_twice_is_counted_once(store: EventStore) -> None:
    event = Event(user_id="u", item_id="x", timestamp_ms=1, event_id="e")
    for _ in range(2):
        store.append([event], {0: [("country", "de"), ("device", "phone")]})
    found = store.popular_by_context(min_events=1, num_items=5)
    assert {value: (p.num_events, p.item_ids) for value, p in found.items()} == {
        ("country", "de"): (1, ["x"]),
        ("device", "phone"): (1, ["x"]),
    }
    store.forget("u")  # nobody's name was counted
    assert found == store.popular_by_context(min_events=1, num_items=5)


def test_what_people_send_back_is_not_popular(shop) -> None:
    rows = [
        {"user_id": f"u{n}", "item_id": "sku-3", "event_type": "return", "context": {"country": "DE"}}
        for n in range(2 * MIN_EVENTS)
    ]
    for start in range(0, len(rows), 100):
        shop.client.post("/v1/events", json={"events": rows[start : start + 100]}).raise_for_status()
    seen(shop, "sku-2", MIN_EVENTS, country="DE")
    shop.endpoint.learn_contexts()
    assert items(shop.ask(user_id="new", k=2, context={"country": "DE"}))[0] == "sku-2"
