"""Rankers that need no training loop: what a model has to beat, fitted on the events that may be fitted.

Ties go to the lower token everywhere, so the same events give the same lists.
"""

# B histories of a batch, V items of the catalogue (a V axis here has V + 1 columns, column 0 = PAD), k length of a list

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy import sparse

from recsys import transitions
from recsys.contracts.ids import PAD, Tokens
from recsys.dataset import Histories

_ROWS_AT_ONCE = 256
"""Histories scored at a time, so that memory does not grow with the number of users."""


class Ranker(Protocol):
    """Anything that orders the catalogue for a history: a baseline, a model, a release."""

    @property
    def name(self) -> str:
        """Name in reports."""
        ...

    def rank(self, histories: Sequence[Tokens], k: int, exclude: Sequence[Tokens] | None = None) -> Tokens:
        """The k best items per history, best first, distinct, shape [B, k]; PAD at the end where fewer.

        Args:
            histories: Past items of each user, oldest first; none of a user of whom nothing is known.
            k: Length of the lists.
            exclude: Items per history that must not be listed.
        """
        ...


class Popularity:
    """The items with the most fitted events, the same for everyone. Unseen items come last."""

    name = "popularity"

    def __init__(self, fit: Histories, num_items: int) -> None:
        num_events = np.bincount(fit.tokens, minlength=num_items + 1)[1:]
        if len(num_events) != num_items:
            raise ValueError(f"fitted events hold token {len(num_events)}, expected at most {num_items}")
        self.order: Tokens = (np.argsort(-num_events, kind="stable") + 1).astype(np.int32)
        """All items, most popular first."""

    def rank(self, histories: Sequence[Tokens], k: int, exclude: Sequence[Tokens] | None = None) -> Tokens:
        """See `Ranker.rank`."""
        excluded = _exclusions(exclude, len(histories), k)
        return _stack([self.complete(_NONE, k, row) for row in excluded], k)

    def complete(self, head: Tokens, k: int, exclude: Tokens) -> Tokens:
        """`head`, then popular items neither in it nor excluded, up to k in all."""
        taken = np.concatenate([head, exclude])
        likely = self.order[: k + len(taken)]
        return np.concatenate([head, likely[~np.isin(likely, taken)]])[:k]


class Trending(Popularity):
    """The items with the most fitted events of the last days (`recsys/trend.py`), the same for everyone.

    Ties, and what had none, by all fitted events. Where nobody has any, as in a log without times, it is popularity.
    """

    name = "trending"

    def __init__(self, fit: Histories, num_items: int, num_recent_V: npt.NDArray[np.int64]) -> None:
        """`num_recent_V` are the events of the last days on each token, shape [V + 1]."""
        super().__init__(fit, num_items)
        self.order = self.order[np.argsort(-num_recent_V[self.order], kind="stable")]


class LastItem:
    """The user's own items, latest first, then popular ones: what repeats explain by themselves."""

    name = "last_item"

    def __init__(self, fit: Histories, num_items: int) -> None:
        self._popularity = Popularity(fit, num_items)

    def rank(self, histories: Sequence[Tokens], k: int, exclude: Sequence[Tokens] | None = None) -> Tokens:
        """See `Ranker.rank`."""
        rows = []
        for history, row in zip(histories, _exclusions(exclude, len(histories), k), strict=True):
            latest = history[::-1]
            _, first = np.unique(latest, return_index=True)
            distinct = latest[np.sort(first)]
            rows.append(self._popularity.complete(distinct[~np.isin(distinct, row)], k, row))
        return _stack(rows, k)


