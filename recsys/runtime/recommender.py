"""From a history to a ranked list, without HTTP: what Python users, the endpoint and evaluation share."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recsys.contracts.errors import UnknownItemError
from recsys.contracts.ids import PAD, Floats, Tokens
from recsys.runtime.fusion import evidence, search
from recsys.runtime.release import Release
from recsys.windows import open_window, reachable

_NOTHING = np.empty(0, dtype=np.int32)
ENCODE_BATCH = 1024
"""Histories ranked at a time, which bounds memory."""


@dataclass(frozen=True, slots=True)
class ScoredItem:
    """One recommended item."""

    item_id: str
    score: float
    title: str | None


class Recommender:
    """Answers from one release. Thread-safe."""

    name = "model"

    def __init__(self, release: Release) -> None:
        self.release = release
        self._popular = release.vocabulary.popular()

    @classmethod
    def load(cls, path: Path | str, num_threads: int = 2) -> "Recommender":
        """The release at `path`, or the current one of a folder of releases."""
        return cls(Release.open(Path(path), num_threads=num_threads))

    def warm_up(self) -> None:
        """Pay for first-call work now."""
        self.release.engine.warm_up()
        self.rank([np.ones(1, dtype=np.int32)], k=10)

    def recommend(
        self, history: Sequence[str], k: int = 10, *, exclude: Collection[str] = (), exclude_seen: bool = False
    ) -> list[ScoredItem]:
        """The k items most likely next after a history of item_ids, oldest first; unknown ones are skipped.

        Raises:
            UnknownItemError: no item of the history is in the vocabulary.
        """
        tokens = self.release.vocabulary.tokens(history)
        tokens = tokens[tokens != PAD]
        if not len(tokens):
            raise UnknownItemError(
                f"none of the {len(history)} items of the history is in release {self.release.name}; "
                "send at least one item of the catalogue"
            )
        without = np.unique(np.concatenate([self._known(exclude), tokens if exclude_seen else tokens[:0]]))
        found, scores = self._search([tokens], k, [without])[0]
        return [self._scored(token, score) for token, score in zip(found, scores, strict=True) if token != PAD]

    def popular(self, k: int, *, exclude: Collection[str] = ()) -> list[ScoredItem]:
        """The k items with most events: the answer when nothing is known of a user. Scores are counts."""
        chosen = self._popular[~np.isin(self._popular, self._known(exclude))][:k]
        return [self._scored(token, self.release.vocabulary.num_events[token]) for token in chosen]

    def rank(self, histories: Sequence[Tokens], k: int, exclude: Sequence[Tokens] | None = None) -> Tokens:
        """Ranked tokens of many kept histories, none empty, shape [B, k], PAD where fewer exist."""
        ranked = np.empty((len(histories), k), dtype=np.int32)
        for start in range(0, len(histories), ENCODE_BATCH):
            rows = slice(start, start + ENCODE_BATCH)
            nothing = [_NOTHING] * len(histories[rows])
            found = self._search(histories[rows], k, nothing if exclude is None else exclude[rows])
            ranked[rows] = [tokens for tokens, _ in found]
        return ranked

    def _search(self, histories: Sequence[Tokens], k: int, without: Sequence[Tokens]) -> list[tuple[Tokens, Floats]]:
        """(tokens, scores) of each kept history, none empty; the one way from a history to a list."""
        release = self.release
        vectors_BD = release.engine.encode([open_window(history, release.window) for history in histories])
        known = [evidence(reachable(history, release.window), release.transitions) for history in histories]
        return [
            search(release.index, vectors_BD[i : i + 1], known[i], k, without[i], release.fusion)
            for i in range(len(histories))
        ]

    def _known(self, item_ids: Collection[str]) -> Tokens:
        tokens = self.release.vocabulary.tokens(item_ids)
        known: Tokens = tokens[tokens != PAD]
        return known

    def _scored(self, token: int, score: float) -> ScoredItem:
        item = self.release.vocabulary.item(int(token))
        return ScoredItem(item.item_id, float(score), item.title)
