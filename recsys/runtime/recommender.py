"""From a history to a ranked list, without HTTP: what Python users, the endpoint and evaluation share."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt

from recsys.contracts.errors import UnknownItemError, UnknownUserError
from recsys.contracts.ids import PAD, Floats, Item, Tokens
from recsys.runtime.consistency import check_release
from recsys.runtime.fusion import Evidence, evidence, search
from recsys.runtime.release import Release
from recsys.windows import answer_context, reachable

if TYPE_CHECKING:
    from recsys.whole_histories import WholeHistories

_NOTHING = np.empty(0, dtype=np.int32)
ENCODE_BATCH = 1024
"""Histories ranked at a time, which bounds memory."""


@dataclass(frozen=True, slots=True)
class ScoredItem:
    """One recommended item."""

    item_id: str
    score: float
    title: str | None
    is_new: bool = False
    """Placed by what the catalogue says of it, not by events."""
    is_popular: bool = False
    """From the popular items, because nothing is known of the user; the score is a number of events of late."""


@dataclass(frozen=True, slots=True)
class Users:
    """Users of a features artifact, asked for in place of a history."""

    features: Path | str
    user_ids: Sequence[str]


@dataclass(frozen=True, slots=True)
class UserBatch:
    """Lists of some users, best first; PAD where fewer items exist."""

    user_ids: list[str]
    tokens_BK: Tokens
    scores_BK: Floats
    is_popular_B: npt.NDArray[np.bool_]
    """Users without a known item, whose list is the popular items with their counts as scores."""
    num_left_out: int
    """Users of the batch without a known item who have no list; they are not in `user_ids`."""


@dataclass(frozen=True, slots=True)
class Query:
    """One encoded history against the items of a release."""

    release: Release
    vector_1D: Floats
    known: Evidence

    @classmethod
    def of(cls, release: Release, vector_D: Floats, history: Tokens) -> "Query":
        """A kept history, and the vector of its open window, ready to be ranked."""
        known = evidence(reachable(history, release.window), release.transitions)
        return cls(release, vector_D.reshape(1, -1), known)

    def best(self, k: int, without: Tokens = _NOTHING) -> tuple[Tokens, Floats]:
        """The k best items, best first, shape [k] each; PAD where fewer exist."""
        return search(self.release.index, self.vector_1D, self.known, k, without, self.release.fusion)

    def scores(self, tokens: Tokens) -> Floats:
        """The scores by which `best` ranks, of chosen distinct tokens."""
        scores = self.release.index.scores(self.vector_1D[0], tokens)
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
        self.release.index.warm_up()
        self.rank([np.ones(1, dtype=np.int32)], k=10)

    def check(self) -> None:
        """Compare the engine's answers with those that the release was published with.

        Raises:
            ArtifactError: they differ.
        """
        check_release(self.release.folder, self.release.engine, self.release.index)

    @overload
    def recommend(
        self,
        history_or_users: Sequence[str],
        k: int = ...,
        *,
        exclude: Collection[str] = ...,
        exclude_seen: bool = ...,
        keep: Callable[[Item], bool] | None = ...,
    ) -> list[ScoredItem]: ...

    @overload
    def recommend(
        self,
        history_or_users: Users,
        k: int = ...,
        *,
        exclude: Collection[str] = ...,
        exclude_seen: bool = ...,
        keep: Callable[[Item], bool] | None = ...,
    ) -> dict[str, list[ScoredItem]]: ...

    def recommend(
        self,
        history_or_users: Sequence[str] | Users,
        k: int = 10,
        *,
        exclude: Collection[str] = (),
        exclude_seen: bool = False,
        keep: Callable[[Item], bool] | None = None,
    ) -> list[ScoredItem] | dict[str, list[ScoredItem]]:
        """The k items most likely next, after a history of item_ids or for each of some users.

        A history is oldest first; items that the release does not know are skipped. Users are encoded in batches; one
        without a known item gets popular items, which say so (`is_popular`). `exclude` are item_ids to leave out;
        `keep` says of an item whether it may be shown. Both are exact: the list holds the best k of what remains.

        Raises:
            UnknownItemError: no item of the history is in the vocabulary; `popular` is the answer then.
            UnknownUserError: the features lack one of the users.
            ValueError: `k` is below 1, or the history or the users are one string.
        """
        hidden = self.hidden(exclude, keep)
        if isinstance(history_or_users, Users):
            _check(k, history_or_users.user_ids)
            return self._of_users(history_or_users, k, hidden, exclude_seen)
        _check(k, history_or_users)
        tokens = self.release.vocabulary.history(history_or_users)
        if not len(tokens):
            raise UnknownItemError(
                f"none of the {len(history_or_users)} items of the history is in release {self.release.name}; "
                "send at least one item of the catalogue"
            )
        seen = _known(self.release.vocabulary.tokens(history_or_users))
        found, scores = self.ranked([tokens], k, [_without(hidden, seen, exclude_seen)])
        return self._list(found[0], scores[0])

    def _of_users(self, users: Users, k: int, hidden: Tokens, exclude_seen: bool) -> dict[str, list[ScoredItem]]:
        from recsys.whole_histories import WholeHistories  # polars, which the endpoint does without

        stored = WholeHistories(users.features)
        unknown = stored.unknown(users.user_ids)
        if unknown:
            raise UnknownUserError(
                f"{users.features}: {len(unknown)} of {len(users.user_ids)} users are not in it, "
                f"the first is {unknown[0]!r}; check the ids, or give a history"
            )
        answers: dict[str, list[ScoredItem]] = {user_id: [] for user_id in users.user_ids}
        for batch in self.batches(stored, k, users.user_ids, hidden, exclude_seen=exclude_seen):
            rows = zip(batch.user_ids, batch.tokens_BK, batch.scores_BK, batch.is_popular_B, strict=True)
            for user_id, found, scores, is_popular in rows:
                answers[user_id] = self._list(found, scores, is_popular=bool(is_popular))
        return answers

    def batches(
        self,
        stored: "WholeHistories",
        k: int,
        user_ids: Collection[str] | None = None,
        hidden: Tokens = _NOTHING,
        *,
        exclude_seen: bool = False,
        popular_for_unknown: bool = True,
    ) -> "Iterator[UserBatch]":
        """Lists of all stored users or of these, `ENCODE_BATCH` at a time, in the order of the features.

        Users without a known item get the popular items, or are left out and counted.
        """
        token_of_index = np.concatenate([[PAD], self.release.vocabulary.tokens(stored.item_ids())]).astype(np.int32)
        num_kept = self.release.vocabulary.num_kept
        popular = self._popular_without(hidden)
        histories = stored.each(user_ids)
        while batch := list(islice(histories, ENCODE_BATCH)):
            users = [(user_id, _known(token_of_index[history])) for user_id, history in batch]
            is_known = np.array([bool((seen <= num_kept).any()) for _, seen in users])
            without = [_without(hidden, seen, exclude_seen) for _, seen in users]
            rows = np.flatnonzero(is_known)
            kept = [users[row][1][users[row][1] <= num_kept] for row in rows]
            tokens_BK = np.full((len(users), k), PAD, dtype=np.int32)
            scores_BK = np.full((len(users), k), -np.inf, dtype=np.float32)
            tokens_BK[rows], scores_BK[rows] = self.ranked(kept, k, [without[row] for row in rows])
            for row in np.flatnonzero(~is_known) if popular_for_unknown else ():
                seen = users[row][1] if exclude_seen else _NOTHING
                head = popular[: k + len(seen)]
                found = head[~np.isin(head, seen)][:k]
                tokens_BK[row, : len(found)] = found
                scores_BK[row, : len(found)] = self.release.vocabulary.popularity[found]
            chosen = np.arange(len(users)) if popular_for_unknown else rows
            user_ids_B = [users[row][0] for row in chosen]
            yield UserBatch(
                user_ids_B, tokens_BK[chosen], scores_BK[chosen], ~is_known[chosen], len(users) - len(chosen)
            )

    def popular(
        self, k: int, *, exclude: Collection[str] = (), keep: Callable[[Item], bool] | None = None
    ) -> list[ScoredItem]:
        """The k items with most events of late: the answer when nothing is known of a user. Scores are counts.

        Raises:
            ValueError: `k` is below 1.
        """
        _check(k)
        chosen = self._popular_without(self.hidden(exclude, keep))[:k]
        return self._list(chosen, self.release.vocabulary.popularity[chosen], is_popular=True)

    def _popular_without(self, hidden: Tokens) -> Tokens:
        chosen: Tokens = self._popular[~np.isin(self._popular, hidden)]
        return chosen

    def rank(self, histories: Sequence[Tokens], k: int, exclude: Sequence[Tokens] | None = None) -> Tokens:
        """Ranked tokens of many kept histories, shape [B, k], PAD where fewer exist; of an empty one, popular items."""
        return self.ranked(histories, k, exclude)[0]

    def ranked(
        self, histories: Sequence[Tokens], k: int, exclude: Sequence[Tokens] | None = None
    ) -> tuple[Tokens, Floats]:
        """What `rank` returns, and the scores, counts where items are popular; the one way from histories to lists."""
        tokens_BK = np.full((len(histories), k), PAD, dtype=np.int32)
        scores_BK = np.full((len(histories), k), -np.inf, dtype=np.float32)
        window = self.release.window
        known = [row for row, history in enumerate(histories) if len(history)]
        for start in range(0, len(known), ENCODE_BATCH):
            rows = known[start : start + ENCODE_BATCH]
            vectors_BD = self.release.engine.encode([answer_context(histories[row], window) for row in rows])
            for vector_D, row in zip(vectors_BD, rows, strict=True):
                without = _NOTHING if exclude is None else exclude[row]
                tokens_BK[row], scores_BK[row] = self.query(vector_D, histories[row]).best(k, without)
        for row in sorted(set(range(len(histories))).difference(known)):
            found = self._popular_without(_NOTHING if exclude is None else exclude[row])[:k]
            tokens_BK[row, : len(found)] = found
            scores_BK[row, : len(found)] = self.release.vocabulary.popularity[found]
        return tokens_BK, scores_BK

    def query(self, vector_D: Floats, history: Tokens) -> Query:
        """A kept history, and the vector of its open window, ready to be ranked."""
        return Query.of(self.release, vector_D, history)

    def hidden(self, exclude: Collection[str], keep: Callable[[Item], bool] | None) -> Tokens:
        """Tokens that may not be shown: those of the item_ids `exclude`, and what `keep` refuses."""
        hidden = _known(self.release.vocabulary.tokens(exclude))
        if keep is None:
            return hidden
        refused = [token for token, item in enumerate(self.release.vocabulary.items, start=1) if not keep(item)]
        return np.union1d(hidden, np.array(refused, dtype=np.int32))

    def _list(self, found: Tokens, scores: npt.NDArray[Any], *, is_popular: bool = False) -> list[ScoredItem]:
        listed = []
        for token, score in zip(found.tolist(), scores.tolist(), strict=True):
            if token != PAD:
                item = self.release.vocabulary.item(token)
                listed.append(ScoredItem(item.item_id, float(score), item.title, item.is_new, is_popular))
        return listed


def _check(k: int, ids: Sequence[str] = ()) -> None:
    """Refuse what would be answered by nonsense.

    Raises:
        ValueError: see the text.
    """
    if k < 1:
        raise ValueError(f"k = {k}, expected 1 or more")
    if isinstance(ids, str):
        raise ValueError(f"{ids[:80]!r} is one string, expected a list of ids")


def _known(tokens: Tokens) -> Tokens:
    known: Tokens = tokens[tokens != PAD]
    return known


def _without(hidden: Tokens, history: Tokens, exclude_seen: bool) -> Tokens:
    return np.union1d(hidden, history) if exclude_seen else hidden
