"""What late fusion is made of: its terms left out, bounded otherwise or searched for otherwise, on **validation**.

Weights are found on one half of the validation users and judged by the other, so that none is judged by users it
was chosen on. No test set is looked at.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recsys.contracts.errors import DataError
from recsys.evaluation.statistics import paired_difference
from recsys.pipeline import progress
from recsys.pipeline.validation_users import validation_users
from recsys.runtime.fusion import Fusion
from recsys.training.fusion import MIN_USERS, Candidates, Space, bagged, fit

REFERENCE, COUNTS_ALONE = "as served", "counts alone, no decoder"
_TRANSITIONS = frozenset({"transition"})
_REPEATS = frozenset({"base", "frequency", "recency"})


def _among(space: Space) -> Callable[[Candidates], Fusion]:
    return lambda candidates: bagged(candidates, space)


WAYS: dict[str, Callable[[Candidates], Fusion]] = {
    REFERENCE: bagged,
    "one search, no halves": lambda candidates: fit(candidates, Fusion())[0],
    "without transitions": _among(Space(without=_TRANSITIONS)),
    "without repeats": _among(Space(without=_REPEATS)),
    "without the trend": _among(Space(without=frozenset({"trend"}))),
    "the decoder alone": lambda _: Fusion(),
    COUNTS_ALONE: bagged,
    "10 logits at most": _among(Space(most_weight=10)),
    "100 logits at most": _among(Space(most_weight=100)),
    "no bound": _among(Space(most_weight=1e6)),
}
"""How weights are found on half of the users."""


def run(features: Path, checkpoints: Sequence[Path], *, num_splits: int) -> dict[str, Any]:
    """Compare the ways on the validation users of each checkpoint, by its weights before it absorbed their events.

    A user's value is the mean over splits and checkpoints of NDCG@10 as training judges rounds (the mean of all later
    events and the next one).

    Raises:
        ArtifactError: no checkpoint of these features, or one whose weights have all seen what validation holds out.
        DataError: fewer than twice 30 validation users.
    """
    values: dict[str, dict[str, list[float]]] = {name: {} for name in WAYS}
    found: dict[str, list[Fusion]] = {name: [] for name in WAYS}
    with progress.bar("fusion") as advance:
        for done, place in enumerate(checkpoints):
            users = validation_users(features, place)
            if len(users.user_ids) < 2 * MIN_USERS:
                raise DataError(
                    f"{features}: {len(users.user_ids)} validation users, expected {2 * MIN_USERS} or more: weights "
                    "are found on half of them; get more events"
                )
            for split in range(num_splits):
                shuffled = np.random.default_rng(split).permutation(len(users.user_ids))
                halves = np.array_split(shuffled, 2)
                for chosen_on, judged in (halves, halves[::-1]):
                    for name, way in WAYS.items():
                        is_blind = name == COUNTS_ALONE
                        seen = users.candidates.without_the_decoder() if is_blind else users.candidates
                        weights = way(seen.of(chosen_on))
                        found[name].append(weights)
                        for user, ndcg in zip(judged, seen.of(judged).ndcg_U(weights), strict=True):
                            values[name].setdefault(users.user_ids[user], []).append(float(ndcg))
                advance(place.name, done * num_splits + split + 1, len(checkpoints) * num_splits)
    means = {name: np.array([np.mean(each) for each in of_users.values()]) for name, of_users in values.items()}
    return {
        "features": str(features),
        "checkpoints": [str(place) for place in checkpoints],
        "num_users": len(means[REFERENCE]),
        "num_splits": num_splits,
        "reference": REFERENCE,
        "ways": {
            name: {
                "ndcg@10": float(means[name].mean()),
                "difference": None
                if name == REFERENCE
                else paired_difference(means[name], means[REFERENCE], seed=0).to_json(),
                "weights": {term: float(np.mean([getattr(one, term) for one in each])) for term in Fusion.model_fields},
            }
            for name, each in found.items()
        },
    }
