"""Finds the weights of late fusion on validation: coordinate search for the best NDCG@10 over the full catalogue.

With these weights, also the temperature that makes log-odds of scores.

NDCG@10 here is the mean of two: against all later events of a user, and against the next one alone. The first by
itself is decided by repeats where users come back often, and would stop training before the decoder has learned
what follows what; where one event is held out they are the same.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recsys.contracts.ids import PAD, Floats, Tokens
from recsys.runtime.fusion import Evidence, Fusion
from recsys.runtime.index import ItemIndex

# U users, S items that counts know of, C candidates of a user (padded with PAD), D width

DEPTH = 10
MIN_USERS = 30
"""Fewer validation users than this tell nothing of the weights; fusion stays off."""
_PROMISING = 50
"""Of the items that counts know of, those among the first so many by any one column are candidates."""
_START = Fusion(transition=1.0, base=1.0, frequency=0.5, recency=0.3)
_STARTS = (_START, _START.model_copy(update={"recency": -0.3}))
"""Where the first searches begin: one seldom changes its mind on whether recent items are preferred or older ones."""
_FACTORS = (-1.0, 0.0, 0.3, 0.6, 0.8, 1.25, 1.6, 3.0)
"""Tried on one weight at a time."""
_MOST_WEIGHT = 30.0
"""A term so many logits strong decides alone; a search that wants more would make scores that say nothing."""
_MOST_SCALE = 10_000.0
_LEAST_GAIN = 1e-5
_MOST_JUDGED = 1_000
"""Users by whom the temperature is found: it is one number, and each costs a look at every item."""
_TEMPERATURES = 2.0 ** np.arange(-6, 9.25, 0.25)
"""Tried; between the best and those beside it a parabola says where the likelihood is highest."""
_DISCOUNT = 1 / np.log2(np.arange(2, 2 + DEPTH))


@dataclass(frozen=True, slots=True)
class _Candidates:
    """The items that can reach a user's first ten, in rows of equal length, shape [U, C] each."""

    score: Floats
    evidence: Evidence
    gain: Floats
    """What an item in the first place adds to the user's NDCG."""

    def ndcg(self, fusion: Fusion) -> float:
        """Mean NDCG@10 with these weights."""
        fused = self.score + self.evidence.terms(fusion)
        top = np.argpartition(-fused, DEPTH - 1, axis=1)[:, :DEPTH]
        order = np.argsort(-np.take_along_axis(fused, top, axis=1), axis=1, kind="stable")
        gains = np.take_along_axis(self.gain, np.take_along_axis(top, order, axis=1), axis=1)
        return float(np.mean(gains @ _DISCOUNT))


def fit(
    vectors_UD: Floats,
    index: ItemIndex,
    known: Sequence[Evidence],
    targets: Sequence[Tokens],
    exclude: Sequence[Tokens] | None,
    start: Fusion,
) -> tuple[Fusion, float]:
    """The best weights found from `start` on, and their NDCG@10; all zero where nothing helps.

    `exclude` holds the items that a user's list may not contain, if any.
    """
    candidates = _candidates(vectors_UD, index, known, targets, exclude)
    off = Fusion()
    off_ndcg = candidates.ndcg(off)
    if len(targets) < MIN_USERS:
        return off, off_ndcg
    found = [_climbed(candidates, each) for each in (_STARTS if start.is_off else (start,))]
    best, best_ndcg = max(found, key=lambda each: each[1])
    return (best, best_ndcg) if best_ndcg > off_ndcg else (off, off_ndcg)


