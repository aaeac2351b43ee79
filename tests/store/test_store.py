import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from recsys.contracts.errors import StoreError
from recsys.contracts.events import Event
from recsys.store import EventStore, contexts, removals, retention, schema
from recsys.store.rows import copy_histories
from tests.store.conftest import new_database


def event(item: str, at: int = 0, user: str = "u", event_id: str | None = None, **fields) -> Event:
    return Event(user_id=user, item_id=item, timestamp_ms=at, event_id=event_id, **fields)


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


def test_a_glance_changes_with_every_change_of_a_history(store: EventStore) -> None:
    seen = [store.glance("u")]

    def changed() -> bool:
        seen.append(store.glance("u"))
        return seen[-1] not in seen[:-1]

    assert (seen[0].num_events, seen[0].last_seq) == (0, 0)
    store.append([event("a", 10), event("b", 20)])
    assert changed()
    store.append([event("x", user="other")])
    assert not changed()
    store.append([event("late", 5)])
    assert changed()
    store.forget("u")
    assert not changed()  # as before the first event: nothing
    later = round(time.time() * 1000) + 60_000
    store.append([event("a", later), event("b", later), event("late", later)])
    assert changed()  # numbers are never given twice


def test_events_after_a_number_say_when_the_first_and_last_happened(store: EventStore) -> None:
    store.append([event("a", 10), event("b", 20)])
    last_seq = store.events_after("u").last_seq
    store.append([event("d", 40), event("c", 30)])
    fresh = store.events_after("u", last_seq)
    assert (fresh.item_ids, fresh.first_ms, fresh.last_ms) == (["c", "d"], 30, 40)
    assert fresh.last_seq == store.glance("u").last_seq
    assert store.events_after("u", fresh.last_seq).item_ids == []


def test_a_history_of_some_types_has_no_items_of_others(store: EventStore) -> None:
    kinds = ["view", "purchase", "view", "return"]
    store.append([event(f"i{at}", at, event_type=kind) for at, kind in enumerate(kinds)])
    found = store.events_after("u", event_types=("purchase", "return"))
    assert (found.item_ids, found.first_ms, found.last_ms) == ([None, "i1", None, "i3"], 0, 3)
    assert store.events_after("u", event_types=("view",)).item_ids == ["i0", None, "i2", None]
    assert store.events_after("u").item_ids == ["i0", "i1", "i2", "i3"]


def test_ids_of_any_characters_come_back_as_they_were_told(store: EventStore) -> None:
    odd = ['"', "\\", "a\nb", "\x01\x7f", "é", "\u2028", "🛒", "[1, 2]", "null", "'"]
    store.append([event(item, at) for at, item in enumerate(odd)])
    assert store.events_after("u").item_ids == odd


@pytest.mark.service
def test_a_database_without_an_encoding_keeps_ids_of_any_characters(postgres: str) -> None:
    url = new_database(postgres, "encoding 'SQL_ASCII' lc_collate 'C' lc_ctype 'C' template template0")
    store = EventStore.open(url)
    store.append([event("čaj ☕", 1, user="Žofie")])
    assert store.history("Žofie") == ["čaj ☕"]
    store.close()


@pytest.mark.service
def test_a_database_that_cannot_hold_every_text_is_refused(postgres: str) -> None:
    url = new_database(postgres, "encoding 'LATIN1' lc_collate 'C' lc_ctype 'C' template template0")
    with pytest.raises(StoreError, match=r"keeps texts as LATIN1; create one with ENCODING 'UTF8'$"):
        EventStore.open(url)


def test_a_forgotten_user_leaves_a_tombstone(store: EventStore) -> None:
    store.append([event("a"), event("b"), event("c", user="other")])
    assert store.forget("u") == 2
    assert store.history("u") == []
    assert store.history("other") == ["c"]
    assert list(store.forgotten()) == ["u"]
    assert store.forget("u") == 0


def test_what_a_forgotten_user_did_before_is_not_stored_again_and_counted_nowhere(url: str) -> None:
    store = EventStore.open(url, clock=lambda: 5.0)
    store.append([event("a", 10, event_id="1")])
    store.forget("u")
    batch = [event("a", 10, event_id="1"), event("b", 5_000), event("c", 5_001), event("d", 1, user="v")]
    result = store.append(batch, {n: [("country", "de")] for n in range(4)})
    assert (result.stored, result.duplicates) == (2, 2)
    assert (store.history("u"), store.history("v")) == (["c"], ["d"])
    assert_glances_count_events(store, "u", "v")
    assert store.popular_by_context(1, 5)["country", "de"].item_ids == ["c", "d"]
    store.close()


