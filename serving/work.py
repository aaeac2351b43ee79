"""What a worker thread does of one request: history, session, ranking, list, each noted as it is found."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from recsys.contracts.ids import Floats, Tokens
from recsys.store import EventStore
from recsys.store.recall import PURCHASE
from serving.deadline import DeadlineError
from serving.fallback import LastAnswers, Listed
from serving.forgetting import Watch
from serving.handy import encoded, items_of
from serving.live import LiveRelease, Releases
from serving.metrics import Metrics
from serving.ranking import Ranking, Reason, Wish, rank
from serving.rules import CompiledRules, Mask
from serving.schemas import Missing, RecommendationRequest, RecommendedItem

_NOTHING: Final = np.empty(0, dtype=np.int32)


@dataclass(slots=True)
class Work:
    """What has been found so far. A late answer shows from it where the time went."""

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

    def told(self) -> tuple[Tokens, Tokens]:
        """The kept history and all items seen, of the events in the request.

        An event that does not say its type is one of those that histories are made of.
        """
        types = self.live.recommender.release.history_types
        told = [
            event.item_id
            for event in self.request.events or ()
            if not types or event.event_type in types or "event_type" not in event.model_fields_set
        ]
        return self.live.sessions.known(told)

    def hidden(self) -> tuple[Tokens, Tokens]:
        """Tokens that are left out by name, and, in ascending order, as seen; filters and rules leave out others."""
        seen = self.seen if self.hides_seen else _NOTHING  # first: a late worker may learn now what was purchased
        named = [*self.request.exclude, *(self.purchased or ())]
        return self.live.recommender.release.vocabulary.tokens(named) if named else _NOTHING, seen

    def allowed(self, rules: CompiledRules) -> Mask:
        """Tokens that this answer may show."""
        mask = self.live.catalogue.matching(self.request.filters, rules)
        named, seen = self.hidden()
        if len(named) or len(seen):
            mask = mask.copy()
            mask[named] = False
            mask[seen] = False
        return mask


class Finder:
    """Does the work of requests, in any thread."""

    def __init__(self, releases: Releases, store: EventStore, metrics: Metrics, last_answers: LastAnswers) -> None:
        self._releases = releases
        self._store = store
        self._metrics = metrics
        self._last_answers = last_answers

    def find(self, work: Work) -> None:
        """The history, its encoding, then the list, noted in `work` as they come.

        Stops before a stage that nobody waits for, unless what it finds is kept for the next request.

        Raises:
            DeadlineError: the time is over.
            StoreError: the history cannot be read.
        """
        if work.request.user_id is None:
            self._find(work)
        else:
            with work.live.sessions.at_work(work.request.user_id) as work.watch:
                self._find(work)

    def _find(self, work: Work) -> None:
        request, live = work.request, work.live
        started = work.timed("wait", work.asked)
        if request.user_id is not None:
            glance = self._store.glance(request.user_id)
            self._releases.follow(glance.revision)
            if not glance.num_events and self._last_answers.get(live.name, request.user_id) is not None:
                self._last_answers.forget({request.user_id})
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
            tokens_L, seen = work.told()
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

    def _note(self, work: Work, tokens_L: Tokens, seen: Tokens) -> None:
        """Keep what a fallback can use, before the expensive part begins."""
        work.tokens_L, work.seen = tokens_L, seen
        if not len(tokens_L) or work.is_over:
            return
        user_id = work.request.user_id
        if user_id is None or self._last_answers.get(work.live.name, user_id) is None:
            work.nearest = work.live.neighbours.of(int(tokens_L[-1]))

    def _list(self, work: Work, ranking: Ranking) -> None:
        request, live, rules = work.request, work.live, work.live.rules
        wish = Wish(
            k=request.k,
            allowed=work.allowed(rules),
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
                self._last_answers.keep(live.name, request.user_id, encoded(work.listed, work.items))
                if work.watch.is_forgotten:
                    self._last_answers.forget({request.user_id})
