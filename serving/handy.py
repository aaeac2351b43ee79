"""Answers at hand, already encoded, for requests that would wait too long to be read."""

import asyncio
import logging
import random
from collections import defaultdict
from dataclasses import replace
from typing import Any, Final

import orjson

from recsys.contracts.ids import PAD
from serving.fallback import LastAnswers, Listed, popular
from serving.live import LiveRelease, Releases
from serving.log import lines
from serving.metrics import Metrics
from serving.ranking import Reason
from serving.rules import CompiledRules
from serving.schemas import Because, Missing, RecommendationAnswer, RecommendedItem, Source

logger = logging.getLogger(__name__)

_SAID_AFTER_S: Final = 0.1
_SAID_TOGETHER: Final = 100
"""Lines of one record, which a log that is nearly full takes as a whole or not at all."""
_GAP: Final = b"\0"
"""JSON has none: inside of strings it is escaped."""
_Label = tuple[str, str, Source, Missing | None]
"""What answers are told apart by, but for what they list: release, arm, source and reason."""


class HandyAnswers:
    """The user's last answer where today's rules allow all of it, or popular items. Some microseconds each."""

    def __init__(self, releases: Releases, last_answers: LastAnswers, metrics: Metrics) -> None:
        self._releases = releases
        self._last_answers = last_answers
        self._metrics = metrics
        self._unsaid: dict[_Label, list[dict[str, Any]]] = defaultdict(list)
        """Of answers that the log does not have yet: what is their own."""
        self._frames: dict[_Label, bytes] = {}
        self._popular: dict[tuple[str, int], tuple[CompiledRules, Listed]] = {}
        self._parts: dict[tuple[str, int], tuple[bytes, bytes]] = {}
        """What stands before and after the score of an item that was shed, by release and token."""

    def plain(self, live: LiveRelease, user_id: str, k: int) -> Listed:
        """The list for a plain request, encoded: k items, or the first k of more."""
        rules = live.rules
        listed = self._last_answers.get(live.name, user_id)
        return listed if listed is not None and _is_whole(listed, k, rules) else self._most_popular(live, k, rules)

    def items(self, live: LiveRelease, listed: Listed, k: int) -> bytes:
        """The first k of a list in JSON, without what stands around them."""
        return b",".join((listed.encoded or self._encoded(live, listed))[:k])

    def told(
        self,
        request_id: str,
        live: LiveRelease,
        arm: str,
        source: Source,
        items: bytes,
        waited_s: float,
        deadline_ms: float | None,
    ) -> bytes:
        """Items as a labelled answer, in JSON. It is counted, and has a line in the log, but no impression."""
        total_ms = waited_s * 1000
        source = "last_answer" if source == "model" else source
        self._metrics.count(source, live.name, arm, "overload", {"total": total_ms}, deadline_ms)
        self._metrics.lost_impressions.inc()
        label: _Label = live.name, arm, source, None if items else "no_items_match"
        self._note(label, request_id, total_ms)
        frame = self._frames.get(label) or self._framed(label)
        return frame % (request_id.encode(), items, total_ms)

    def _framed(self, label: _Label) -> bytes:
        """The JSON of an answer with this label, as a format of its id, its items and its time."""
        release, arm, source, reason = label
        gap: Any = orjson.Fragment(_GAP)
        answer = RecommendationAnswer(
            request_id=gap,
            items=gap,
            release=release,
            arm=arm,
            source=source,
            degraded="overload",
            reason=reason,
            timings_ms={"total": gap},
        )
        frame = orjson.dumps(answer).replace(b"%", b"%%")
        for form in (b'"%s"', b"[%s]", b"%.3f"):  # in the order of the fields
            frame = frame.replace(_GAP, form, 1)
        self._frames[label] = frame
        return frame

    def _encoded(self, live: LiveRelease, listed: Listed) -> tuple[bytes, ...]:
        """The items in JSON, without reasons."""
        tokens = listed.tokens.tolist()
        scores = (
            orjson.dumps(listed.scores.tolist())[1:-1].split(b",") if tokens else []
        )  # together, a third of the work
        return tuple([score.join(self._parts_of(live, token)) for token, score in zip(tokens, scores, strict=True)])

    def _parts_of(self, live: LiveRelease, token: int) -> tuple[bytes, bytes]:
        known = self._parts.get((live.name, token))
        if known is None:
            item = live.recommender.release.vocabulary.item(token)
            before = orjson.dumps({"item_id": item.item_id})[:-1] + b',"score":'
            after = b"," + orjson.dumps({"title": item.title, "reason": None})[1:]
            known = self._parts[live.name, token] = before, after
        return known

    def _note(self, label: _Label, request_id: str, total_ms: float) -> None:
        """For the log, which has those of a tenth of a second from one call: here there is no time."""
        if not self._unsaid:
            asyncio.get_running_loop().call_later(_SAID_AFTER_S, self.say)
        self._unsaid[label].append({"request_id": request_id, "timings_ms": {"total": round(total_ms, 3)}})

    def say(self) -> None:
        """Log what is still to be logged."""
        unsaid = self._unsaid.copy()
        self._unsaid.clear()
        for (release, arm, source, reason), each in unsaid.items():
            line = {"release": release, "arm": arm, "source": source, "degraded": "overload", "reason": reason}
            for first in range(0, len(each), _SAID_TOGETHER):
                logger.info("answer", extra=lines(each[first : first + _SAID_TOGETHER], **line))

    def _most_popular(self, live: LiveRelease, k: int, rules: CompiledRules) -> Listed:
        known = self._popular.get((live.name, k))
        if known is None or known[0] is not rules:
            listed = popular(live, k, rules)
            known = rules, replace(listed, encoded=self._encoded(live, listed))
            self._drop_others()
            self._popular[live.name, k] = known
        return known[1]

    def _drop_others(self) -> None:
        """Of releases that answer no more."""
        loaded = {*self._releases.loaded}
        self._popular = {key: value for key, value in self._popular.items() if key[0] in loaded}
        self._parts = {key: value for key, value in self._parts.items() if key[0] in loaded}
        self._frames = {label: frame for label, frame in self._frames.items() if label[0] in loaded}


