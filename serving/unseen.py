"""What happens behind an answer, unseen: missing summaries, the shadow's answer, a check of the index."""

import logging
import random
from collections.abc import Callable
from typing import Final

import numpy as np

from recsys.contracts.errors import StoreError
from recsys.runtime.index import best_of_all
from recsys.store import Impression
from recsys.store.recall import SHADOW_ARM
from serving.deadline import BoundedPool
from serving.handy import items_of
from serving.impressions import ImpressionWriter
from serving.live import LiveRelease, Releases
from serving.metrics import Metrics
from serving.ranking import Ranking
from serving.work import Finder, Work

logger = logging.getLogger(__name__)

_CHECKED_K: Final = 10
_CHECKED_AT_ONCE: Final = 4_096
"""Items scored at a time: all vectors of a large catalogue are tens of megabytes, which others would wait for."""


class Unseen:
    """One thread that takes these in turn, as far as there is time; what finds no place is skipped."""

    def __init__(
        self,
        releases: Releases,
        finder: Finder,
        impressions: ImpressionWriter,
        metrics: Metrics,
        index_check_share: float,
        gives_way: Callable[[], bool],
        clock: Callable[[], float],
    ) -> None:
        """`index_check_share` of the answers are compared with exact search."""
        self._releases = releases
        self._finder = finder
        self._impressions = impressions
        self._metrics = metrics
        self._index_check_share = index_check_share
        self._clock = clock
        self.pool = BoundedPool(1, 16, "background", gives_way=gives_way)

    def follow(self, work: Work, request_id: str, served_ms: int) -> None:
        """Offer what is to follow an answer."""
        if work.ranking is not None and work.ranking.is_partial:
            self.pool.offer(lambda: self._complete(work))
        shadow = self._releases.shadow
        if shadow is not None and work.request.user_id is not None:
            is_taken = self.pool.offer(lambda: self._answer(shadow, work, request_id, served_ms))
            if not is_taken:
                self._metrics.shadow.labels("skipped").inc()
        if work.ranking is not None and random.random() < self._index_check_share:
            ranking = work.ranking
            self.pool.offer(lambda: self._check_index(ranking))

    def _answer(self, shadow: LiveRelease, shown: Work, request_id: str, served_ms: int) -> None:
        """The shadow's answer, counted as the one that was shown instead of it."""
        work = Work(shown.request, shadow, SHADOW_ARM, self._clock)
        try:
            self._finder.find(work)
        except Exception as error:
            self._metrics.shadow.labels("failed").inc()
            logger.error("shadow %s failed: %s", shadow.name, error, exc_info=not isinstance(error, StoreError))
            return
        self._metrics.shadow.labels("answered").inc()
        self._complete(work)
        if work.listed is not None:
            items = [item.item_id for item in items_of(shadow, work.listed, [])]
            self._impressions.offer(
                Impression(
                    request_id=request_id,
                    user_id=work.request.user_id,
                    release=shadow.name,
                    arm=SHADOW_ARM,
                    source="model",
                    items=items,
                    served_ms=served_ms,
                )
            )

    def _complete(self, work: Work) -> None:
        """Encode the summaries that an answer was made without, for the next one."""
        if work.ranking is None:
            return
        try:
            work.live.sessions.complete(work.ranking, work.request.user_id)
        except Exception:  # answers stay partial, and the next one tries again
            logger.exception("summaries not encoded under %s", work.live.name)

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
        # In this order: whoever reads both between the two would else take a bad index for a good one.
        self._metrics.index_missed.inc(len(np.setdiff1d(exact, found)))
        self._metrics.index_checked.inc(len(exact))
