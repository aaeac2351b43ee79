"""What is kept of answers: their own moment, nothing of a forgotten user, and no end of the writer."""

import threading
import time

import pytest

from recsys.store import Impression
from serving.impressions import ImpressionWriter


@pytest.fixture
def held(shop, monkeypatch):
    """A shop whose impressions are written once `write` is called."""
    go_on, record = threading.Event(), shop.store.record_impressions
    monkeypatch.setattr(shop.store, "record_impressions", lambda batch: go_on.wait(30) and record(batch))

    def write() -> list[tuple[str | None, int]]:
        go_on.set()
        shop.endpoint.service.impressions.close(30)
        with shop.store.engine.connect() as connection:
            return connection.exec_driver_sql("select user_id, served_ms from impressions").all()

    shop.write = write
    return shop


def test_an_event_after_the_answer_and_before_its_impression_is_written_is_a_target(held) -> None:
    held.tell("sku-3", timestamp=1_000)
    before_ms = int(time.time() * 1000)
    held.ask(user_id="ann", k=3)
    after_ms = int(time.time() * 1000)
    held.tell("sku-3", timestamp=after_ms + 1)
    ((_, served_ms),) = held.write()
    assert before_ms <= served_ms <= after_ms
    held.store.attribution.update(10_000)
    (counts,) = held.store.attribution.totals().values()
    assert (counts.targets, counts.hits) == (1, 1)


def test_an_answer_to_a_user_who_is_forgotten_meanwhile_is_not_kept(held) -> None:
    held.tell("sku-3")
    held.ask(user_id="ann", k=2)
    held.ask(user_id="bob", k=2)
    assert held.client.delete("/v1/users/ann").json() == {"events": 1}
    assert [user for user, _ in held.write()] == ["bob"]


class Ledger:
    """A store that fails at first."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.kept: list[Impression] = []

    def record_impressions(self, batch) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.kept += batch


def impression(name: str, served_ms: int | None = None) -> Impression:
    return Impression(
        request_id=name, user_id="ann", release="r", arm="a", source="model", items=["x"], served_ms=served_ms
    )


def test_the_writer_goes_on_after_any_error() -> None:
    ledger, lost = Ledger(RuntimeError("a bug")), []
    writer = ImpressionWriter(ledger, lost.append)
    writer.offer(impression("q1"))
    writer.write()
    writer.offer(impression("q2"))
    writer.close(30)
    assert [each.request_id for each in ledger.kept] == ["q2"]
    assert lost == [1]


def test_what_waited_longer_than_recall_looks_back_is_lost_and_counted() -> None:
    ledger, lost = Ledger(), []
    writer = ImpressionWriter(ledger, lost.append)
    now_ms = int(time.time() * 1000)
    for name, served_ms in (("old", now_ms - 40_000), ("new", now_ms)):
        writer.offer(impression(name, served_ms))
    writer.close(30)
    assert [each.request_id for each in ledger.kept] == ["new"]
    assert sum(lost) == 1
