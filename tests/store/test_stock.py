"""What is out of stock: rows that several processes change and follow."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from recsys.contracts.errors import StoreError
from recsys.store import EventStore, stock


def test_only_what_changed_is_written_and_told(store: EventStore) -> None:
    assert store.stock.after(0) == stock.StockChanges(0, {})
    assert store.stock.set({"b": False, "a": False, "c": True}) == {"b": False, "a": False}
    first = store.stock.after(0)
    assert first.available == {"a": False, "b": False}
    assert store.stock.set({"a": True, "b": False}) == {"a": True}
    second = store.stock.after(first.revision)
    assert second.available == {"a": True}
    assert store.stock.after(second.revision) == stock.StockChanges(second.revision, {})
    assert store.stock.after(0).available == {"a": True, "b": False}


def test_every_change_is_seen_in_a_glance(store: EventStore) -> None:
    before = store.glance("ann").revision
    store.stock.set({"a": False})
    assert store.glance("ann").revision > before


def test_a_document_may_say_all_that_is_out_of_stock(store: EventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stock, "_AT_ONCE", 2)
    store.stock.set(dict.fromkeys("abcde", False))
    store.write_document("rules", lambda _: {}, unavailable=["d", "e", "f"])
    assert store.stock.unavailable("", 10) == ["d", "e", "f"]
    assert store.stock.unavailable("d", 1) == ["e"]
    assert store.revision("rules") == 1

    def refuse(_: object) -> None:
        raise StoreError("no")

    with pytest.raises(StoreError, match="no"):
        store.write_document("rules", refuse, unavailable=[])
    assert store.stock.unavailable("", 10) == ["d", "e", "f"]


def test_changes_that_come_at_once_are_all_kept_and_all_followed(store: EventStore) -> None:
    names = [f"i{n}" for n in range(40)]
    known, seen = 0, {}
    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(store.stock.set, {name: False}) for name in names]
        while not all(writer.done() for writer in writers):
            changes = store.stock.after(known)
            assert changes.revision >= known
            known, seen = changes.revision, seen | changes.available
        seen |= store.stock.after(known).available
    assert [writer.result() for writer in writers] == [{name: False} for name in names]
    assert seen == dict.fromkeys(names, False)
