from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from recsys.contracts.errors import StoreError
from recsys.contracts.events import Event
from recsys.store import EventStore


def event(item: str, at: int = 0, user: str = "u", event_id: str | None = None) -> Event:
    return Event(user_id=user, item_id=item, timestamp_ms=at, event_id=event_id)


def test_events_come_back_in_order_of_time_then_arrival(store: EventStore) -> None:
    store.append([event("b", 20), event("a", 10)])
    store.append([event("c", 20), event("x", 99, user="other")])
    assert store.history("u") == ["a", "b", "c"]
    assert store.history("u", limit=2) == ["b", "c"]
    assert store.history("nobody") == []
    assert store.most_active(1) == ["u"]


def test_an_event_id_is_stored_once(store: EventStore) -> None:
    assert store.append([event("a", event_id="1"), event("b", event_id="2")]).stored == 2
    result = store.append([event("a", event_id="1"), event("c", event_id="3"), event("c", event_id="3")])
    assert (result.stored, result.duplicates) == (1, 2)
    assert store.history("u") == ["a", "b", "c"]


def test_what_was_acknowledged_is_there_after_reopening(url: str) -> None:
    for seen in ([], ["a"]):
        store = EventStore.open(url)
        assert store.history("u") == seen
        store.append([event("a")])
        store.close()


def test_many_threads_lose_nothing(store: EventStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        stored = list(pool.map(lambda n: store.append([event(f"i{n}", n)]).stored, range(80)))
    assert sum(stored) == store.num_events() == 80


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "expected sqlite:///path or postgresql://"),
        ("sqlite:////no/such/folder/x.db", "no folder /no/such/folder; create it first"),
        ("mysql://localhost/x", "is missing; install|expected sqlite"),
    ],
)
def test_a_bad_url_is_one_clear_line(url: str, message: str) -> None:
    with pytest.raises(StoreError, match=message) as caught:
        EventStore.open(url)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_text("not a database, but long enough to be looked at" * 50)
    with pytest.raises(StoreError, match="cannot be opened: file is not a database"):
        EventStore.open(f"sqlite:///{tmp_path / 'x.db'}")
