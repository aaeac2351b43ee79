"""From a history to a ranked list, without HTTP: what Python users, the endpoint and evaluation share."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recsys.contracts.errors import UnknownItemError
from recsys.contracts.ids import PAD, Floats, Tokens
from recsys.runtime.fusion import Evidence, evidence, search
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


@dataclass(frozen=True, slots=True)
class Query:
    """One encoded history against the items of a release."""

    release: Release
    vector_1D: Floats
    known: Evidence

    def best(self, k: int, without: Tokens = _NOTHING) -> tuple[Tokens, Floats]:
        """The k best items, best first, shape [k] each; PAD where fewer exist."""
        return search(self.release.index, self.vector_1D, self.known, k, without, self.release.fusion)

    def scores(self, tokens: Tokens) -> Floats:
        """The scores by which `best` ranks, of chosen distinct tokens."""
        scores: Floats = self.release.index.vectors(tokens) @ self.vector_1D[0]
        if not self.release.fusion.is_off:
            terms = self.known.terms(self.release.fusion)
            _, here, there = np.intersect1d(tokens, self.known.tokens, assume_unique=True, return_indices=True)
            scores[here] += terms[there]
        return scores


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
        vectors_BD = self.release.engine.encode([open_window(history, self.release.window) for history in histories])
        return [self.query(vectors_BD[i], history).best(k, without[i]) for i, history in enumerate(histories)]

    def query(self, vector_D: Floats, history: Tokens) -> Query:
        """A kept history, and the vector of its open window, ready to be ranked."""
        known = evidence(reachable(history, self.release.window), self.release.transitions)
        return Query(self.release, vector_D.reshape(1, -1), known)

    def _known(self, item_ids: Collection[str]) -> Tokens:
        tokens = self.release.vocabulary.tokens(item_ids)
        known: Tokens = tokens[tokens != PAD]
        return known

    def _scored(self, token: int, score: float) -> ScoredItem:
        item = self.release.vocabulary.item(int(token))
        return ScoredItem(item.item_id, float(score), item.title)
