"""Sessions that are encoded under the releases that are to answer them, while the old ones still do."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from recsys.contracts.errors import ConfigError, StoreError
from recsys.store import EventStore
from serving.sessions import SessionCache, Sessions

logger = logging.getLogger(__name__)

_SHARE: Final = 0.5
"""Of the cache's bytes that new releases may fill before they answer; the other half is left to what answers now."""
_NUM_PASSES: Final = 3
"""Each later one takes the users who came during the one before."""
_LOOK_S: Final = 0.002
_LONGEST_YIELD_S: Final = 0.25
"""So that sessions are prepared, slowly, also while requests never cease."""


class NotWantedError(ConfigError):
    """The release is no longer to be switched to."""


class Prepared(Protocol):
    """A release, as far as it matters here."""

    name: str
    sessions: Sessions


@dataclass(slots=True)
class Preparation:
    """One that is under way."""

    releases: tuple[str, ...]
    """Those that are to answer."""
    num_users: int = 0
    num_done: int = 0


class Preparer:
    """Encodes one user at a time, the hottest first, and lets requests go before."""

    def __init__(
        self,
        store: EventStore,
        cache: SessionCache,
        clock: Callable[[], float] = time.monotonic,
        rest: Callable[[float], object] = time.sleep,
    ) -> None:
        self._store = store
        self._cache = cache
        self._clock = clock
        self._rest = rest
        self.is_busy: Callable[[], bool] = lambda: False
        """Whether requests are being worked on."""
        self.under_way: Preparation | None = None

    def prepare(
        self,
        answering: set[str],
        release_of: Callable[[str], Prepared],
        longest_s: float,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        """Encode who has a session under a release that answers now and none under the one that `release_of` says.

        It ends when all are done, after `longest_s`, when the new releases' sessions fill half of the cache, or when
        the store cannot be read: whoever is left is encoded when they come.

        Raises:
            NotWantedError: `is_wanted` says no.
        """
        until = self._clock() + longest_s
        done: dict[tuple[str, str], None] = {}
        try:
            for _ in range(_NUM_PASSES):
                left = self._left(answering, release_of)
                if not left or not self._pass(left, done, until, is_wanted):
                    break
        finally:
            self.under_way = None
            for name, user_id in reversed(done):  # as if used in their order, so that the coldest make room first
                self._cache.get(name, user_id)

    def _left(self, answering: set[str], release_of: Callable[[str], Prepared]) -> list[tuple[Prepared, str]]:
        """Users not prepared, last used first."""
        users = [(user_id, release_of(user_id)) for user_id in self._cache.latest_users(answering)]
        return [(live, user_id) for user_id, live in users if not self._cache.holds(live.name, user_id)]

    def _pass(
        self,
        left: list[tuple[Prepared, str]],
        done: dict[tuple[str, str], None],
        until: float,
        is_wanted: Callable[[], bool],
    ) -> bool:
        """Whether all were encoded, so that another look is worth it."""
        names = tuple(sorted({live.name for live, _ in left}))
        mine = self.under_way = self.under_way or Preparation(names)
        mine.num_users += len(left)
        for live, user_id in left:
            if not is_wanted():
                raise NotWantedError(f"{', '.join(names)}: not switched to: it was rolled back before it answered")
            if self._clock() >= until or not self._has_room(names):
                logger.warning("sessions prepared for %s: %d of %d", names, mine.num_done, mine.num_users)
                return False
            self._give_way()
            started = self._clock()
            try:
                state, _ = live.sessions.state(user_id, self._store.glance(user_id))
                if state.ranking is not None:
                    live.sessions.complete(state.ranking, user_id)
            except StoreError as error:
                logger.warning("sessions not prepared for %s: %s", live.name, error)
                return False
            done[live.name, user_id] = None
            mine.num_done += 1
            self._rest(self._clock() - started)  # at most half of a processor
        return True

    def _has_room(self, names: tuple[str, ...]) -> bool:
        return sum(self._cache.bytes_of(name) for name in names) < _SHARE * self._cache.limit_bytes

    def _give_way(self) -> None:
        """Let requests that are being worked on go first, but not for ever."""
        until = self._clock() + _LONGEST_YIELD_S
        while self.is_busy() and self._clock() < until:
            self._rest(_LOOK_S)
