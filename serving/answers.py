"""From a request to an answer, without HTTP: history, model, deadline, labelled fallback."""

import logging
import time
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from recsys.contracts.errors import StoreError, UnknownItemError
from recsys.runtime.recommender import Recommender, ScoredItem
from serving.config import ServeConfig
from serving.deadline import BoundedPool, DeadlineError, OverloadError
from serving.metrics import Metrics
from serving.schemas import RecommendationAnswer, RecommendationRequest, RecommendedItem

logger = logging.getLogger(__name__)

Degraded = Literal["deadline", "overload", "engine_error", "store_error"]


class HistoryStore(Protocol):
    """What answers need of the event store."""

    def history(self, user_id: str) -> list[str]:
        """Item_ids, oldest first."""
        ...

    def record_impression(
        self, *, request_id: str, user_id: str | None, release: str, source: str, items: Sequence[str]
    ) -> None:
        """Keep what was shown."""
        ...


@dataclass(slots=True)
class _Work:
    """What a worker has found so far. A late answer shows from it where the time went."""

    history: list[str] = field(default_factory=list)
    items: list[ScoredItem] = field(default_factory=list)
    reason: Literal["unknown_user", "no_known_items"] | None = None
    timings_ms: dict[str, float] = field(default_factory=dict)


class AnswerService:
    """Answers inside the deadline, whatever the engine or the store do."""

    def __init__(self, config: ServeConfig, recommender: Recommender, store: HistoryStore, metrics: Metrics) -> None:
        self._config = config
        self._recommender = recommender
        self._store = store
        self._metrics = metrics
        self._pool = BoundedPool(config.num_workers, config.max_waiting)
        self._impressions = BoundedPool(1, 1024)

    async def answer(self, request: RecommendationRequest, arrived: float) -> RecommendationAnswer:
        """The best answer at hand `deadline_ms` after `arrived` (a `time.monotonic` moment), at the latest."""
        deadline_ms = request.deadline_ms or self._config.deadline_ms
        left_s = (deadline_ms - self._config.reserve_ms) / 1000 - (time.monotonic() - arrived)
        degraded: Degraded | None = None
        work = _Work(history=[event.item_id for event in request.events or ()])
        try:
            await self._pool.run(lambda: self._rank(request, work), left_s)
        except OverloadError:
            degraded = "overload"
        except DeadlineError:
            degraded = "deadline"
        except StoreError as error:
            degraded = "store_error"
            logger.warning("history not read: %s", error)
        except Exception:
            degraded = "engine_error"
            logger.exception("engine failed")
        return self._finish(request, work, degraded, arrived)

    def _rank(self, request: RecommendationRequest, work: _Work) -> None:
        """In a worker thread: the history, then the model, noted in `work` as they come."""
        started = time.monotonic()
        if request.user_id is not None:
            work.history = self._store.history(request.user_id)
            work.reason = None if work.history else "unknown_user"
        work.timings_ms["history"] = _since(started)
        started = time.monotonic()
        try:
            work.items = self._recommender.recommend(
                work.history, request.k, exclude=request.exclude, exclude_seen=request.exclude_seen
            )
        except UnknownItemError:
            work.reason = work.reason or "no_known_items"
        work.timings_ms["model"] = _since(started)

    def _finish(
        self, request: RecommendationRequest, work: _Work, degraded: Degraded | None, arrived: float
    ) -> RecommendationAnswer:
        reason = None if degraded else work.reason
        source: Literal["model", "popular"] = "popular" if degraded or reason else "model"
        items = work.items if source == "model" else self._popular(request, work.history)
        timings_ms = {**work.timings_ms, "total": _since(arrived)}  # a copy: a late worker may still write
        answer = RecommendationAnswer(
            request_id=uuid.uuid4().hex,
            items=[RecommendedItem(item_id=i.item_id, score=i.score, title=i.title) for i in items],
            release=self._recommender.release.name,
            source=source,
            degraded=degraded,
            reason=reason,
            timings_ms={stage: round(value, 3) for stage, value in timings_ms.items()},
        )
        self._count(answer)
        self._keep(request, answer)
        return answer

    def _popular(self, request: RecommendationRequest, history: Collection[str]) -> list[ScoredItem]:
        """Popular items under the request's own filters; seen ones are left out as far as they are known."""
        hidden = {*request.exclude, *(history if request.exclude_seen else ())}
        return self._recommender.popular(request.k, exclude=hidden)

    def _count(self, answer: RecommendationAnswer) -> None:
        self._metrics.answers.labels(answer.source).inc()
        if answer.degraded:
            self._metrics.degraded.labels(answer.degraded).inc()
        for stage, value in answer.timings_ms.items():
            self._metrics.latency.labels(stage).observe(value / 1000)
        logger.info(
            "answer request_id=%s release=%s source=%s degraded=%s reason=%s timings_ms=%s",
            answer.request_id,
            answer.release,
            answer.source,
            answer.degraded,
            answer.reason,
            answer.timings_ms,
        )

    def _keep(self, request: RecommendationRequest, answer: RecommendationAnswer) -> None:
        """Write the impression behind the answer's back; the answer does not wait for it."""

        def keep() -> None:
            try:
                self._store.record_impression(
                    request_id=answer.request_id,
                    user_id=request.user_id,
                    release=answer.release,
                    source=answer.source,
                    items=[item.item_id for item in answer.items],
                )
            except StoreError as error:
                self._metrics.lost_impressions.inc()
                logger.warning("%s", error)

        if not self._impressions.offer(keep):
            self._metrics.lost_impressions.inc()

    def close(self) -> None:
        """Stop the workers; impressions that wait are written first, for a few seconds at most."""
        self._pool.close()
        self._impressions.close(wait_s=5)


def _since(started: float) -> float:
    return (time.monotonic() - started) * 1000
