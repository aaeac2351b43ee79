"""From a request to an answer, without HTTP: history, session, ranking, deadline, labelled fallback."""

import asyncio
import logging
import math
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np

from recsys.contracts.errors import StoreError
from recsys.contracts.ids import PAD, Floats, Tokens
from recsys.runtime.fusion import best_of_all
from recsys.store import EventStore, Impression
from recsys.store.recall import PURCHASE, SHADOW_ARM
from serving import fallback
from serving.config import ServeConfig
from serving.context import ContextLists
from serving.deadline import BoundedPool, DeadlineError, OverloadError
from serving.fallback import Allowed, LastAnswers, Listed
from serving.forgetting import Watch
from serving.handy import HandyAnswers, encoded, items_of, new_id
from serving.impressions import ImpressionWriter
from serving.lag import LoopLag, RecentCount
from serving.live import LiveRelease, Releases
from serving.log import fields
from serving.metrics import Metrics
from serving.ranking import Ranking, Reason, Wish, rank
from serving.rules import CompiledRules, Mask
from serving.schemas import Degraded, Missing, RecommendationAnswer, RecommendationRequest, RecommendedItem

logger = logging.getLogger(__name__)

_NOTHING = np.empty(0, dtype=np.int32)
_PLAIN = frozenset({"user_id", "k"})
"""What most requests consist of: their answers are kept encoded."""
_CHECKED_K = 10
_CHECKED_AT_ONCE = 4_096
"""Items scored at a time: all vectors of a large catalogue are tens of megabytes, which others would wait for."""
_MOST_LAG_SHARE = 0.5
"""Of the deadline that is kept back for an event loop that was late a moment ago, or is about to be: it sheds."""
_MANY_SHED = 8.0
"""So many requests shed of late, each counted half after `_SHED_HALVED_AFTER_S`, are an overload: more are to come.
Fewer are what a pause of the machine leaves behind."""
_SHED_HALVED_AFTER_S = 0.1
_GIVES_WAY_FROM_S = 0.01
"""So far behind, the event loop has the interpreter for itself until it has caught up."""


