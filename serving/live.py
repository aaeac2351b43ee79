"""Releases that answer: loaded beside one another, switched in one step, several arms at once."""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from recsys.assignment import assign
from recsys.contracts import artifact
from recsys.contracts.errors import ArtifactError, ConfigError
from recsys.contracts.ids import PAD, Floats, Tokens
from recsys.runtime.recommender import Recommender
from recsys.store import EventStore
from serving.arms import ARMS_DOCUMENT, Arms
from serving.rules import RULES_DOCUMENT, Catalogue, CompiledRules, Rules
from serving.sessions import SessionCache, Sessions

logger = logging.getLogger(__name__)

ACTIVATIONS_DOCUMENT: Final = "activations"
NUM_NEIGHBOURS: Final = 100
_NEIGHBOUR_LISTS: Final = 20_000
_PREPARE_S: Final = 5.0
"""Longest that sessions are encoded under a new release before it is switched to."""


class LiveRelease:
    """One loaded release with what answers keep for it. Thread-safe."""

    def __init__(self, recommender: Recommender, store: EventStore, cache: SessionCache) -> None:
        self.recommender = recommender
        self.name = recommender.release.name
        self.sessions = Sessions(recommender.release, store, cache)
        self.catalogue = Catalogue(recommender.release.vocabulary)
        self.popular: Tokens = recommender.release.vocabulary.popular()
        self._compiled: tuple[Rules, CompiledRules] | None = None
        self.is_verified = False
        """It answers here as when it was built."""
        self._neighbours: OrderedDict[int, tuple[Tokens, Floats]] = OrderedDict()
        self._lock = threading.Lock()

    def compiled(self, rules: Rules) -> CompiledRules:
        """The rules in this release's tokens, computed once per rule book."""
        known = self._compiled
        if known is None or known[0] is not rules:
            known = (rules, self.catalogue.compile(rules))
            self._compiled = known
        return known[1]

    def neighbours(self, token: int) -> tuple[Tokens, Floats]:
        """Up to 100 items most like an item (cosine among the nearest by inner product), best first; kept."""
        with self._lock:
            known = self._neighbours.get(token)
        if known is None:
            index = self.recommender.release.index
            item_1D = index.vectors(np.array([token]))
            found = index.search(item_1D, 2 * NUM_NEIGHBOURS, [np.array([token], dtype=np.int32)])[0][0]
            found = found[found != PAD]
            vectors_ND = index.vectors(found)
            norms = np.linalg.norm(vectors_ND, axis=1) * np.linalg.norm(item_1D)
            likeness = (vectors_ND @ item_1D[0]) / np.maximum(norms, 1e-12)
            order = np.argsort(-likeness, kind="stable")[:NUM_NEIGHBOURS]
            known = found[order], likeness[order]
            with self._lock:
                self._neighbours[token] = known
                while len(self._neighbours) > _NEIGHBOUR_LISTS:
                    self._neighbours.popitem(last=False)
        return known

    def check(self) -> None:
        """Answer once, the way requests are answered.

        Raises:
            ArtifactError: it does not recommend.
        """
        self.recommender.warm_up()
        self.sessions.warm_up()
        token = self.popular[:1]
        found, scores = self.sessions.ranking(token).best(1)
        if found[0] == PAD or not np.isfinite(scores[0]):
            raise ArtifactError(f"{self.name}: recommends nothing after its most popular item; run `recsys optimize`")

    def verify(self) -> None:
        """Compare its answers with those it was published with, once.

        Raises:
            ArtifactError: they differ.
        """
        if not self.is_verified:
            self.recommender.check()
            self.is_verified = True