class Cooccurrence:
    """What followed the user's last items in other histories, then popular items.

    Fitting: an event adds 1 / d to the count of (item, item d events later), d = 1 … window, within a user;
    an item may follow itself. Each item's counts are divided by their sum, so they read as P(next | item).
    Ranking: the score of an item is the sum over the user's last `num_last` events of P(item | event),
    weighted 1 / age, age 1 for the last event.
    Source: sequential rules of Kamehkhosh, Jannach, Ludewig, RecTemp at RecSys 2017 (1 / d); the sum over
    several last events follows the V-SKNN idea of Ludewig, Jannach, UMUAI 28, 2018.
    """

    name = "cooccurrence"

    def __init__(self, fit: Histories, num_items: int, *, window: int = 10, num_last: int = 10) -> None:
        if window < 1 or num_last < 1:
            raise ValueError(f"window = {window}, num_last = {num_last}, expected 1 or more")
        self._popularity = Popularity(fit, num_items)
        self._num_last = num_last
        self._follows_VV = transitions.normalise(transitions.count(fit, num_items, window))

    def rank(self, histories: Sequence[Tokens], k: int, exclude: Sequence[Tokens] | None = None) -> Tokens:
        """See `Ranker.rank`."""
        excluded = _exclusions(exclude, len(histories), k)
        rows: list[Tokens] = []
        for start in range(0, len(histories), _ROWS_AT_ONCE):
            scores_BV = (self._recent(histories[start : start + _ROWS_AT_ONCE]) @ self._follows_VV).tocsr()
            for row in range(scores_BV.shape[0]):
                span = slice(scores_BV.indptr[row], scores_BV.indptr[row + 1])
                out = excluded[start + row]
                items, scores = scores_BV.indices[span], scores_BV.data[span]
                allowed = ~np.isin(items, out)
                rows.append(self._popularity.complete(_best(items[allowed], scores[allowed], k), k, out))
        return _stack(rows, k)

    def _recent(self, histories: Sequence[Tokens]) -> Any:
        """Weights of the last events, sparse, shape [B, V]."""
        latest = [history[::-1][: self._num_last] for history in histories]
        lengths = [len(row) for row in latest]
        user = np.repeat(np.arange(len(latest)), lengths)
        age = np.concatenate([_NONE, *(np.arange(1, 1 + length) for length in lengths)])
        items = np.concatenate([_NONE, *latest])
        weights = (1 / age).astype(np.float32)
        return sparse.coo_array((weights, (user, items)), shape=(len(latest), self._follows_VV.shape[0])).tocsr()


def top_k(scores_BV: npt.NDArray[np.floating], k: int, exclude: Sequence[Tokens] | None = None) -> Tokens:
    """The k best tokens per row, higher score first, ties by lower token, shape [B, k].

    Column t of `scores_BV`, shape [B, V + 1], is the score of token t. Column PAD and the excluded are
    never listed, nor is a score of -inf; PAD stands at the end where fewer remain. `scores_BV` is unchanged.

    Raises:
        ValueError: k < 1, a score is nan, or an excluded token is not in 1 … V.
    """
    rows = []
    tokens = np.arange(scores_BV.shape[1], dtype=np.int32)
    for scores_V, out in zip(scores_BV, _exclusions(exclude, len(scores_BV), k), strict=True):
        if len(out) and not PAD < out.min() <= out.max() < len(scores_V):
            raise ValueError(f"exclude holds tokens {out.min()} to {out.max()}, expected 1 to {len(scores_V) - 1}")
        allowed = scores_V > -np.inf
        if np.isnan(scores_V[1:]).any():
            raise ValueError("a score is nan, expected numbers")
        allowed[PAD] = False
        allowed[out] = False
        rows.append(_best(tokens[allowed], scores_V[allowed], k))
    return _stack(rows, k)


def _best(tokens: Tokens, scores: npt.NDArray[np.floating], k: int) -> Tokens:
    """The k tokens of the highest scores, highest first, ties by lower token."""
    if k < len(scores):
        threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
        likely = scores >= threshold
        tokens, scores = tokens[likely], scores[likely]
    return tokens[np.lexsort((tokens, -scores))[:k]]


_NONE: Tokens = np.empty(0, dtype=np.int32)


def _exclusions(exclude: Sequence[Tokens] | None, num_histories: int, k: int) -> Sequence[Tokens]:
    """What to leave out per history, the arguments of `Ranker.rank` checked."""
    if k < 1:
        raise ValueError(f"k = {k}, expected 1 or more")
    if exclude is None:
        return [_NONE] * num_histories
    if len(exclude) != num_histories:
        raise ValueError(f"{len(exclude)} lists to exclude for {num_histories} histories")
    return exclude


def _stack(rows: Sequence[Tokens], k: int) -> Tokens:
    """Rows of up to k tokens as one array, shape [B, k], padded at the end."""
    ranked = np.full((len(rows), k), PAD, dtype=np.int32)
    for position, row in enumerate(rows):
        ranked[position, : len(row)] = row
    return ranked
