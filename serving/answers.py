"""From a request to an answer, without HTTP: a worker in time, or the best at hand, labelled."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from recsys.contracts.errors import StoreError
from recsys.contracts.ids import PAD, Floats, Tokens
from recsys.store import EventStore, Impression
from serving import fallback
from serving.config import ServeConfig
from serving.context import ContextLists
from serving.deadline import BoundedPool, DeadlineError, OverloadError
from serving.fallback import Allowed, LastAnswers, Listed
from serving.handy import HandyAnswers, items_of, new_id
from serving.impressions import ImpressionWriter
from serving.lag import LoopLag, RecentCount
from serving.live import Releases
from serving.log import fields
from serving.metrics import Metrics
from serving.schemas import Degraded, RecommendationAnswer, RecommendationRequest
from serving.unseen import Unseen
from serving.work import Finder, Work

logger = logging.getLogger(__name__)

_PLAIN = frozenset({"user_id", "k"})
"""What most requests consist of: their answers are kept encoded."""
_MOST_LAG_SHARE = 0.5
"""Of the deadline that is kept back for an event loop that was late a moment ago, or is about to be: it sheds."""
_MANY_SHED = 8.0
"""So many requests shed of late, each counted half after `_SHED_HALVED_AFTER_S`, are an overload: more are to come.
Fewer are what a pause of the machine leaves behind."""
_SHED_HALVED_AFTER_S = 0.1
_GIVES_WAY_FROM_S = 0.01
"""So far behind, the event loop has the interpreter for itself until it has caught up."""


class AnswerService:
    """Answers inside the deadline, whatever the engine, the index or the store do."""

    def __init__(
        self,
        config: ServeConfig,
        releases: Releases,
        store: EventStore,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` is the event loop's: what `arrived` is told by, and what timers go by."""
        self._clock = clock
        self._config = config
        self._releases = releases
        self._store = store
        self._metrics = metrics
        self.num_workers = config.num_workers or max(2, releases.current.sessions.most_together)
        self.lag = LoopLag()
        self.pool = BoundedPool(self.num_workers, config.max_waiting, gives_way=self._gives_way)
        # One at a time, and never in front of a user whose session is kept.
        self.cold_pool = BoundedPool(1, config.max_waiting, "cold", gives_way=self._gives_way)
        # Members of batches that may be in a lane at once: its workers are never idle, and others find places.
        self._turns = {
            pool.name: asyncio.Semaphore(min(2 * num_workers, pool.size))
            for pool, num_workers in ((self.pool, self.num_workers), (self.cold_pool, 1))
        }
        self.impressions = ImpressionWriter(store, metrics.lost_impressions.inc)
        self.last_answers = LastAnswers()
        self._finder = Finder(releases, store, metrics, self.last_answers)
        self.unseen = Unseen(
            releases, self._finder, self.impressions, metrics, config.index_check_share, self._gives_way, clock
        )
        self.contexts = ContextLists()
        self._shed = RecentCount(_SHED_HALVED_AFTER_S, clock)
        self.handy = HandyAnswers(releases, self.last_answers, metrics)

    @property
    def num_under_way(self) -> int:
        """Requests worked on or waiting for it."""
        return self.pool.taken + self.cold_pool.taken

    async def answer_all(self, requests: Sequence[RecommendationRequest], arrived: float) -> list[RecommendationAnswer]:
        """The answers of a batch, in their order: a few at a time, each inside its own deadline."""
        return list(await asyncio.gather(*(self.answer(each, arrived, in_batch=True) for each in requests)))

    async def answer(
        self, request: RecommendationRequest, arrived: float, *, in_batch: bool = False
    ) -> RecommendationAnswer:
        """The best answer at hand `deadline_ms` after `arrived` (a moment of the clock), at the latest."""
        request_id, work = self._begin(request)
        left_s = self.left_s(arrived, request.deadline_ms)
        work.until = self._clock() + left_s

        def still_s() -> float:
            """An overload that begins leaves less time to those who wait already, too."""
            return self.left_s(arrived, request.deadline_ms) if self.is_shedding else math.inf

        degraded: Degraded | None = None
        try:
            lane = self._lane(work)
            if in_batch:
                async with self._turn(lane, left_s):
                    await lane.run(lambda: self._finder.find(work), work.until - self._clock(), still_s)
            else:
                await lane.run(lambda: self._finder.find(work), left_s, still_s)
        except OverloadError:
            degraded = "overload"
        except DeadlineError:
            degraded, work.until = "deadline", -math.inf
        except StoreError as error:
            degraded = "store_error"
            logger.warning("history not read: %s", error)
        except Exception:
            degraded = "engine_error"
            logger.exception("engine failed")
        return self._finish(request_id, work, degraded, arrived)

    def shed(self, requests: Sequence[RecommendationRequest], since: Sequence[float]) -> list[bytes]:
        """The labelled answers, as JSON, of requests that come while too much is waited for; they wait for nothing.

        Each came after a moment of its own.
        """
        self._shed.add(len(requests))
        begun = [self._begin(request) for request in requests]
        listed = [self._at_once(work) for _, work in begun]
        items = [
            self.handy.items(work.live, found, work.request.k) for (_, work), found in zip(begun, listed, strict=True)
        ]
        # From here on nothing fails: what is counted and noted is sent, and soon.
        return [
            self.handy.told(
                request_id,
                work.live,
                work.arm,
                found.source,
                of_items,
                self.lag.waited_s(moment),
                work.request.deadline_ms,
            )
            for (request_id, work), found, of_items, moment in zip(begun, listed, items, since, strict=True)
        ]

    def _at_once(self, work: Work) -> Listed:
        request = work.request
        if request.user_id is not None and request.model_fields_set <= _PLAIN:
            return self.handy.plain(work.live, request.user_id, request.k)
        return self._fallback(work)

    @asynccontextmanager
    async def _turn(self, lane: BoundedPool, left_s: float) -> AsyncIterator[None]:
        """A place among those of a lane that batches may take.

        Raises:
            DeadlineError: none in time.
        """
        turns = self._turns[lane.name]
        try:
            async with asyncio.timeout(left_s):
                await turns.acquire()
        except TimeoutError:
            raise DeadlineError from None
        try:
            yield
        finally:
            turns.release()

    def left_s(self, arrived: float, deadline_ms: float | None = None) -> float:
        """How long work may take for its answer to be out in time."""
        deadline_ms = deadline_ms or self._config.deadline_ms
        most_ms = _MOST_LAG_SHARE * deadline_ms
        late_ms = most_ms if self.is_shedding else min(self.lag.recent_s * 1000, most_ms)
        # Of a request that gives less time than is usual, less is kept back.
        reserve_ms = self._config.reserve_ms * min(1.0, deadline_ms / self._config.deadline_ms)
        return (deadline_ms - reserve_ms - late_ms) / 1000 - (self._clock() - arrived)

    def _gives_way(self) -> bool:
        """Threads share the interpreter evenly: beside two workers the event loop would have a third of its time.

        It comes first: what it cannot read in time is late, while a worker's answer has one at hand behind it.
        """
        return self.lag.behind_s > _GIVES_WAY_FROM_S

    @property
    def is_shedding(self) -> bool:
        """Whether many requests were shed a moment ago."""
        return self._shed.value >= _MANY_SHED

    def _begin(self, request: RecommendationRequest) -> tuple[str, Work]:
        """(id of the answer, what is to be done)."""
        request_id = new_id()
        arm, live = self._releases.route(request.user_id or request_id)
        return request_id, Work(request, live, arm, self._clock)

    def _lane(self, work: Work) -> BoundedPool:
        user_id = work.request.user_id
        return self.cold_pool if user_id is None or work.live.sessions.peek(user_id) is None else self.pool

    def _finish(self, request_id: str, work: Work, degraded: Degraded | None, arrived: float) -> RecommendationAnswer:
        """On the event loop: nothing here waits for anything."""
        listed = None if degraded else work.listed
        because = work.because if listed else []
        if listed is None:
            listed = self._fallback(work) if degraded else self._of_nobody(work)
        reason = None if degraded else work.reason
        if not len(listed.tokens) and not work.allowed(work.live.rules).any():
            reason = "no_items_match"
        now = self._clock()
        waited_ms = (now - work.asked) * 1000  # where no worker has begun; a late one may still write
        timings_ms = {"wait": waited_ms, **work.timings_ms, "total": (now - arrived) * 1000}
        answer = RecommendationAnswer(
            request_id=request_id,
            items=work.items if listed is work.listed and work.items else items_of(work.live, listed, because),
            release=work.live.name,
            arm=work.arm,
            source=listed.source,
            degraded=degraded,
            reason=reason,
            partial=listed is work.listed and work.ranking is not None and work.ranking.is_partial,
            timings_ms={stage: round(value, 3) for stage, value in timings_ms.items()},
        )
        self._count(answer, work.request.deadline_ms)
        self._keep(work, answer)
        return answer

    def _of_nobody(self, work: Work) -> Listed:
        """For somebody of whom nothing is known: what is popular in the context, or everywhere."""
        return self._at_hand(work, None, None, PAD)

    def _fallback(self, work: Work) -> Listed:
        request, live = work.request, work.live
        last_answer = self.last_answers.get(live.name, request.user_id) if request.user_id else None
        tokens_L = work.tokens_L
        if tokens_L is None and request.user_id is not None:
            kept = live.sessions.peek(request.user_id)
            if kept is not None:
                work.tokens_L, work.seen = tokens_L, _ = kept.tokens_L, kept.seen
        elif tokens_L is None:
            work.tokens_L, work.seen = tokens_L, _ = work.told()
        last_token = int(tokens_L[-1]) if tokens_L is not None and len(tokens_L) else PAD
        if work.hides_seen and not len(work.seen):  # not known in time: an answer to this user is full of it
            last_answer = None
        nearest = work.nearest or live.neighbours.kept(last_token)
        return self._at_hand(work, last_answer, nearest, last_token)

    def _at_hand(
        self, work: Work, last_answer: Listed | None, nearest: tuple[Tokens, Floats] | None, last_token: int
    ) -> Listed:
        """The best list at hand, today's pins at their places."""
        k, live, rules = work.request.k, work.live, work.live.rules
        named, seen = work.hidden()
        allowed = Allowed(live.catalogue.matching(work.request.filters, rules), {*named.tolist()}, seen)
        listed = fallback.best_at_hand(
            live,
            k,
            allowed,
            rules,
            last_answer=last_answer,
            nearest=nearest,
            last_token=last_token,
            in_context=self.contexts.best(live, work.request.context),
        )
        return fallback.pinned(live, k, allowed, rules, listed)

    def _count(self, answer: RecommendationAnswer, deadline_ms: float | None) -> None:
        self._metrics.count(answer.source, answer.release, answer.arm, answer.degraded, answer.timings_ms, deadline_ms)
        logger.info(
            "answer",
            extra=fields(
                request_id=answer.request_id,
                release=answer.release,
                arm=answer.arm,
                source=answer.source,
                degraded=answer.degraded,
                reason=answer.reason,
                partial=answer.partial,
                timings_ms=answer.timings_ms,
            ),
        )
        if answer.partial:
            self._metrics.partial.labels(answer.release).inc()

    def _keep(self, work: Work, answer: RecommendationAnswer) -> None:
        """Write the impression behind the answer's back, and let what is unseen have its turn."""
        served_ms = int(time.time() * 1000)
        self.impressions.offer(
            Impression(
                request_id=answer.request_id,
                user_id=work.request.user_id,
                release=answer.release,
                arm=answer.arm,
                source=answer.source,
                items=[item.item_id for item in answer.items],
                degraded=answer.degraded,
                late=self._metrics.is_late(answer.timings_ms["total"], work.request.deadline_ms),
                served_ms=served_ms,
            )
        )
        self.unseen.follow(work, answer.request_id, served_ms)

    def close(self) -> None:
        """Stop the workers; impressions that wait are written first, for a few seconds at most, and log lines."""
        self.pool.close()
        self.cold_pool.close()
        self.unseen.pool.close()
        self.impressions.close(wait_s=5)
        self.handy.say()