def test_a_user_is_not_joined_to_itself(store: EventStore) -> None:
    with pytest.raises(ValueError, match="a user cannot be joined to itself"):
        store.join("u", "u")


def test_purchases_are_known_by_type(store: EventStore) -> None:
    bought = Event(user_id="u", item_id="b", timestamp_ms=0, event_type="purchase", value=2.5)
    store.append([event("a"), bought])
    assert store.items_of_type("u", "purchase") == {"b"}
    assert store.recent("u", 1)[0].value == 2.5


def test_documents_are_changed_one_at_a_time_and_each_change_is_seen(store: EventStore) -> None:
    assert store.document("rules") is None
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: store.write_document("rules", lambda old: (old or 0) + 1), range(20)))
    assert store.document("rules") == 20
    assert store.glance("nobody").revision == 20


def assert_glances_count_events(store: EventStore, *user_ids: str) -> None:
    for user_id in user_ids:
        seen, found = store.glance(user_id), store.events_after(user_id)
        assert (seen.num_events, seen.last_seq) == (len(found.item_ids), found.last_seq)


def test_a_store_is_known_by_one_id_and_no_document_changes_by_it(store: EventStore, url: str) -> None:
    before = store.glance("ann")
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: store.identity(), range(20)))
    again = EventStore.open(url)
    assert found == {again.identity()}
    again.close()
    assert store.glance("ann") == before


def test_a_glance_counts_exactly_whatever_was_done_to_the_events(store: EventStore) -> None:
    store.append([event("a", 10, event_id="1"), event("b", 20), event("c", 5, user="v"), event("d", 6, user="s")])
    store.append([event("a", 10, event_id="1"), event("e", 30)])  # one is there already
    assert store.glance("u").num_events == 3
    store.join("s", "u")
    assert_glances_count_events(store, "u", "v", "s")
    store.prune(before_ms=10)
    assert (store.glance("u").num_events, store.glance("v").num_events) == (3, 0)
    assert_glances_count_events(store, "u", "v", "s")
    store.forget("u")
    store.append([event("f", 40)])
    assert_glances_count_events(store, "u", "v", "s")


def test_a_glance_counts_exactly_after_everything_at_once(store: EventStore, monkeypatch) -> None:
    # Of two vacuums of PostgreSQL's at once, the first tries for 5 s to shorten a table that the second waits for.
    monkeypatch.setattr(retention, "give_room_back", lambda *_: None)

    def work(n: int) -> None:
        store.append([event(f"i{n}", n, user=f"u{n % 3}"), event(f"j{n}", n, user=f"u{(n + 1) % 3}")])
        if n % 8 == 5:
            store.forget(f"u{n % 3}")
        if n % 8 == 7:
            store.prune(before_ms=n - 10)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(80)))
    assert_glances_count_events(store, "u0", "u1", "u2")


def test_a_store_from_before_users_were_counted_is_counted_when_opened(url: str) -> None:
    store = EventStore.open(url)
    store.append([event("a"), event("b"), event("c", user="v")])
    with store._engine.begin() as connection:
        connection.exec_driver_sql("drop table users")
    again = EventStore.open(url)
    assert_glances_count_events(again, "u", "v")
    assert again.most_active(5) == ["u", "v"]
    again.close()
    store.close()


def test_context_is_counted_by_item_and_only_of_what_was_written(store: EventStore) -> None:
    store.append([event("a", event_id="1"), event("b"), event("b")], {0: [("country", "de")], 1: [("country", "de")]})
    store.append([event("a", event_id="1"), event("b")], {0: [("country", "de")], 1: [("country", "de")]})
    found = store.popular_by_context(min_events=3, num_items=5)
    assert [(value, p.num_events, p.item_ids) for value, p in found.items()] == [(("country", "de"), 3, ["b", "a"])]
    assert store.popular_by_context(min_events=4, num_items=5) == {}
    assert store.popular_by_context(min_events=3, num_items=1)["country", "de"].item_ids == ["b"]


def test_a_copied_history_is_the_same_and_counted(store: EventStore) -> None:
    store.append([event("b", 20), event("a", 10)])
    copy_histories(store, {"v": "u", "w": "u"})
    assert store.history("w") == store.history("u") == ["a", "b"]
    assert_glances_count_events(store, "u", "v", "w")


