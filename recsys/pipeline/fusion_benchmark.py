"""What late fusion is made of: its terms left out, bounded otherwise or searched for otherwise, on **validation**.

Weights are found on one half of the validation users and judged by the other (`validation_users.by_others`). The
decoder is the one whose round all of them chose, fused: alone it would have been stopped elsewhere. No test set is
looked at.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from recsys.contracts.errors import DataError
from recsys.evaluation.statistics import paired_difference
from recsys.pipeline import progress
from recsys.pipeline.validation_users import ValidationUsers, by_others, validation_users
from recsys.runtime.fusion import Fusion
from recsys.training.fusion import MIN_USERS, Candidates, Space, bagged, candidates_of, fit

REFERENCE = "as served"
LEAST_USERS = 4 * MIN_USERS
"""Each half is halved again where weights are the mean of what halves lead to."""


@dataclass(frozen=True, slots=True)
class Way:
    """How weights are found on half of the users, and what is known of these."""

    find: Callable[[Candidates], Fusion]
    hears_the_decoder: bool = True


def _among(space: Space) -> Way:
    return Way(lambda candidates: bagged(candidates, space))


WAYS = {
    REFERENCE: Way(bagged),
    "one search, no halves": Way(lambda candidates: fit(candidates, Fusion())[0]),
    "without transitions": _among(Space(without=frozenset({"transition"}))),
    "without repeats": _among(Space(without=frozenset({"base", "frequency", "recency"}))),
    "without the trend": _among(Space(without=frozenset({"trend"}))),
    "the decoder alone": Way(lambda _: Fusion()),
    "counts alone": Way(bagged, hears_the_decoder=False),
    "10 logits at most": _among(Space(most_weight=10)),
    "100 logits at most": _among(Space(most_weight=100)),
    "a million logits at most": _among(Space(most_weight=1e6)),
}


def run(features: Path, checkpoints: Sequence[Path], *, num_splits: int) -> dict[str, Any]:
    """Compare the ways on the validation users of each checkpoint, by its weights before it absorbed their events.

    A user's value is the mean over splits and checkpoints of NDCG@10 as training judges rounds (the mean of all later
    events and the next one).

    Raises:
        ArtifactError: no checkpoint of these features, or one whose weights have all seen what validation holds out.
        DataError: checkpoints of several protocols, or too few validation users to halve them twice.
    """
    values: dict[str, dict[str, list[float]]] = {name: {} for name in WAYS}
    found: dict[str, list[Fusion]] = {name: [] for name in WAYS}
    protocols = {}
    with progress.bar("fusion") as advance:
        for done, place in enumerate(checkpoints):
            users = validation_users(features, place)
            protocols[users.protocol] = place
            _check(features, users, protocols)
            heard = candidates_of(users.judges)
            blind = replace(users.judges, vectors_UD=np.zeros_like(users.judges.vectors_UD))
            unheard = candidates_of(blind)
            for split in range(num_splits):
                for name, way in WAYS.items():
                    ndcg_U, weights = by_others(heard if way.hears_the_decoder else unheard, way.find, split)
                    found[name] += weights
                    for user_id, ndcg in zip(users.user_ids, ndcg_U, strict=True):
                        values[name].setdefault(user_id, []).append(float(ndcg))
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


def _check(features: Path, users: ValidationUsers, protocols: dict[Any, Path]) -> None:
    if len(protocols) > 1:
        named = " and ".join(f"{place} of {protocol}" for protocol, place in protocols.items())
        raise DataError(f"{named}: figures of several protocols have no mean; give checkpoints of one")
    if len(users.user_ids) < LEAST_USERS:
        raise DataError(
            f"{features}: {len(users.user_ids)} validation users, expected {LEAST_USERS} or more, as they are halved "
            "twice; get more events"
        )
