"""Answers at hand, already encoded, for requests that would wait too long to be read."""

import asyncio
import logging
import random
from typing import Final

import orjson

from recsys.contracts.ids import PAD
from serving.fallback import LastAnswers, Listed, popular
from serving.lag import LoopLag
from serving.live import LiveRelease, Releases
from serving.log import fields
from serving.metrics import Metrics
from serving.rules import CompiledRules
from serving.schemas import Because, RecommendationAnswer, RecommendedItem, Source

logger = logging.getLogger(__name__)

_SAID_AFTER_S: Final = 1.0


class HandyAnswers:
    """The user's last answer where today's rules allow all of it, or popular items. Some microseconds each."""

    def __init__(self, releases: Releases, last_answers: LastAnswers, metrics: Metrics, lag: LoopLag) -> None:
        self._releases = releases
        self._last_answers = last_answers
        self._metrics = metrics
        self._lag = lag
        self._num_unsaid = 0
        self._popular: dict[tuple[str, int], tuple[CompiledRules, Listed]] = {}

    def answer(self, user_id: str, k: int) -> bytes:
        """A labelled answer as JSON, on the event loop. It is counted and in the log, but not kept as an impression."""
        arm, live = self._releases.route(user_id)
        rules = live.rules
        listed = self._last_answers.get(live.name, user_id)
        if listed is None or len(listed.tokens) != k or not rules.shown[listed.tokens].all():
            listed = self._most_popular(live, k, rules)
        timings_ms = {"total": round(self._lag.seconds * 1000, 3)}
        source: Source = "popular" if listed.source == "popular" else "last_answer"
        self._metrics.count(source, live.name, arm, "overload", timings_ms)
        self._metrics.lost_impressions.inc()
        self._note()
        return orjson.dumps(
            RecommendationAnswer(
                request_id=new_id(),
                items=orjson.Fragment(listed.encoded),  # type: ignore[arg-type]
                release=live.name,
                arm=arm,
                source=source,
                degraded="overload",
                timings_ms=timings_ms,
            )
        )

    def _note(self) -> None:
        """One line for all that are shed within a second: there is no time for a line each."""
        if self._num_unsaid == 0:
            asyncio.get_running_loop().call_later(_SAID_AFTER_S, self._say)
        self._num_unsaid += 1

    def _say(self) -> None:
        logger.warning("shed", extra=fields(num_shed=self._num_unsaid, reason="overload"))
        self._num_unsaid = 0

    def _most_popular(self, live: LiveRelease, k: int, rules: CompiledRules) -> Listed:
        known = self._popular.get((live.name, k))
        if known is None or known[0] is not rules:
            listed = popular(live, k, rules.shown)
            known = rules, encoded(listed, items_of(live, listed, []))
            self._popular[live.name, k] = known
        return known[1]


def encoded(listed: Listed, items: list[RecommendedItem]) -> Listed:
    """The list with its items in JSON."""
    return Listed(listed.source, listed.tokens, listed.scores, orjson.dumps(items))


def items_of(live: LiveRelease, listed: Listed, because: list[int]) -> list[RecommendedItem]:
    """What is shown of a list; `because` holds the token that is each item's reason, PAD for none."""
    vocabulary = live.recommender.release.vocabulary
    items = []
    for place, (token, score) in enumerate(zip(listed.tokens.tolist(), listed.scores.tolist(), strict=True)):
        item = vocabulary.item(token)
        reason = None
        if place < len(because) and because[place] != PAD:
            cause = vocabulary.item(because[place])
            reason = Because(cause.item_id, cause.title)
        items.append(RecommendedItem(item_id=item.item_id, score=score, title=item.title, reason=reason))
    return items


def new_id() -> str:
    """Of one answer."""
    return f"{random.getrandbits(128):032x}"