def temperature(
    vectors_UD: Floats,
    index: ItemIndex,
    known: Sequence[Evidence],
    targets: Sequence[Tokens],
    exclude: Sequence[Tokens] | None,
    fusion: Fusion,
) -> float:
    """The τ under which softmax(score / τ) over all items that may be listed finds the next events likeliest.

    So score / τ are log-odds as far as one number can make them so. 1.0 where fewer than 30 users tell of it.
    Weights of fusion are chosen for the order of items, which no τ changes. `index` looks at every item.
    Source: Guo et al., ICML 2017 (temperature scaling).
    """
    losses_T, num_users = np.zeros(len(_TEMPERATURES)), 0
    for u in np.unique(np.linspace(0, len(targets) - 1, _MOST_JUDGED).astype(int)) if targets else ():
        scores_V = index.all_scores(vectors_UD[u])
        assert scores_V is not None
        scores_V[known[u].tokens - 1] += known[u].terms(fusion)
        target = scores_V[targets[u][0] - 1]
        if exclude is not None:
            if targets[u][0] in exclude[u]:
                continue
            scores_V[exclude[u] - 1] = -np.inf
        best = scores_V.max()
        below_V = (scores_V - best).astype(np.float32)
        totals_T = [np.exp(below_V / np.float32(tried)).sum(dtype=np.float64) for tried in _TEMPERATURES]
        losses_T += np.log(totals_T) + float(best - target) / _TEMPERATURES
        num_users += 1
    if num_users < MIN_USERS:
        return 1.0
    place = int(losses_T.argmin())
    if 0 < place < len(losses_T) - 1:
        before, here, after = losses_T[place - 1 : place + 2]
        off = (before - after) / (2 * (before - 2 * here + after))
        return float(_TEMPERATURES[place] * 2 ** (off / 4))
    return float(_TEMPERATURES[place])


def _climbed(candidates: _Candidates, start: Fusion) -> tuple[Fusion, float]:
    """Where no change of one weight is better any more."""
    best, best_ndcg, improved = start, candidates.ndcg(start), True
    while improved:
        improved = False
        for tried in _neighbours(best):
            ndcg = candidates.ndcg(tried)
            if ndcg > best_ndcg + _LEAST_GAIN:
                best, best_ndcg, improved = tried, ndcg, True
    return best, best_ndcg


def _neighbours(fusion: Fusion) -> Iterator[Fusion]:
    """The same weights with one of them changed."""
    for name, value in fusion:
        for factor in _FACTORS:
            is_scale = name == "transition_scale"
            most = _MOST_SCALE if is_scale else _MOST_WEIGHT
            tried = max(-most, min(most, (value or getattr(_START, name)) * factor))
            if tried > 0 or not is_scale:
                yield fusion.model_copy(update={name: tried})


def _candidates(
    vectors_UD: Floats,
    index: ItemIndex,
    known: Sequence[Evidence],
    targets: Sequence[Tokens],
    exclude: Sequence[Tokens] | None,
) -> _Candidates:
    """Per user the items that counts speak for, and the best of all others by the decoder's score."""
    rows = [
        _row(vectors_UD[u : u + 1], index, evidence, np.empty(0, dtype=np.int32) if exclude is None else exclude[u])
        for u, evidence in enumerate(known)
    ]
    width = max(row.shape[1] for row in rows)
    padded = np.zeros((len(rows), 5, width))
    padded[:, 1] = -np.inf
    for u, row in enumerate(rows):
        padded[u, :, : row.shape[1]] = row
    tokens, score, *columns = (padded[:, i].astype(np.float32) for i in range(5))
    gain = np.stack([_gain(tokens[u], wanted) for u, wanted in enumerate(targets)])
    return _Candidates(score, Evidence(tokens.astype(np.int32), *columns), gain)


def _gain(tokens_C: Floats, wanted: Tokens) -> Floats:
    """Half for being among the later events, over the DCG of a perfect list; half for being the next one."""
    ideal = _DISCOUNT[: len(np.unique(wanted))].sum()
    gain: Floats = ((np.isin(tokens_C, wanted) / ideal + (tokens_C == wanted[0])) / 2).astype(np.float32)
    gain[tokens_C == PAD] = 0
    return gain


def _row(vector_1D: Floats, index: ItemIndex, known: Evidence, out: Tokens) -> npt.NDArray[np.float64]:
    """One user's candidates: rows token, score, likelihood, times seen, events since; shape [5, at most C]."""
    columns_5S = np.stack(
        [
            known.tokens,
            index.vectors(known.tokens) @ vector_1D[0],
            known.likelihood,
            known.times_seen,
            known.events_since,
        ]
    )[:, ~np.isin(known.tokens, out)]
    order = np.argsort(-columns_5S[1:4], axis=1, kind="stable")[:, :_PROMISING]
    latest = np.argsort(np.where(columns_5S[3] > 0, columns_5S[4], np.inf), kind="stable")[:_PROMISING]
    promising = np.unique(np.concatenate([order.ravel(), latest]))
    others, scores = index.search(vector_1D, DEPTH, [np.union1d(known.tokens, out)])
    fresh = np.zeros((5, DEPTH))
    fresh[0], fresh[1] = others[0], scores[0]
    return np.concatenate([columns_5S[:, promising], fresh], axis=1)