class Releases:
    """The releases that are loaded, and who is answered by which. Requests see either the old state or the new one."""

    def __init__(
        self,
        first: Recommender,
        store: EventStore,
        cache: SessionCache,
        folder: Path | None = None,
        load: Callable[[Path], Recommender] = Recommender.load,
    ) -> None:
        """`folder` is the folder of releases, or None where only the first one can answer."""
        self._store = store
        self._cache = cache
        self._folder = folder
        self._load = load
        self._changing = threading.Lock()
        self._live = {first.release.name: LiveRelease(first, store, cache)}
        self.current = self._live[first.release.name]
        self.rules = Rules()
        self._arms = Arms()
        self._revision = -1
        self._failed: str | None = None
        self._following = threading.Lock()

    @property
    def arms(self) -> Arms:
        """Who is answered by which release."""
        return self._arms

    @property
    def shadow(self) -> LiveRelease | None:
        """The release that answers unseen, if there is one."""
        return self._live.get(self._arms.shadow) if self._arms.shadow else None

    @property
    def loaded(self) -> list[str]:
        """Names of the releases in memory."""
        return sorted(self._live)

    @property
    def all_live(self) -> list[LiveRelease]:
        """The releases in memory, by name."""
        return [live for _, live in sorted(self._live.items())]

    def route(self, key: str) -> tuple[str, LiveRelease]:
        """The arm of a user (or of a request of nobody's) and the release that answers it."""
        arms, current = self._arms, self.current
        name = assign(key, arms.salt, [(arm.name, arm.weight) for arm in arms.arms])
        release = next(arm.release for arm in arms.arms if arm.name == name)
        return name, current if release is None else self._live.get(release, current)

    def follow(self, revision: int) -> None:
        """Take over rules and arms that another worker has written, if the store's revision says so."""
        if revision == self._revision or not self._following.acquire(blocking=False):
            return
        try:
            self.rules = Rules.from_mapping(self._store.document(RULES_DOCUMENT) or {}, "stored rules")
            arms = Arms.from_mapping(self._store.document(ARMS_DOCUMENT) or {}, "stored arms")
            if self._wanted(arms) <= set(self._live):
                self._arms = arms
            self._revision = revision
        finally:
            self._following.release()

    def refresh(self) -> None:
        """Catch up with the store and the `current` pointer; called now and then, off the requests' path.

        Raises:
            RecsysError: a release cannot be loaded; what answered before goes on answering.
        """
        self.follow(self._store.glance("").revision)
        arms = Arms.from_mapping(self._store.document(ARMS_DOCUMENT) or {}, "stored arms")
        for name in sorted(self._wanted(arms)):
            self._loaded(name)
        self._arms = arms
        wanted = artifact.current_name(self._folder) if self._folder else None
        if wanted and wanted not in {self.current.name, self._failed}:
            self._failed = wanted  # a broken release is tried once, not every second
            self._switch(self._loaded(wanted))
            self._failed = None

    def names(self) -> list[str]:
        """Releases that could be activated."""
        if self._folder is None:
            return [self.current.name]
        return sorted(path.parent.name for path in self._folder.glob(f"[!.]*/{artifact.MANIFEST_NAME}"))

    def activate(self, name: str) -> str:
        """Load, warm, check and switch to a release of the folder, for every worker; the name of the one before.

        Raises:
            RecsysError: it cannot be loaded; the one before goes on answering.
        """
        if self._folder is None:
            raise ConfigError("the server was started with one release; start it with a folder of releases to switch")
        if name not in self.names():
            raise ConfigError("no such release; list them first")
        before = self.current.name
        self._switch(self._loaded(name))
        artifact.set_current(self._folder, name)
        if name != before:
            self._store.write_document(ACTIVATIONS_DOCUMENT, lambda names: [*(names or [])[-99:], before])
        return before

    def roll_back(self) -> str:
        """Switch back to the release before the current one; its name.

        Raises:
            RecsysError: there is none, or it cannot be loaded.
        """
        names = self._store.document(ACTIVATIONS_DOCUMENT) or []
        if not names:
            raise ConfigError("no release was activated before this one")
        self.activate(names[-1])
        self._store.write_document(ACTIVATIONS_DOCUMENT, lambda _: names[:-1])
        return str(names[-1])

    def set_arms(self, arms: Arms) -> None:
        """Load what the arms need, then let them answer, here at once and in other workers soon.

        Raises:
            RecsysError: a release cannot be loaded; nothing has changed.
        """
        for name in sorted(self._wanted(arms)):
            self._loaded(name)
        self._store.write_document(ARMS_DOCUMENT, lambda _: arms.model_dump())
        self._arms = arms

    def set_rules(self, rules: Rules) -> None:
        """Keep the rules; they hold from the next request on, in every worker.

        Raises:
            StoreError: nothing has changed.
        """
        self._store.write_document(RULES_DOCUMENT, lambda _: rules.model_dump())
        self.rules = rules

    def set_availability(self, available: dict[str, bool]) -> None:
        """Change stock of some items and leave all others.

        Raises:
            StoreError: nothing has changed.
        """

        def changed(stored: dict[str, object] | None) -> dict[str, object]:
            rules = Rules.from_mapping(stored or {}, "stored rules")
            missing = {*rules.unavailable, *(i for i, there in available.items() if not there)}
            missing -= {i for i, there in available.items() if there}
            return rules.model_copy(update={"unavailable": sorted(missing)}).model_dump()

        self.rules = Rules.from_mapping(self._store.write_document(RULES_DOCUMENT, changed), "stored rules")

    def _wanted(self, arms: Arms) -> set[str]:
        return {name for name in [arms.shadow, *(arm.release for arm in arms.arms)] if name is not None}

    def _loaded(self, name: str) -> LiveRelease:
        """The release, loaded beside the others, warm and checked."""
        with self._changing:
            live = self._live.get(name)
            if live is None:
                if self._folder is None or name not in self.names():
                    raise ConfigError(f"no release {name} here; list them first")
                live = LiveRelease(self._load(self._folder / name), self._store, self._cache)
                live.check()
            live.verify()
            self._live = {**self._live, name: live}
            return live

    def _switch(self, live: LiveRelease) -> None:
        """Encode the hottest sessions under it for a while, then let it answer."""
        before = self.current
        stop = time.monotonic() + _PREPARE_S
        for user_id in self._cache.hottest(before.name, 10_000):
            if time.monotonic() > stop:
                break
            live.sessions.state(user_id, self._store.glance(user_id))
        self.current = live
        self._unload_all_but({live.name, before.name} | self._wanted(self._arms))
        logger.info("release switched from=%s to=%s", before.name, live.name)

    def _unload_all_but(self, names: set[str]) -> None:
        """Requests under way keep what they hold; nothing new is answered by the others."""
        with self._changing:
            gone = set(self._live) - names
            self._live = {name: live for name, live in self._live.items() if name in names}
        for name in gone:
            self._cache.drop(release=name)
