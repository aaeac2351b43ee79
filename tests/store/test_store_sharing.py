"""What the store promises to several processes, and what it says when it cannot be opened."""

import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from recsys.contracts.errors import StoreError
from recsys.contracts.events import Event
from recsys.store import EventStore, Impression, impressions

WRITER = """
import sys
from recsys.contracts.events import Event
from recsys.store import EventStore
store = EventStore.open(sys.argv[1])
stored = 0
for n in range(40):
    stored += store.append([Event(user_id="u", item_id=f"i{n}", timestamp_ms=n, event_id=f"e{n}")]).stored
print(stored)
"""


def event(item: str, event_id: str | None = None) -> Event:
    return Event(user_id="u", item_id=item, timestamp_ms=0, event_id=event_id)


def test_processes_that_send_the_same_events_store_each_once(url: str) -> None:
    command = [sys.executable, "-c", WRITER, url]
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    stored = [int(writer.communicate(timeout=60)[0]) for writer in writers]
    store = EventStore.open(url)
    assert sum(stored) == store.num_events() == 40
    assert store.history("u") == [f"i{n}" for n in range(40)]
    store.close()


def test_what_another_wrote_meanwhile_is_not_counted_as_stored(url: str) -> None:
    store = EventStore.open(url)
    start = threading.Barrier(8)

    def send(_: int) -> int:
        start.wait(30)
        return store.append([event(f"i{n}", f"e{n}") for n in range(200)]).stored

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(send, range(8))) == 200
    store.close()


def test_events_of_one_moment_keep_the_order_they_were_sent_in(url: str) -> None:
    store = EventStore.open(url)
    sent = [f"i{n * 7 % 500}" for n in range(500)]
    assert store.append([event(item) for item in sent]).stored == 500
    assert store.history("u") == sent
    assert store.history("u", limit=3) == sent[-3:]
    store.close()


def test_an_import_run_again_stores_nothing(url: str) -> None:
    store = EventStore.open(url)
    batches = [[event(f"i{n}", f"row-{n}") for n in range(start, start + 10)] for start in (0, 10)]
    first, again = store.import_events(batches), store.import_events(batches)
    assert (first.stored, first.duplicates, again.stored, again.duplicates) == (20, 0, 0, 20)
    store.close()


def test_an_impression_is_kept_once(url: str) -> None:
    store = EventStore.open(url)
    answer = Impression(request_id="r", user_id=None, release="a", arm="x", source="model", items=["x"])
    store.record_impressions([answer])
    with pytest.raises(StoreError, match="store: impression not kept: "):
        store.record_impressions([answer])
    store.close()


def test_an_acknowledged_event_survives_a_kill(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    script = WRITER + "\nsys.stdout.flush()\nimport os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n"
    result = subprocess.run([sys.executable, "-c", script, url], stdout=subprocess.PIPE, text=True, timeout=60)
    assert (result.returncode, result.stdout.strip()) == (-9, "40")
    assert EventStore.open(url).num_events() == 40


def test_sqlite_syncs_each_commit(tmp_path: Path) -> None:
    store = EventStore.open(f"sqlite:///{tmp_path / 'store.db'}")
    with store._engine.connect() as connection:
        found = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")]
    assert found == ["wal", 2]  # 2 is FULL


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_store_in_memory_is_refused(url: str) -> None:
    with pytest.raises(StoreError, match="a database in memory would be lost; expected sqlite:///path"):
        EventStore.open(url)


def test_another_database_is_told_what_is_expected_not_to_install_our_extra() -> None:
    with pytest.raises(StoreError, match=r"^store mysql://localhost/x: expected sqlite:///path or postgresql://…$"):
        EventStore.open("mysql://localhost/x")


def test_a_missing_driver_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StoreError, match=r"driver psycopg is missing; install recsys\[postgres\]$"):
        EventStore.open("postgresql://localhost/x")


@pytest.mark.parametrize("url", ["postgresql://me:s3cret@127.0.0.1:1/x", "postgresql://me:s3cret@host:bad/x"])
def test_no_message_shows_a_password(url: str) -> None:
    with pytest.raises(StoreError, match=r"store postgresql://\*\*\*@") as caught:
        EventStore.open(url)
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tables_of_something_else_are_refused_when_opened(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "other.db") as connection:
        connection.execute("create table events (id integer, name text)")
    connection.close()
    with pytest.raises(StoreError, match=r"cannot be opened: no such column: events\.seq"):
        EventStore.open(f"sqlite:///{tmp_path / 'other.db'}")


def test_trouble_while_reading_is_a_store_error(tmp_path: Path) -> None:
    store = EventStore.open(f"sqlite:///{tmp_path / 'store.db'}")
    with store._engine.begin() as connection:
        connection.exec_driver_sql("drop table events")
    for read in (store.num_events, lambda: store.recent("u", 1), lambda: store.history("u")):
        with pytest.raises(StoreError, match="no such table: events"):
            read()
    with pytest.raises(StoreError, match="events not stored: no such table"):
        store.append([event("a")])


def answered(request_id: str, served_ms: int | None = None) -> Impression:
    return Impression(
        request_id=request_id, user_id="ann", release="a", arm="x", source="model", items=["x"], served_ms=served_ms
    )


def kept_answers(store: EventStore) -> list[str]:
    with store.engine.connect() as connection:
        return list(connection.scalars(sa.text("select request_id from impressions order by request_id")))


def test_answers_that_are_recorded_after_their_user_was_forgotten_are_not_kept(store: EventStore) -> None:
    store.append([Event(user_id="ann", item_id="x", timestamp_ms=1)])
    store.forget("ann")
    forgotten_ms = store.forgotten()["ann"]
    store.record_impressions([answered("before", forgotten_ms - 1), answered("again", forgotten_ms + 1)])
    assert kept_answers(store) == ["again"]


def test_an_answer_that_is_being_recorded_while_its_user_is_forgotten_is_not_kept(store: EventStore) -> None:
    store.append([Event(user_id="ann", item_id="x", timestamp_ms=1)])
    with ThreadPoolExecutor(1) as pool:
        with store.engine.begin() as connection:
            impressions.record(connection, [answered("meanwhile", 1)], 1)
            forgetting = pool.submit(store.forget, "ann")
            with pytest.raises(TimeoutError):  # it waits for this transaction
                forgetting.result(0.5)
        assert forgetting.result(30) == 1
    assert kept_answers(store) == []


def test_events_and_displays_of_one_batch_are_stored_all_or_none(store: EventStore, monkeypatch) -> None:
    def fail(*_):
        raise sa.exc.OperationalError("insert", {}, Exception("disk is gone"))

    told = Event(user_id="ann", item_id="x", timestamp_ms=1)
    shown = replace(told, event_type="impression", request_id="q1")
    monkeypatch.setattr("recsys.store.events.record_displays", fail)
    with pytest.raises(StoreError, match="disk is gone"):
        store.append([told], displayed=[shown])
    assert store.num_events() == 0
    monkeypatch.undo()
    assert store.append([told], displayed=[shown]).stored == 2
