"""Changes of releases and arms that operators ask for: one at a time, and waited for only a while."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Final, TypeVar

from recsys.contracts.errors import ConfigError
from serving.live import Releases

logger = logging.getLogger(__name__)

T = TypeVar("T")
_PATIENCE_S: Final = 5.0
"""Longest that an operator's request waits for its change."""


class UnderWayError(Exception):
    """The change goes on; its progress is to be seen."""


class Changes:
    """Runs them in threads of their own: a change may take minutes, and proxies end requests that do."""

    def __init__(self, releases: Releases, failed: Callable[[], object], patience_s: float = _PATIENCE_S) -> None:
        """`failed` is told of a change that fails after its request was answered."""
        self._releases = releases
        self._failed = failed
        self._patience_s = patience_s
        self._is_changing = threading.Lock()

    def make(self, change: Callable[[], T]) -> T:
        """What the change returns, or what it raised.

        Raises:
            UnderWayError: it takes longer than a request can wait.
            ConfigError: another one is under way.
        """
        if not self._is_changing.acquire(blocking=False):
            raise ConfigError(f"another change is under way{self._progress()}; wait, or roll back to give it up")
        done: Future[T] = Future()
        threading.Thread(target=self._run, args=(change, done), name="change", daemon=True).start()
        if wait([done], self._patience_s).not_done:
            done.add_done_callback(self._note)
            raise UnderWayError
        return done.result()

    def _run(self, change: Callable[[], T], done: "Future[T]") -> None:
        try:
            result = change()
        except BaseException as error:
            self._is_changing.release()
            done.set_exception(error)
        else:
            self._is_changing.release()
            done.set_result(result)

    def _note(self, done: "Future[T]") -> None:
        error = done.exception()
        if error is not None:
            self._failed()
            logger.error("not changed: %s", error, exc_info=None if isinstance(error, ConfigError) else error)

    def _progress(self) -> str:
        mine = self._releases.preparing
        if mine is None:
            return ""
        return f": {mine.num_done:,} of {mine.num_users:,} sessions are encoded for {', '.join(mine.releases)}"
