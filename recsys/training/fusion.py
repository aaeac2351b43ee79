"""Finds the weights of late fusion on validation: coordinate search for the best NDCG@10 over the full catalogue.

With these weights, also the temperature that makes log-odds of scores.

NDCG@10 here is the mean of two: against all later events of a user, and against the next one alone. The first by
itself is decided by repeats where users come back often, and would stop training before the decoder has learned
what follows what; where one event is held out they are the same.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from recsys import trend
from recsys.contracts.ids import PAD, Floats, Tokens
from recsys.runtime.fusion import Evidence, Fusion
from recsys.runtime.index import ItemIndex, best_of_all

# U users, S items that counts know of, C candidates of a user (padded with PAD), D width

DEPTH = 10
MIN_USERS = 30
"""Fewer validation users than this tell nothing of the weights; fusion stays off."""
_PROMISING = 50
"""Of the items that counts know of, those among the first so many by any one column are candidates."""
_START = Fusion(transition=1.0, base=1.0, frequency=0.5, recency=0.3, trend=0.3)
_STARTS = (_START, _START.model_copy(update={"recency": -0.3}))
"""Where the first searches begin: one seldom changes its mind on whether recent items are preferred or older ones."""
_FACTORS = (-1.0, 0.0, 0.3, 0.6, 0.8, 1.25, 1.6, 3.0)
"""Tried on one weight at a time."""
_MOST_SCALE = 10_000.0
_LEAST_GAIN = 1e-5
_MOST_JUDGED = 1_000
"""Users by whom the temperature is found: it is one number, and each costs a look at every item."""
_TEMPERATURES = 2.0 ** np.arange(-6, 9.25, 0.25)
"""Tried; between the best and those beside it a parabola says where the likelihood is highest."""
_NUM_HALVES = 16
_MOST_IN_A_HALF = 1_000
"""Users; more cost more, and halves of fewer already differ enough."""
_TREND_SHARES = (0.0, 0.5, 2.0)
"""Weights of the trend, in its units, under which the best items become candidates."""
_NOTHING = np.empty(0, dtype=np.int32)
_DISCOUNT = 1 / np.log2(np.arange(2, 2 + DEPTH))


@dataclass(frozen=True, slots=True)
class Space:
    """Where weights are looked for."""

    without: frozenset[str] = frozenset()
    """Weights that stay 0."""
    most_weight: float = 30.0
    """A term so many logits strong decides alone; a search that wants more would make scores that say nothing."""

    def start(self, fusion: Fusion) -> Fusion:
        """The same weights without the terms that stay out."""
        return fusion.model_copy(update=dict.fromkeys(self.without, 0.0))


@dataclass(frozen=True, slots=True)
class Candidates:
    """The items that can reach a user's first ten, in rows of equal length, shape [U, C] each."""

    score: Floats
    evidence: Evidence
    level: Floats
    """ln(1 + events of the last days) of each item."""
    gain: Floats
    """What an item in the first place adds to the user's NDCG."""

    def __len__(self) -> int:
        return len(self.gain)

    def of(self, users: npt.NDArray[np.int64]) -> "Candidates":
        """Those of some users."""
        rows = Evidence(*(getattr(self.evidence, name)[users] for name in Evidence.__slots__))
        return Candidates(self.score[users], rows, self.level[users], self.gain[users])

    def ndcg(self, fusion: Fusion) -> float:
        """Mean NDCG@10 with these weights."""
        return float(np.mean(self.ndcg_U(fusion)))

    def ndcg_U(self, fusion: Fusion) -> npt.NDArray[np.float64]:
        """NDCG@10 of each user with these weights, shape [U]."""
        fused = self.score + fusion.trend * self.level + self.evidence.terms(fusion)
        top = np.argpartition(-fused, DEPTH - 1, axis=1)[:, :DEPTH]
        order = np.argsort(-np.take_along_axis(fused, top, axis=1), axis=1, kind="stable")
        gains = np.take_along_axis(self.gain, np.take_along_axis(top, order, axis=1), axis=1)
        return np.asarray(gains @ _DISCOUNT, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Judges:
    """The users that weights are judged by, and what is known of them."""

    vectors_UD: Floats
    index: ItemIndex
    """The decoder's items, nothing added to their scores; it looks at every one."""
    known: Sequence[Evidence]
    targets: Sequence[Tokens]
    """Later events of each, at least one; negative what no list can hold."""
    exclude: Sequence[Tokens] | None
    """Items that a user's list may not contain, if there are any."""
    num_recent_V: npt.NDArray[np.int64]
    """Events on each item in the last days, shape [V + 1]."""
    pruned: Tokens = field(default_factory=lambda: _NOTHING)
    """Items that no list may contain."""

    def may_list_V(self, user: int) -> npt.NDArray[np.bool_]:
        """Whether this user's list may contain each item, shape [V]."""
        may_V = np.ones(len(self.index), dtype=bool)
        may_V[self.pruned - 1] = False
        if self.exclude is not None:
            may_V[self.exclude[user] - 1] = False
        return may_V


def fit(candidates: Candidates, start: Fusion) -> tuple[Fusion, float]:
    """The best weights found from `start` on, and their NDCG@10; all zero where nothing helps.

    They fit these users better than others (see `bagged`).
    """
    off = Fusion()
    off_ndcg = candidates.ndcg(off)
    if len(candidates) < MIN_USERS:
        return off, off_ndcg
    found = [_climbed(candidates, each, Space()) for each in (_STARTS if start.is_off else (start,))]
    best, best_ndcg = max(found, key=lambda each: each[1])
    return (best, best_ndcg) if best_ndcg > off_ndcg else (off, off_ndcg)


def bagged(candidates: Candidates, space: Space | None = None) -> Fusion:
    """Weights for users that nobody has seen yet: the mean of what random halves of these lead to.

    A search that climbs as long as it gains anything learns the users it is judged by (`docs/model.md`, Weights for
    other users). All halves begin at the start that led all users higher, so that no mean is taken of two hills.
    Source: Bühlmann and Yu, Annals of Statistics 30(4), 2002 (subagging).
    """
    space = space or Space()
    num_users = len(candidates)
    size = min(num_users // 2, _MOST_IN_A_HALF)
    if num_users < MIN_USERS:
        return Fusion()
    climbs = [(start, *_climbed(candidates, start, space)) for start in map(space.start, _STARTS)]
    start, plain, plain_ndcg = max(climbs, key=lambda each: each[2])
    off_ndcg = candidates.ndcg(Fusion())
    if plain_ndcg <= off_ndcg:
        return Fusion()
    if size < MIN_USERS:
        return plain
    generator = np.random.default_rng(0)
    halves = [np.sort(generator.permutation(num_users)[:size]) for _ in range(_NUM_HALVES)]
    mean = _mean([_climbed(candidates.of(half), start, space)[0] for half in halves], plain)
    return mean if candidates.ndcg(mean) > off_ndcg else plain


def temperature(judges: Judges, fusion: Fusion) -> float:
    """The τ under which softmax(score / τ) over all items that may be listed finds the next events likeliest.

    So score / τ are log-odds as far as one number can make them so. 1.0 where fewer than 30 users tell of it.
    Weights of fusion are chosen for the order of items, which no τ changes.
    Source: Guo et al., ICML 2017 (temperature scaling).
    """
    losses_T, num_users, targets = np.zeros(len(_TEMPERATURES)), 0, judges.targets
    shift_V = trend.shifts(fusion.trend, judges.num_recent_V)
    for u in np.unique(np.linspace(0, len(targets) - 1, _MOST_JUDGED).astype(int)) if targets else ():
        may_V = judges.may_list_V(u)
        if targets[u][0] < 0 or not may_V[targets[u][0] - 1]:
            continue
        scores_V = judges.index.all_scores(judges.vectors_UD[u])
        assert scores_V is not None
        scores_V[judges.known[u].tokens - 1] += judges.known[u].terms(fusion)
        if shift_V is not None:
            scores_V += shift_V
        target = scores_V[targets[u][0] - 1]
        scores_V[~may_V] = -np.inf
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


def _mean(found: Sequence[Fusion], plain: Fusion) -> Fusion:
    """Of each weight; of the scale, which stands inside a logarithm, the geometric mean where it has a say."""
    means = {name: float(np.mean([getattr(each, name) for each in found])) for name in Fusion.model_fields}
    scales = [each.transition_scale for each in found if each.transition] or [plain.transition_scale]
    return Fusion(**{**means, "transition_scale": float(np.exp(np.mean(np.log(scales))))})


def _climbed(candidates: Candidates, start: Fusion, space: Space) -> tuple[Fusion, float]:
    """Where no change of one weight is better any more."""
    out = space.without if candidates.level.any() else space.without | {"trend"}
    out = out | {"transition_scale"} if "transition" in out else out
    names = [name for name in Fusion.model_fields if name not in out]
    best = start if candidates.level.any() else start.model_copy(update={"trend": 0.0})
    best_ndcg, improved = candidates.ndcg(best), True
    while improved:
        improved = False
        for tried in _neighbours(best, names, space.most_weight):
            ndcg = candidates.ndcg(tried)
            if ndcg > best_ndcg + _LEAST_GAIN:
                best, best_ndcg, improved = tried, ndcg, True
    return best, best_ndcg


def _neighbours(fusion: Fusion, names: Sequence[str], most_weight: float) -> Iterator[Fusion]:
    """The same weights with one of these changed, none stronger than that."""
    for name in names:
        value = getattr(fusion, name)
        for factor in _FACTORS:
            is_scale = name == "transition_scale"
            most = _MOST_SCALE if is_scale else most_weight
            tried = max(-most, min(most, (value or getattr(_START, name)) * factor))
            if tried > 0 or not is_scale:
                yield fusion.model_copy(update={name: tried})


def candidates_of(judges: Judges) -> Candidates:
    """Per user the items that counts speak for, and the best of all others."""
    level_V = np.log1p(judges.num_recent_V[PAD + 1 :]).astype(np.float32)
    deviation = float(level_V.std())
    rows = []
    for u, (vector_D, evidence) in enumerate(zip(judges.vectors_UD, judges.known, strict=True)):
        scores_V = judges.index.all_scores(vector_D)
        assert scores_V is not None
        unit = (float(scores_V.std()) or 1.0) / deviation if deviation else 0.0
        rows.append(_row(scores_V, evidence, judges.may_list_V(u), level_V, unit))
    width = max(DEPTH, *(row.shape[1] for row in rows))
    padded = np.zeros((len(rows), 6, width))
    padded[:, 1] = -np.inf
    for u, row in enumerate(rows):
        padded[u, :, : row.shape[1]] = row
    tokens, score, *columns, level = (padded[:, i].astype(np.float32) for i in range(6))
    gain = np.stack([_gain(tokens[u], wanted) for u, wanted in enumerate(judges.targets)])
    return Candidates(score, Evidence(tokens.astype(np.int32), *columns), level, gain)


def _gain(tokens_C: Floats, wanted: Tokens) -> Floats:
    """Half for being among the later events, over the DCG of a perfect list; half for being the next one."""
    ideal = _DISCOUNT[: len(np.unique(wanted))].sum()
    gain: Floats = ((np.isin(tokens_C, wanted) / ideal + (tokens_C == wanted[0])) / 2).astype(np.float32)
    gain[tokens_C == PAD] = 0
    return gain


def _row(
    scores_V: Floats, known: Evidence, may_V: npt.NDArray[np.bool_], level_V: Floats, unit: float
) -> npt.NDArray[np.float64]:
    """One user's candidates: rows token, score, likelihood, times seen, events since, level; shape [6, at most C].

    `unit` is the weight of the trend that gives it as much to say as the decoder's scores have.
    """
    columns_6S = np.stack(
        [
            known.tokens,
            scores_V[known.tokens - 1],
            known.likelihood,
            known.times_seen,
            known.events_since,
            level_V[known.tokens - 1],
        ]
    )[:, may_V[known.tokens - 1]]
    by = np.concatenate([columns_6S[1:4], columns_6S[1:2] + unit * columns_6S[5:6]])
    order = np.argsort(-by, axis=1, kind="stable")[:, :_PROMISING]
    latest = np.argsort(np.where(columns_6S[3] > 0, columns_6S[4], np.inf), kind="stable")[:_PROMISING]
    promising = np.unique(np.concatenate([order.ravel(), latest]))
    allowed_V = np.where(may_V, scores_V, -np.inf)
    allowed_V[known.tokens - 1] = -np.inf
    others = _others(allowed_V, level_V, unit)
    fresh = np.zeros((6, len(others)))
    fresh[0], fresh[1], fresh[5] = others, scores_V[others - 1], level_V[others - 1]
    return np.concatenate([columns_6S[:, promising], fresh], axis=1)


def _others(allowed_V: Floats, level_V: Floats, unit: float) -> Tokens:
    """The best items of these scores, by the scores alone and with some weights of the trend."""
    shares = _TREND_SHARES if unit else _TREND_SHARES[:1]
    found = [best_of_all(allowed_V + share * unit * level_V if share else allowed_V, DEPTH)[0] for share in shares]
    others = np.unique(np.concatenate(found))
    chosen: Tokens = others[others != PAD]
    return chosen
