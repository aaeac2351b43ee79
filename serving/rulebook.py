"""The rule book in force: read from the store, compiled once for each release, and then taken over in one step."""

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from recsys.store import EventStore
from serving.rules import RULES_DOCUMENT, Rules


class Ruled(Protocol):
    """A release that goes by the rules."""

    def take_rules(self, rules: Rules) -> None:
        """Go by the whole rule book from now on."""
        ...

    def take_stock(self, available: Mapping[str, bool]) -> None:
        """Go by a change of some items' stock from now on."""
        ...


class RuleBook:
    """Rules and stock, shared by all workers through the store. Thread-safe.

    Whoever answers reads what its release holds, and never waits: all is compiled before it is taken over. A change of
    stock costs what it changes, here and in other workers, however many items are out of stock.
    """

    def __init__(self, store: EventStore, releases: Callable[[], Iterable[Ruled]]) -> None:
        """`releases` are those in memory."""
        self._store = store
        self._releases = releases
        self._rules = Rules()
        """But for what is out of stock."""
        self._unavailable: dict[str, None] = {}
        self._revision = -1
        self._rules_revision = -1
        self._stock_revision = 0
        self._num_changes = 0
        self._lock = threading.Lock()
        """Held while something is read, written or taken over."""

    @property
    def rules(self) -> Rules:
        """All of it."""
        with self._lock:
            return self._whole()

    @property
    def num_unavailable(self) -> int:
        """Items out of stock."""
        return len(self._unavailable)

    def follow(self, revision: int) -> None:
        """Take over what another worker has written, if the store's revision says so.

        Raises:
            RecsysError: it cannot be read; the rules before hold.
        """
        if revision == self._revision:
            return
        with self._lock:
            if revision != self._revision:  # nobody has read it while we waited
                self._take_over()
                self._revision = revision

    def set_rules(self, rules: Rules) -> None:
        """Replace the rule book; it holds when this returns.

        Raises:
            StoreError: nothing has changed.
        """
        with self._lock:
            self._write(rules)
            self._take_over()

    def set_availability(self, available: Mapping[str, bool]) -> dict[str, bool]:
        """Change stock of some items and leave all others; those that were not so before. It holds when this returns.

        Raises:
            StoreError: nothing has changed.
        """
        with self._lock:
            changed = self._store.stock.set(available)
            self._take_over()
            return changed

    def admit(self, release: Ruled, publish: Callable[[], None]) -> None:
        """Let a new release go by the rules, and only then be one of those in memory."""
        while True:
            with self._lock:
                num_changes, rules = self._num_changes, self._whole()
            release.take_rules(rules)  # with no lock held: it takes a while
            with self._lock:
                if num_changes == self._num_changes:
                    publish()
                    return

    # What follows is called by whoever holds the lock.

    def _whole(self) -> Rules:
        return self._rules.model_copy(update={"unavailable": list(self._unavailable)})

    def _write(self, rules: Rules) -> None:
        body = rules.model_copy(update={"unavailable": []}).model_dump()
        self._store.write_document(RULES_DOCUMENT, lambda _: body, unavailable=rules.unavailable)

    def _take_over(self) -> None:
        """Read what has changed. The rules are read again only if they have; of the stock only what has."""
        revision = self._store.revision(RULES_DOCUMENT)
        if revision != self._rules_revision:
            rules = Rules.from_mapping(self._store.document(RULES_DOCUMENT) or {}, "stored rules")
            if rules.unavailable:  # as stored by whoever keeps no rows of stock
                self._write(rules)
            self._rules = rules.model_copy(update={"unavailable": []})
        changes = self._store.stock.after(self._stock_revision)
        for item_id, is_available in changes.available.items():
            if is_available:
                self._unavailable.pop(item_id, None)
            else:
                self._unavailable[item_id] = None
        if revision != self._rules_revision:
            whole = self._whole()
            for release in self._releases():
                release.take_rules(whole)
        elif changes.available:
            for release in self._releases():
                release.take_stock(changes.available)
        else:
            return
        self._rules_revision, self._stock_revision = revision, changes.revision
        self._num_changes += 1
