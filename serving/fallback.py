"""The best answer at hand, for when the model's would be late: no engine, no index, no store, no waiting."""

import threading
from collections import OrderedDict
from collections.abc import Collection, Iterator, Set
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

import numpy as np
import numpy.typing as npt

from recsys.contracts.ids import PAD, Floats, Tokens
from serving.live import LiveRelease
from serving.rules import CompiledRules, Mask, with_pins
from serving.schemas import Source

_MAX_USERS: Final = 20_000


@dataclass(frozen=True, slots=True)
class Listed:
    """Tokens with scores, best first, and who ranked them."""

    source: Source
    tokens: Tokens
    scores: Floats
    encoded: tuple[bytes, ...] = ()
    """Each item as it was shown, in JSON; empty if they were not."""


class LastAnswers:
    """The model's last answer to each of the latest users: of plain requests, so it fits any other. Thread-safe."""

    def __init__(self) -> None:
        self._answers: OrderedDict[tuple[str, str], Listed] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, release: str, user_id: str, answer: Listed) -> None:
        """Remember an answer."""
        with self._lock:
            self._answers[release, user_id] = answer
            self._answers.move_to_end((release, user_id))
            while len(self._answers) > _MAX_USERS:
                self._answers.popitem(last=False)

    def get(self, release: str, user_id: str) -> Listed | None:
        """The last answer, if it is remembered."""
        return self._answers.get((release, user_id))

    def forget(self, user_ids: Collection[str]) -> None:
        """Forget users under every release."""
        with self._lock:
            for key in [key for key in self._answers if key[1] in user_ids]:
                del self._answers[key]


@dataclass(frozen=True, slots=True)
class Allowed:
    """Tokens that an answer may show: those of a mask, less a few, and less those that were seen.

    The mask is shared, not copied: while it is copied others may take the interpreter, and in an overload the event
    loop waits for it longer than the list takes.
    """

    mask: Mask
    hidden: Set[int] = frozenset()
    seen: Tokens = field(default_factory=lambda: np.empty(0, dtype=np.int32))
    """In ascending order: a look for some among them costs less than a set of them all."""

    def __getitem__(self, token: int) -> bool:
        return bool(self.mask[token]) and token not in self.hidden and not self._are_seen(np.array([token]))[0]

    def first(self, tokens: Tokens, num: int, taken: Set[int] = frozenset()) -> npt.NDArray[np.intp]:
        """Positions of the first `num` allowed tokens that are not taken; usually a look at a few is enough."""
        look = 4 * num
        while True:
            looked = tokens[:look]
            shown = self.mask.take(looked)
            if len(self.seen):
                shown &= ~self._are_seen(looked)
            places = shown.nonzero()[0]
            if self.hidden or taken:
                found = zip(places.tolist(), looked.take(places).tolist(), strict=True)
                free = (place for place, token in found if token not in self.hidden and token not in taken)
                kept = np.fromiter(islice(free, num), dtype=np.intp)
            else:
                kept = places[:num]
            if len(kept) == num or look >= len(tokens):
                return kept
            look *= 8

    def _are_seen(self, tokens: Tokens) -> Mask:
        if not len(self.seen):
            return np.zeros(len(tokens), dtype=bool)
        # What is greater than all of them is compared with the last, which it is not.
        are_seen: Mask = self.seen.take(self.seen.searchsorted(tokens), mode="clip") == tokens
        return are_seen


def popular(live: LiveRelease, k: int, rules: CompiledRules) -> Listed:
    """The k items with most events of late that the rules show, with boosts and pins; scores are counts."""
    allowed = Allowed(rules.shown)
    tokens = rules.popular.take(allowed.first(rules.popular, k))
    return pinned(live, k, allowed, rules, Listed("popular", tokens, _counts(live, tokens)))


def pinned(live: LiveRelease, k: int, allowed: Allowed, rules: CompiledRules, listed: Listed) -> Listed:
    """The list with pinned items at their places; the scores of those added are counts."""
    tokens, scores = with_pins(listed.tokens, listed.scores, k, rules, allowed, lambda added: _counts(live, added))
    return Listed(listed.source, tokens, scores)


def best_at_hand(
    live: LiveRelease,
    k: int,
    allowed: Allowed,
    rules: CompiledRules,
    *,
    last_answer: Listed | None,
    nearest: tuple[Tokens, Floats] | None,
    last_token: int,
    in_context: Listed | None = None,
) -> Listed:
    """Last answer, items nearest to the last event, popular in its category, popular in the context, popular.

    The first of them with an allowed item names the source; the others fill the list up to k.
    """
    source, taken = None, set[int]()
    parts: list[tuple[Tokens, Floats]] = []
    for name, tokens, scores in _rungs(live, rules, last_answer, nearest, last_token, in_context):
        kept = allowed.first(tokens, k - len(taken), taken)
        if len(kept):
            source, shown = source or name, tokens.take(kept)
            taken.update(shown.tolist())
            parts.append((shown, _counts(live, shown) if scores is None else scores.take(kept)))
        if len(taken) == k:
            break
    if source is None:
        return Listed("popular", np.empty(0, dtype=np.int32), np.empty(0, dtype=np.float32))
    if len(parts) == 1:
        return Listed(source, *parts[0])
    return Listed(source, np.concatenate([t for t, _ in parts]), np.concatenate([s for _, s in parts]))


def _rungs(
    live: LiveRelease,
    rules: CompiledRules,
    last_answer: Listed | None,
    nearest: tuple[Tokens, Floats] | None,
    last_token: int,
    in_context: Listed | None,
) -> Iterator[tuple[Source, Tokens, Floats | None]]:
    """(source, tokens, scores or None where those are counts), the next one only made when it is needed."""
    if last_answer is not None:
        yield "last_answer", last_answer.tokens, last_answer.scores
    if nearest is not None:
        yield "nearest", *nearest
    if last_token != PAD:
        yield "popular_in_category", live.catalogue.popular_like(last_token, rules), None
    if in_context is not None:
        yield in_context.source, in_context.tokens, in_context.scores
    yield "popular", rules.popular, None


def _counts(live: LiveRelease, tokens: Tokens) -> Floats:
    counts: Floats = live.recommender.release.vocabulary.popularity.take(tokens).astype(np.float32)
    return counts