def encoded(listed: Listed, items: list[RecommendedItem]) -> Listed:
    """The list with its items in JSON."""
    return Listed(listed.source, listed.tokens, listed.scores, tuple(orjson.dumps(item) for item in items))


def _is_whole(listed: Listed, k: int, rules: CompiledRules) -> bool:
    """Whether the first k are there, may all be shown, and are as the pins want it."""
    tokens = listed.tokens[:k]
    if len(tokens) < k or not rules.shown.take(tokens).all():
        return False
    return all(tokens[position - 1] == token for position, token in rules.pins if position <= k and rules.shown[token])


def items_of(live: LiveRelease, listed: Listed, because: list[Reason]) -> list[RecommendedItem]:
    """What is shown of a list; `because` holds the reasons of its items, or nothing."""
    vocabulary = live.recommender.release.vocabulary
    items = []
    for place, (token, score) in enumerate(zip(listed.tokens.tolist(), listed.scores.tolist(), strict=True)):
        item = vocabulary.item(token)
        reason = _because(live, because[place]) if place < len(because) else None
        items.append(RecommendedItem(item_id=item.item_id, score=score, title=item.title, reason=reason))
    return items


def _because(live: LiveRelease, reason: Reason) -> Because | None:
    if reason.token == PAD:
        return Because("again", None, None) if reason.is_again else None
    cause = live.recommender.release.vocabulary.item(reason.token)
    return Because("again" if reason.is_again else "similar", cause.item_id, cause.title)


def new_id() -> str:
    """Of one answer."""
    return f"{random.getrandbits(128):032x}"
