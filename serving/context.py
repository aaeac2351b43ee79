"""Popular items by context: they answer users of whom nothing else is known."""

from typing import Final

import numpy as np

from recsys.contracts.ids import PAD, Tokens
from recsys.store.contexts import ContextPopularity, ContextValue
from serving.fallback import Listed
from serving.live import LiveRelease
from serving.schemas import Context, Source

MIN_EVENTS: Final = 100
"""A value with fewer events says nothing."""
NUM_ITEMS: Final = 200
"""Kept of each value."""
_SOURCES: Final[dict[str, Source]] = {
    "country": "popular_in_country",
    "device": "popular_on_device",
    "daypart": "popular_at_time",
}


class ContextLists:
    """Popular items by context, in the tokens of a release. Thread-safe."""

    def __init__(self) -> None:
        self._known: dict[ContextValue, ContextPopularity] = {}
        self._tokens: dict[tuple[str, ContextValue], Tokens] = {}

    def show(self, known: dict[ContextValue, ContextPopularity]) -> None:
        """Replace what was known."""
        self._known, self._tokens = known, {}

    def best(self, live: LiveRelease, context: Context | None) -> Listed | None:
        """The items of the first value that is known, most events first, scores by place; None if none is known."""
        for value in context.values() if context is not None else ():
            if value in self._known:
                tokens = self._tokens_of(live, value)
                scores = np.arange(len(tokens), 0, -1, dtype=np.float32)
                return Listed(_SOURCES[value[0]], tokens, scores)
        return None

    def _tokens_of(self, live: LiveRelease, value: ContextValue) -> Tokens:
        tokens = self._tokens.get((live.name, value))
        if tokens is None:
            found = live.recommender.release.vocabulary.tokens(self._known[value].item_ids)
            tokens = self._tokens[live.name, value] = found[found != PAD]
        return tokens