@dataclass(slots=True)
class _Work:
    """What a worker has found so far. A late answer shows from it where the time went."""

    request: RecommendationRequest
    live: LiveRelease
    arm: str
    clock: Callable[[], float]
    asked: float = field(init=False)
    """The moment from which it waited for a worker."""
    until: float = math.inf
    """The moment at which nobody waits for it any more."""
    tokens_L: Tokens | None = None
    """The kept history, once it is known."""
    seen: Tokens = field(default_factory=lambda: _NOTHING)
    """All items of the history that may be recommended, new ones too, once it is known."""
    purchased: set[str] | None = None
    """Items that the user has purchased, once they are known, where the request asks."""
    nearest: tuple[Tokens, Floats] | None = None
    ranking: Ranking | None = None
    listed: Listed | None = None
    because: list[Reason] = field(default_factory=list)
    items: list[RecommendedItem] = field(default_factory=list)
    reason: Missing | None = None
    timings_ms: dict[str, float] = field(default_factory=dict)
    watch: Watch = field(default_factory=Watch)

    def __post_init__(self) -> None:
        self.asked = self.clock()
        if self.request.events is not None:
            self.purchased = {e.item_id for e in self.request.events if e.event_type == PURCHASE}

    @property
    def hides_seen(self) -> bool:
        """Nothing that was seen may be shown. While nobody knows what was purchased, all of it may have been."""
        return self.request.exclude_seen or (self.request.exclude_purchased and self.purchased is None)

    @property
    def is_over(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.clock() >= self.until

    def check_time(self) -> None:
        """Called before a stage.

        Raises:
            DeadlineError: nobody would see what it finds.
        """
        if self.is_over:
            raise DeadlineError

    def timed(self, stage: str, started: float) -> float:
        """Note a stage that ends now; the moment."""
        now = self.clock()
        self.timings_ms[stage] = (now - started) * 1000
        return now


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
        self._background = BoundedPool(1, 16, "background", gives_way=self._gives_way)
        self.impressions = ImpressionWriter(store, metrics.lost_impressions.inc)
        self.last_answers = LastAnswers()
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
                    await lane.run(lambda: self._rank(work), work.until - self._clock(), still_s)
            else:
                await lane.run(lambda: self._rank(work), left_s, still_s)
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

    def _at_once(self, work: _Work) -> Listed:
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

    def _begin(self, request: RecommendationRequest) -> tuple[str, _Work]:
        """(id of the answer, what is to be done)."""
        request_id = new_id()
        arm, live = self._releases.route(request.user_id or request_id)
        return request_id, _Work(request, live, arm, self._clock)

    def _lane(self, work: _Work) -> BoundedPool:
        user_id = work.request.user_id
        return self.cold_pool if user_id is None or work.live.sessions.peek(user_id) is None else self.pool

    def _rank(self, work: _Work) -> None:
        """In a worker thread: the history, its encoding, then the list, noted in `work` as they come."""
        if work.request.user_id is None:
            self._find(work)
        else:
            with work.live.sessions.at_work(work.request.user_id) as work.watch:
                self._find(work)

    def _find(self, work: _Work) -> None:
        """Stops before a stage that nobody waits for, unless what it finds is kept for the next request.

        Raises:
            DeadlineError: the time is over.
        """
        request, live = work.request, work.live
        started = work.timed("wait", work.asked)
        if request.user_id is not None:
            glance = self._store.glance(request.user_id)
            self._releases.follow(glance.revision)
            if not glance.num_events and self.last_answers.get(live.name, request.user_id) is not None:
                self.last_answers.forget({request.user_id})
            if request.exclude_purchased:
                work.purchased = self._store.items_of_type(request.user_id, PURCHASE)
            started = work.timed("history", started)
            state, outcome = live.sessions.state(
                request.user_id, glance, lambda state: self._note(work, state.tokens_L, state.seen), work.until
            )
            self._metrics.sessions.labels(outcome).inc()
            work.ranking = state.ranking
            work.reason = None if state.glance.num_events else "unknown_user"
        else:
            tokens_L, seen = self._told(work)
            started = work.timed("history", started)
            self._note(work, tokens_L, seen)
            work.check_time()
            work.ranking = live.sessions.ranking(tokens_L) if len(tokens_L) else None
        started = work.timed("encode", started)
        work.check_time()
        if work.ranking is None:
            work.reason = work.reason or "no_known_items"
        else:
            self._list(work, work.ranking)
            work.timed("rank", started)

    @staticmethod
    def _told(work: _Work) -> tuple[Tokens, Tokens]:
        """The kept history and all items seen, of the events in the request."""
        return work.live.sessions.known([event.item_id for event in work.request.events or ()])

    def _note(self, work: _Work, tokens_L: Tokens, seen: Tokens) -> None:
        """Keep what a fallback can use, before the expensive part begins."""
        work.tokens_L, work.seen = tokens_L, seen
        if not len(tokens_L) or work.is_over:
            return
        user_id = work.request.user_id
        if user_id is None or self.last_answers.get(work.live.name, user_id) is None:
            work.nearest = work.live.neighbours.of(int(tokens_L[-1]))

    def _list(self, work: _Work, ranking: Ranking) -> None:
        request, live, rules = work.request, work.live, work.live.rules
        wish = Wish(
            k=request.k,
            allowed=self._allowed(work, rules),
            rules=rules,
            diversity=request.diversity,
            min_confidence=request.min_confidence,
        )
        ranked = rank(ranking, wish)
        work.because = ranking.reasons(ranked.tokens_K)
        work.listed = Listed("model", ranked.tokens_K, ranked.scores_K)
        if request.user_id is not None:
            work.items = items_of(live, work.listed, work.because)
            is_plain = wish.allowed is rules.shown and not (wish.min_confidence or wish.diversity)
            if is_plain:  # else of no use to other requests
                self.last_answers.keep(live.name, request.user_id, encoded(work.listed, work.items))
                if work.watch.is_forgotten:
                    self.last_answers.forget({request.user_id})

    @staticmethod
    def _allowed(work: _Work, rules: CompiledRules) -> Mask:
        """Tokens that this answer may show."""
        mask = work.live.catalogue.matching(work.request.filters, rules)
        named, seen = _hidden(work)
        if len(named) or len(seen):
            mask = mask.copy()
            mask[named] = False
            mask[seen] = False
        return mask

    def _finish(self, request_id: str, work: _Work, degraded: Degraded | None, arrived: float) -> RecommendationAnswer:
        """On the event loop: nothing here waits for anything."""
        listed = None if degraded else work.listed
        because = work.because if listed else []
        if listed is None:
            listed = self._fallback(work) if degraded else self._of_nobody(work)
        reason = None if degraded else work.reason
        if not len(listed.tokens) and not self._allowed(work, work.live.rules).any():
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
            timings_ms={stage: round(value, 3) for stage, value in timings_ms.items()},
        )
        self._count(answer, work.request.deadline_ms)
        self._keep(work, answer)
        return answer

    def _of_nobody(self, work: _Work) -> Listed:
        """For somebody of whom nothing is known: what is popular in the context, or everywhere."""
        return self._at_hand(work, None, None, PAD)

    def _fallback(self, work: _Work) -> Listed:
        request, live = work.request, work.live
        last_answer = self.last_answers.get(live.name, request.user_id) if request.user_id else None
        tokens_L = work.tokens_L
        if tokens_L is None and request.user_id is not None:
            kept = live.sessions.peek(request.user_id)
            if kept is not None:
                work.tokens_L, work.seen = tokens_L, _ = kept.tokens_L, kept.seen
        elif tokens_L is None:
            work.tokens_L, work.seen = tokens_L, _ = self._told(work)
        last_token = int(tokens_L[-1]) if tokens_L is not None and len(tokens_L) else PAD
        if work.hides_seen and not len(work.seen):  # not known in time: an answer to this user is full of it
            last_answer = None
        nearest = work.nearest or live.neighbours.kept(last_token)
        return self._at_hand(work, last_answer, nearest, last_token)

    def _at_hand(
        self, work: _Work, last_answer: Listed | None, nearest: tuple[Tokens, Floats] | None, last_token: int
    ) -> Listed:
        """The best list at hand, today's pins at their places."""
        k, live, rules = work.request.k, work.live, work.live.rules
        named, seen = _hidden(work)
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
                timings_ms=answer.timings_ms,
            ),
        )

    def _keep(self, work: _Work, answer: RecommendationAnswer) -> None:
        """Write the impression behind the answer's back, and let the shadow and the index check have their turn."""
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
        shadow = self._releases.shadow
        if shadow is not None and work.request.user_id is not None:
            request_id = answer.request_id
            taken = self._background.offer(lambda: self._answer_unseen(shadow, work.request, request_id, served_ms))
            if not taken:
                self._metrics.shadow.labels("skipped").inc()
        if work.ranking is not None and random.random() < self._config.index_check_share:
            ranking = work.ranking
            self._background.offer(lambda: self._check_index(ranking))

    def _answer_unseen(
        self, shadow: LiveRelease, request: RecommendationRequest, request_id: str, served_ms: int
    ) -> None:
        """In the background: the shadow's answer, counted as the one that was shown instead of it."""
        work = _Work(request, shadow, SHADOW_ARM, self._clock)
        try:
            self._rank(work)
        except Exception as error:
            self._metrics.shadow.labels("failed").inc()
            logger.error("shadow %s failed: %s", shadow.name, error, exc_info=not isinstance(error, StoreError))
            return
        self._metrics.shadow.labels("answered").inc()
        if work.listed is not None:
            items = [item.item_id for item in items_of(shadow, work.listed, [])]
            self.impressions.offer(
                Impression(
                    request_id=request_id,
                    user_id=request.user_id,
                    release=shadow.name,
                    arm=SHADOW_ARM,
                    source="model",
                    items=items,
                    served_ms=served_ms,
                )
            )

    def _check_index(self, ranking: Ranking) -> None:
        """Compare what answers are made from with exact search."""
        index = ranking.release.index
        everything = np.arange(1, len(index) + 1, dtype=np.int32)
        parts = np.array_split(everything, len(everything) // _CHECKED_AT_ONCE + 1)
        scores = np.concatenate([index.scores(ranking.vector_D, part) for part in parts])
        exact = everything[np.argsort(-scores, kind="stable")[:_CHECKED_K]]
        all_scores = index.all_scores(ranking.vector_D)  # where there are any, answers are made from them
        if all_scores is None:
            found = index.search(ranking.vector_D.reshape(1, -1), len(exact))[0][0]
        else:
            found = best_of_all(all_scores, len(exact))[0]
        self._metrics.index_checked.inc(len(exact))
        self._metrics.index_missed.inc(len(np.setdiff1d(exact, found)))

    def close(self) -> None:
        """Stop the workers; impressions that wait are written first, for a few seconds at most, and log lines."""
        self.pool.close()
        self.cold_pool.close()
        self._background.close()
        self.impressions.close(wait_s=5)
        self.handy.say()


def _hidden(work: _Work) -> tuple[Tokens, Tokens]:
    """Tokens that are left out by name, and, in ascending order, as seen; filters and rules leave out others."""
    seen = work.seen if work.hides_seen else _NOTHING  # first: a late worker may learn now what was purchased
    named = [*work.request.exclude, *(work.purchased or ())]
    return work.live.recommender.release.vocabulary.tokens(named) if named else _NOTHING, seen
