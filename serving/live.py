"""Releases that answer: loaded beside one another, switched in one step, several arms at once."""

import gc
import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from recsys.contracts import artifact
from recsys.contracts.errors import ArtifactError, ConfigError
from recsys.contracts.ids import PAD
from recsys.runtime.recommender import Recommender
from recsys.store import EventStore
from serving.arms import ARMS_DOCUMENT, NO_ARM, Arms
from serving.neighbours import Neighbours
from serving.preparing import NotWantedError, Preparation, Preparer
from serving.rulebook import RuleBook
from serving.rules import Catalogue, CompiledRules, Rules
from serving.sessions import SessionCache, Sessions

logger = logging.getLogger(__name__)

_ROLL_BACK_S: Final = 5.0
"""Longest that sessions are encoded before a roll-back: whoever rolls back cannot wait."""


class LiveRelease:
    """One loaded release with what answers keep for it. Thread-safe."""

    def __init__(self, recommender: Recommender, store: EventStore, cache: SessionCache) -> None:
        self.recommender = recommender
        self.name = recommender.release.name
        self.sessions = Sessions(recommender.release, store, cache)
        self.catalogue = Catalogue(recommender.release.vocabulary)
        self.rules: CompiledRules = self.catalogue.compile(Rules())
        """Those in force, in this release's tokens: read it once for each list."""
        self.is_verified = False
        """It answers here as when it was built."""
        self.neighbours = Neighbours(recommender.release.index)

    def take_rules(self, rules: Rules) -> None:
        """Go by the whole rule book from now on."""
        self.rules = self.catalogue.compile(rules)

    def take_stock(self, available: Mapping[str, bool]) -> None:
        """Go by a change of some items' stock from now on; what requests under way hold stays as it is."""
        tokens = self.recommender.release.vocabulary.tokens(available)
        mask = self.rules.available.copy()
        mask[tokens] = list(available.values())
        mask[PAD] = False
        shown = mask & self.rules.allowed
        shown.setflags(write=False)
        self.rules = replace(self.rules, available=mask, shown=shown)

    def check(self) -> None:
        """Answer once, the way requests are answered.

        Raises:
            ArtifactError: it does not recommend.
        """
        self.recommender.warm_up()
        self.sessions.warm_up()
        token = self.recommender.release.vocabulary.popular()[:1]
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
    """The releases that are loaded, and who is answered by which. Requests see either the old state or the new one.

    Changes come one after another, each whole: the store or the `current` pointer first, then memory.
    """

    def __init__(
        self,
        first: Recommender,
        store: EventStore,
        cache: SessionCache,
        folder: Path | None = None,
        load: Callable[[Path], Recommender] = Recommender.load,
        prepare_s: float = 300.0,
        preparer: Preparer | None = None,
    ) -> None:
        """`folder` is the folder of releases, or None where only the first one can answer.

        For at most `prepare_s` sessions are encoded under a new release before it answers.
        """
        self._store = store
        self._cache = cache
        self._folder = folder
        self._load = load
        self._prepare_s = prepare_s
        self.preparer = preparer or Preparer(store, cache)
        self._live = {first.release.name: LiveRelease(first, store, cache)}
        self.current = self._live[first.release.name]
        self.book = RuleBook(store, lambda: self.all_live)
        self._arms = Arms()
        self.has_caught_up = False
        """Rules, arms and the `current` pointer have been read since the start."""
        self._broken: set[str] = set()
        """What could not be taken over and is not tried again as long as it is wanted."""
        self._changing = threading.Lock()
        """Held by every change of releases and arms, also while a release is loaded: no request waits for it."""
        self._hurry = threading.Lock()
        self._num_hurrying = 0
        """Those who cannot wait until sessions are prepared."""
        self._num_given_up = 0
        """Changes that were not made because somebody could not wait."""

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
    def preparing(self) -> Preparation | None:
        """Sessions that are being encoded before a switch, if there are any."""
        return self.preparer.under_way

    @property
    def all_live(self) -> list[LiveRelease]:
        """The releases in memory, by name."""
        return [live for _, live in sorted(self._live.items())]

    def route(self, key: str) -> tuple[str, LiveRelease]:
        """The arm of a user (or of a request of nobody's) and the release that answers it.

        Where an arm's release is not loaded, its users are in no arm, and the current release answers.
        """
        return self._routed(key, self._arms, self.current)

    @property
    def rules(self) -> Rules:
        """The rule book."""
        return self.book.rules

    def follow(self, revision: int) -> None:
        """See `RuleBook`."""
        self.book.follow(revision)

    def refresh(self) -> list[Exception]:
        """Catch up with the store and the `current` pointer; called now and then, off the requests' path.

        Returns:
            What could not be taken over. All the rest was, and what answered before goes on. It is tried again the
            next time, but for a release that is broken or does not answer as when it was built.
        """
        failures: list[Exception] = []
        with self._changing:
            arms, pointed = self._arms, self.current.name
            with _noted(failures):
                self.follow(self._store.glance("").revision)
            with _noted(failures):
                arms = Arms.from_mapping(self._store.document(ARMS_DOCUMENT) or {}, "stored arms")
            with _noted(failures):
                pointed = (artifact.current_name(self._folder) if self._folder else None) or pointed
            has_read = not failures
            wanted = {*arms.releases, pointed} - {self.current.name}
            self._broken &= wanted
            for name in sorted(wanted - self._broken):
                with _noted(failures):
                    self._loaded(name)
            with _noted(failures), suppress(NotWantedError):
                self._deal(arms)
            with _noted(failures), suppress(NotWantedError):
                self._switch(self._live.get(pointed, self.current), is_wanted=lambda: self._points_to(pointed))
            self.has_caught_up = self.has_caught_up or has_read
        return failures

    def names(self) -> list[str]:
        """Releases that could be activated."""
        if self._folder is None:
            return [self.current.name]
        return sorted(path.parent.name for path in self._folder.glob(f"[!.]*/{artifact.MANIFEST_NAME}"))

    def activate(self, name: str) -> str:
        """Load, warm, check and switch to a release of the folder, for every worker; the name of the one before.

        It takes as long as sessions are prepared (`preparing`); the one before answers meanwhile.

        Raises:
            NotWantedError: it was rolled back before it answered.
            RecsysError: it cannot be loaded, or the pointer not moved; the one before goes on answering.
        """
        folder = self._folder_to_switch_in()
        with self._changing:
            before = self.current.name
            self._switch(self._loaded(name), lambda: artifact.set_current(folder, name))
        return before

    def roll_back(self) -> str:
        """Switch back to the release that `current` pointed to before, whoever has moved it; its name.

        A change that is being prepared in this worker is given up; where `current` had not moved for it, that is all.

        Raises:
            RecsysError: there is none, or it cannot be loaded; nothing has changed.
        """
        folder = self._folder_to_switch_in()
        num_given_up, answering = self._num_given_up, self.current.name
        with self._hurry:
            self._num_hurrying += 1
        with self._changing:
            with self._hurry:
                self._num_hurrying -= 1
            if self._num_given_up > num_given_up and self._points_to(answering):
                return answering
            names = artifact.current_names(folder)
            if len(names) < 2:
                raise ConfigError("no release was current before this one; activate one of the list")
            self._switch(self._loaded(names[1]), lambda: artifact.step_back(folder, names), prepare_s=_ROLL_BACK_S)
        return names[1]

    def stop(self) -> None:
        """Give up what is being prepared, and whatever is to be prepared later: the process ends."""
        with self._hurry:
            self._num_hurrying += 1

    def set_arms(self, arms: Arms) -> None:
        """Load what the arms need and prepare sessions, then let them answer, in other workers soon.

        Raises:
            RecsysError: a release cannot be loaded; nothing has changed.
        """
        with self._changing:
            for name in arms.releases:
                self._loaded(name)
            self._deal(arms, lambda: self._store.write_document(ARMS_DOCUMENT, lambda _: arms.model_dump()))

    def set_rules(self, rules: Rules) -> None:
        """See `RuleBook`."""
        self.book.set_rules(rules)

    def set_availability(self, available: Mapping[str, bool]) -> dict[str, bool]:
        """See `RuleBook`."""
        return self.book.set_availability(available)

    def _routed(self, key: str, arms: Arms, current: LiveRelease) -> tuple[str, LiveRelease]:
        arm = arms.arm_of(key)
        live = current if arm.release is None else self._live.get(arm.release)
        return (NO_ARM, current) if live is None else (arm.name, live)

    def _folder_to_switch_in(self) -> Path:
        if self._folder is None:
            raise ConfigError("the server was started with one release; start it with a folder of releases to switch")
        return self._folder

    # What follows is called by whoever holds `_changing`.

    def _loaded(self, name: str) -> LiveRelease:
        """The release, loaded beside the others, warm and checked."""
        live = self._live.get(name)
        try:
            if live is None:
                if self._folder is None or name not in self.names():
                    raise ConfigError(f"no release {name} here; list them first")
                with _without_collection():
                    live = LiveRelease(self._load(self._folder / name), self._store, self._cache)
                live.check()
            live.verify()
        except ArtifactError:
            self._broken.add(name)
            raise
        self._broken.discard(name)
        if name not in self._live:
            found = live

            def publish() -> None:
                self._live = {**self._live, name: found}

            self.book.admit(found, publish)
        return live

    def _deal(self, arms: Arms, write: Callable[[], object] = lambda: None) -> None:
        """Prepare sessions, write the arms down, then let them answer."""
        if arms != self._arms:
            self._prepare(arms, self.current)
        write()
        self._arms = arms

    def _switch(
        self,
        live: LiveRelease,
        move: Callable[[], object] = lambda: None,
        *,
        prepare_s: float = math.inf,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        """Prepare sessions, move the pointer, then let the release answer; what is not wanted any more is unloaded."""
        before = self.current
        if live is not before:
            self._prepare(self._arms, live, prepare_s, is_wanted)
        move()
        if live is not before:
            self.current = live
            self._unload_all_but({live.name, before.name, *self._arms.releases})
            logger.info("release switched from=%s to=%s", before.name, live.name)

    def _prepare(
        self,
        arms: Arms,
        current: LiveRelease,
        longest_s: float = math.inf,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        """Encode the sessions there are, each under the release that is to answer it."""
        try:
            self.preparer.prepare(
                {self.current.name, *self._arms.releases},
                lambda user_id: self._routed(user_id, arms, current)[1],
                min(longest_s, self._prepare_s),
                lambda: not self._num_hurrying and is_wanted(),
            )
        except NotWantedError:
            self._num_given_up += 1
            raise

    def _points_to(self, name: str) -> bool:
        return self._folder is None or artifact.current_name(self._folder) in {name, None}

    def _unload_all_but(self, names: set[str]) -> None:
        """Requests under way keep what they hold; nothing new is answered by the others."""
        gone = set(self._live) - names
        self._live = {name: live for name, live in self._live.items() if name in names}
        for name in gone:
            self._cache.drop(name)


@contextmanager
def _noted(failures: list[Exception]) -> Iterator[None]:
    """What fails inside is noted, and keeps nothing else from being done."""
    try:
        yield
    except Exception as error:
        failures.append(error)


@contextmanager
def _without_collection() -> Iterator[None]:
    """What is made in here is never looked through for garbage: with a large catalogue that would stop every answer."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if was_enabled:
            gc.enable()
