"""The parts of one running endpoint, and what it does beside answering."""

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from recsys.contracts.errors import RecsysError, StoreError
from recsys.store import EventStore
from recsys.store.counting import RecallCounter
from serving.accounting import Others
from serving.answers import AnswerService
from serving.changes import Changes
from serving.config import ServeConfig
from serving.context import MIN_EVENTS, NUM_ITEMS
from serving.deadline import BoundedPool, DeadlineError, OverloadError
from serving.guard import Access
from serving.live import Releases
from serving.metrics import Metrics
from serving.schemas import PATH, Preparing, RecommendationRequest
from serving.sessions import SessionCache
from serving.shedding import Turns
from serving.tracing import otlp_tracer

logger = logging.getLogger(__name__)


T = TypeVar("T")
_NUM_WRITERS = 4
_MAX_WRITES = 256
_WRITE_S = 10.0
"""Longest that a batch of events waits to be acknowledged."""
_BEHIND_SHARE = 0.4
"""Of the deadline that requests may have waited to be seen and are expected to take in the pool, before new ones are
answered where they arrive. A few that come together are no overload, on a slow machine neither."""
_BEHIND_SHARE_SHEDDING = 0.1
"""The same while many are answered like that: those who waited longest are late whenever the event loop is, too."""


class Endpoint:
    """Everything that routes share. `start` begins the work beside the requests, `close` ends it all."""

    def __init__(self, config: ServeConfig, releases: Releases, store: EventStore, cache: SessionCache) -> None:
        self.config = config
        self.releases = releases
        self.store = store
        self.cache = cache
        self.metrics = metrics = Metrics(config.deadline_ms)
        self._writers = BoundedPool(_NUM_WRITERS, _MAX_WRITES, "events")
        self.service = AnswerService(config, releases, store, metrics)
        self.others = Others()
        self.turns = Turns(self, self.service.lag)
        self.access = Access(config)
        self.tracer = otlp_tracer() if config.traces else None
        self.warmed = threading.Event()
        """It has warmed up, or tried to, and has read once what is shared: rules, arms, the `current` pointer."""
        self._is_warm = False
        self.changes = Changes(releases, metrics.release_failures.inc)
        releases.preparer.is_busy = lambda: self.service.num_under_way > 0
        self._last_removal: int | None = None
        """The number up to which users who are gone from the store are gone from here; None before the first look."""
        self._closing = threading.Event()
        self._counter = RecallCounter(store, round(config.attribution_hours * 3_600_000))
        metrics.show_release(releases.current.name)
        metrics.watch("recsys_session_cache_bytes", "Memory of kept sessions", lambda: cache.size_bytes)
        metrics.watch("recsys_session_cache_users", "Kept sessions", lambda: len(cache))
        metrics.watch("recsys_session_evictions", "Sessions that made room", lambda: cache.evictions)
        metrics.watch(
            "recsys_loop_lag_seconds", "How late timers of the event loop are", lambda: self.service.lag.seconds
        )
        metrics.watch("recsys_queue_requests", "Requests worked on or waiting", lambda: self.service.num_under_way)

    @property
    def is_ready(self) -> bool:
        """It is warm, knows rules and arms, and the current release answers as when it was built."""
        return self.warmed.is_set() and self.releases.current.is_verified

    def is_behind(self, num_under_way: int) -> bool:
        """See `Shedder`. Events, reports and so on are under way, too, but in nobody's way."""
        num_under_way -= self.others.count
        if num_under_way > self.service.num_workers + self.config.max_waiting // 2:
            return True
        ahead = num_under_way - self.service.cold_pool.taken  # those have a lane of their own
        wait_s = self.service.lag.seconds + self.service.pool.expected_s(ahead)
        share = _BEHIND_SHARE_SHEDDING if self.service.is_shedding else _BEHIND_SHARE
        return wait_s > share * self.config.deadline_ms / 1000

    @property
    def preparing(self) -> Preparing | None:
        """How far the sessions are that are encoded before a switch."""
        mine = self.releases.preparing
        if mine is None:
            return None
        return Preparing(releases=list(mine.releases), num_users=mine.num_users, num_done=mine.num_done)

    async def write(self, work: Callable[[], T]) -> T:
        """The result of work that writes to the store, in one of a few threads that nothing else needs.

        Raises:
            StoreError: the work failed, or too many wait for a store that stalls; some of that may be written yet.
        """
        try:
            return await self._writers.run(work, _WRITE_S)
        except (OverloadError, DeadlineError):
            raise StoreError("store: too many events wait to be written; send them again") from None

    def may_ask(self, client: Any, headers: list[tuple[bytes, bytes]]) -> bool:
        """See `Shedder`."""
        scope = {"method": "POST", "path": PATH, "client": client, "headers": headers}
        return self.access.refusal(scope) is None

    def shed(self, requests: Sequence[RecommendationRequest], since: Sequence[float]) -> list[bytes]:
        """See `Shedder`."""
        answers = self.service.shed(requests, since)
        self.metrics.count_request("POST", PATH, 200, len(answers))
        return answers

    def forget(self, user_ids: Collection[str]) -> None:
        """Keep nothing of users in memory, whoever is at work on them."""
        for live in self.releases.all_live:
            live.sessions.forget(user_ids)
        self.cache.forget(user_ids)
        self.service.last_answers.forget(user_ids)

    def follow_removals(self) -> None:
        """Forget whom the store says that other workers have forgotten, or whose events went to somebody else.

        Raises:
            StoreError: it is tried again.
        """
        if self._last_removal is None:
            self._last_removal = self.store.removals.last()
            return
        self._last_removal, gone = self.store.removals.after(self._last_removal)
        if gone:
            self.forget(frozenset(gone))

    def start(self) -> None:
        """Warm up, then keep up with releases, other workers and recall, in threads beside the event loop."""
        for work in (self._warm_up, self._keep_up, self._follow, self._count_recall):
            threading.Thread(target=work, name=work.__name__.strip("_"), daemon=True).start()

    def count_recall(self) -> None:
        """Join answers to events now, and show the figures.

        Raises:
            StoreError: the figures are as they were.
        """
        self._counter.count()
        since_ms = int((time.time() - self.config.recall_days * 86_400) * 1000)
        self.metrics.show_recall(self.store.attribution.totals(since_ms))

    def learn_contexts(self) -> None:
        """Take over what is popular by context.

        Raises:
            StoreError: what was known stays.
        """
        self.service.contexts.show(self.store.popular_by_context(MIN_EVENTS, NUM_ITEMS))

    def close(self) -> None:
        """Stop; impressions that wait are written first."""
        self._closing.set()
        self.releases.stop()
        self._counter.close()
        self._writers.close()
        self.service.close()
        if self.tracer is not None:
            self.tracer.close()
        self.store.close()

    def _warm_up(self) -> None:
        live = self.releases.current
        try:
            live.recommender.warm_up()
            live.verify()
        except Exception as error:
            # Events are taken all the same, and another release may be activated: the process goes on.
            logger.error("not ready: %s", error, exc_info=not isinstance(error, RecsysError))
            self.metrics.release_failures.inc()
        with suppress(StoreError):  # it is tried again, every now and then
            self.learn_contexts()
        self._is_warm = True
        self._begin()

    def _keep_up(self) -> None:
        def refresh() -> None:
            for error in self.releases.refresh():
                _log(error)
                self.metrics.release_failures.inc()
            self.metrics.show_release(self.releases.current.name)
            self._begin()

        self._try(refresh, self.metrics.release_failures.inc)
        self._repeat(refresh, self.config.poll_s, self.metrics.release_failures.inc)

    def _follow(self) -> None:
        def follow() -> None:
            self.follow_removals()
            self.releases.follow(self.store.glance("").revision)

        self._try(follow, lambda: None)
        self._repeat(follow, self.config.poll_s, lambda: None)

    def _begin(self) -> None:
        """Called at the end of whatever must be done before the first request; the last one makes it ready."""
        if self._is_warm and self.releases.has_caught_up:
            self.warmed.set()

    def _count_recall(self) -> None:
        def count() -> None:
            self.count_recall()
            self.learn_contexts()

        self._repeat(count, self.config.recall_s, lambda: None)

    def _repeat(self, work: Callable[[], None], every_s: float, failed: Callable[[], object]) -> None:
        while not self._closing.wait(every_s):
            self._try(work, failed)

    def _try(self, work: Callable[[], None], failed: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:
            _log(error)
            failed()


def _log(error: Exception) -> None:
    """What went wrong beside the requests; it is tried again."""
    if isinstance(error, RecsysError):
        logger.warning("%s", error)
    else:
        logger.error("work beside the requests failed: %s", error, exc_info=error)
