"""Recall counted in a process of its own: it counts, says what is wrong, comes back, and ends."""

import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from recsys.contracts.errors import StoreError
from recsys.contracts.events import Event
from recsys.store import EventStore, Impression
from recsys.store.counting import RecallCounter
from recsys.store.recall import HOUR_MS


def show_and_act(store: EventStore, request_id: str) -> None:
    store.record_impressions(
        [Impression(request_id=request_id, user_id="ann", release="r1", arm="a", source="model", items=["x", "y"])]
    )
    store.append([Event(user_id="ann", item_id="x", timestamp_ms=int(time.time() * 1000) + 1, request_id=request_id)])


def hits(store: EventStore) -> int:
    return sum(counts.hits for counts in store.attribution.totals().values())


def test_it_counts_and_after_its_process_was_killed_the_next_count_finds_what_was_missed(store: EventStore) -> None:
    counter = RecallCounter(store, 24 * HOUR_MS)
    show_and_act(store, "q1")
    counter.count()
    assert hits(store) == 1
    assert counter._process is not None
    os.kill(counter._process.pid, signal.SIGKILL)
    counter._process.wait(30)
    show_and_act(store, "q2")
    with pytest.raises(StoreError, match="its process ended; it is started again"):
        counter.count()
    counter.count()
    assert hits(store) == 2
    counter.close()
    counter.count()  # nothing: it was closed
    assert counter._process is None


def test_what_the_database_says_is_said_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store = EventStore.open(f"sqlite:///{path}")
    store.close()
    path.write_bytes(b"no database" * 1000)
    counter = RecallCounter(store, HOUR_MS)
    with pytest.raises(StoreError, match=r"^store sqlite:///.*: cannot be opened: file is not a database$"):
        counter.count()
    counter.close()


def test_its_process_gives_way_hides_the_password_and_ends_with_the_pipe(tmp_path: Path) -> None:
    store = EventStore.open(f"sqlite:///{tmp_path / 'store.db'}")
    counter = RecallCounter(store, HOUR_MS)
    counter.count()
    assert counter._process is not None
    process = psutil.Process(counter._process.pid)
    assert process.nice() > psutil.Process().nice()
    assert "store.db" not in " ".join(process.cmdline())
    assert counter._process.stdin is not None
    counter._process.stdin.close()  # as when the endpoint is killed
    assert counter._process.wait(30) == 0
    counter.close()
    store.close()


def test_closing_does_not_wait_for_a_count_under_way(tmp_path: Path) -> None:
    store = EventStore.open(f"sqlite:///{tmp_path / 'store.db'}")
    counter = RecallCounter(store, HOUR_MS)
    counter.count()
    assert counter._process is not None
    os.kill(counter._process.pid, signal.SIGSTOP)  # it will not answer
    under_way = threading.Thread(target=counter.count)
    under_way.start()
    while not counter._lock.locked():
        pass
    pid = counter._process.pid
    counter.close()
    under_way.join(30)
    assert not under_way.is_alive()
    assert not psutil.pid_exists(pid)
    store.close()