@pytest.mark.parametrize("is_old", [False, True])
def test_pruning_gives_pages_back_in_steps_and_a_full_vacuum_mends_a_file_of_before(
    tmp_path: Path, monkeypatch, is_old: bool
) -> None:
    monkeypatch.setattr(retention, "_PAGES_AT_ONCE", 10)
    path, rests = tmp_path / "store.db", []
    if is_old:
        with sqlite3.connect(path) as connection:
            connection.execute("create table made_before_it_was_set (x)")
        connection.close()
    store = EventStore.open(f"sqlite:///{path}")
    store.append([event("x" * 200, n, user="u" * 200) for n in range(1_000)])

    def num_pages() -> int:
        with store.engine.connect() as connection:
            return connection.exec_driver_sql("PRAGMA page_count").scalar_one()

    before = num_pages()
    assert store.prune(before_ms=990, rest=rests.append) == 990
    assert store.gives_room_back is not is_old
    if is_old:
        assert num_pages() == before
        store.prune(before_ms=990, full_vacuum=True)
        assert store.gives_room_back
        store.append([event("x" * 200, n, user="u" * 200) for n in range(1_000)])
        store.prune(before_ms=990, rest=rests.append)
    assert num_pages() < before / 4
    assert len(rests) > 10
    assert store.history("u" * 200) == ["x" * 200] * (20 if is_old else 10)
    store.close()


def test_pruning_in_steps_deletes_all_that_is_old(store: EventStore, monkeypatch) -> None:
    monkeypatch.setattr(retention, "AT_ONCE", 2)
    store.append([event(f"i{n}", n, user=f"u{n % 2}") for n in range(9)])
    assert store.prune(before_ms=7) == 7
    assert [store.history(user) for user in ("u0", "u1")] == [["i8"], ["i7"]]
    assert_glances_count_events(store, "u0", "u1")


def test_pruning_leaves_the_contexts_with_most_events(store: EventStore, monkeypatch) -> None:
    monkeypatch.setattr(contexts, "MOST_VALUES", 2)
    monkeypatch.setattr(retention, "AT_ONCE", 1)
    for country, num in (("de", 3), ("fr", 1), ("at", 2), ("ch", 1)):
        store.append([event(f"i{n}", n) for n in range(num)], {n: [("country", country)] for n in range(num)})
    store.prune(before_ms=0)
    assert store.popular_by_context(1, 10).keys() == {("country", "de"), ("country", "at")}


def test_pruning_forgets_joins_that_lead_nowhere(store: EventStore) -> None:
    def sessions() -> list[str]:
        with store.engine.connect() as connection:
            return list(connection.scalars(sa.select(schema.joins.c.session_id)))

    for at in (1, 2):
        store.append([event("a", at, user=f"session-{at}")])
        store.join(f"session-{at}", "u")
    store.append([event("a", 3)])
    store.prune(before_ms=2)
    assert sessions() == ["session-2"]
    store.prune(before_ms=3)
    assert sessions() == []


@pytest.mark.service
def test_a_commit_is_durable_whatever_the_servers_default_is(postgres: str) -> None:
    engine = schema.open_engine(f"{postgres}&options=-c%20synchronous_commit%3Doff")
    with engine.connect() as connection:
        assert connection.exec_driver_sql("show synchronous_commit").scalar() == "on"
    engine.dispose()


def test_users_who_are_gone_are_told_in_order_and_once(store: EventStore, monkeypatch) -> None:
    store.append([event("a", 1, user=user) for user in ("u", "v", "w")])
    start = store.removals.last()
    store.forget("u")
    store.join("v", "w")
    store.forget("u")
    last, gone = store.removals.after(start)
    assert gone == ["u", "v", "u"]
    assert store.removals.after(last) == (last, [])
    monkeypatch.setattr(removals, "_KEPT", 1)
    store.prune(before_ms=0)
    assert store.removals.after(start) == (last, ["u"])


def test_pruning_deletes_old_displays_of_every_request(store: EventStore, monkeypatch) -> None:
    monkeypatch.setattr(retention, "AT_ONCE", 2)
    told = {"user_id": "u", "event_type": "impression"}
    shown = [
        Event(item_id=f"i{item}", timestamp_ms=at, request_id=f"q{at}", **told) for at in range(9) for item in range(3)
    ]
    store.append([], displayed=shown)
    store.prune(before_ms=7)
    with store.engine.connect() as connection:
        left = connection.exec_driver_sql("select request_id, count(*) from displays group by 1 order by 1").all()
    assert [tuple(row) for row in left] == [("q7", 3), ("q8", 3)]
