"""The users that a training was judged by, as its weights saw them before they absorbed those users' later events."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch

from recsys import dataset
from recsys.contracts import artifact
from recsys.contracts.errors import ArtifactError, DataError
from recsys.contracts.protocol import Protocol
from recsys.model.checkpoint import START_FILE, Checkpoint
from recsys.runtime.fusion import Fusion
from recsys.training.config import Recipe
from recsys.training.fusion import Candidates, Judges
from recsys.training.validation import Judge

# U users

_TABLES = ("model", "window", "training")


@dataclass(frozen=True, slots=True)
class ValidationUsers:
    """One training's validation users, parallel."""

    user_ids: list[str]
    judges: Judges
    protocol: Protocol


def validation_users(features: Path, place: Path) -> ValidationUsers:
    """Those of a checkpoint.

    Raises:
        ArtifactError: no checkpoint of these features as its protocol cuts them, or one whose weights have all seen
            what validation holds out.
        DataError: the log leaves nobody to validate with.
    """
    manifest = artifact.verify(place, "checkpoint")
    protocol = Protocol(manifest.config["protocol"])
    data = dataset.load(features, protocol)
    artifact.check_parent(manifest, "features", data.manifest, place)
    opened = Checkpoint.open(place)
    recipe = Recipe.from_mapping({name: manifest.config[name] for name in _TABLES}, f"{place}: recipe")
    validation = data.validation(recipe.training.num_validation_users, recipe.training.seed)
    if not validation.targets:
        raise DataError(f"{features}: nobody to validate with under the protocol {protocol}; get more events")
    if manifest.config["refit"] or START_FILE not in manifest.files:
        raise ArtifactError(
            f"{place}: a refit, or of an older version: it has no weights that have not seen what validation holds "
            "out; train without --refit"
        )
    seen_ms = manifest.metrics.get("trained_before_ms")
    names = ([item.item_id for item in vocabulary.items] for vocabulary in (opened.vocabulary, data.vocabulary))
    if seen_ms != validation.from_ms or next(names) != next(names):
        raise ArtifactError(
            f"{place}: trained before {seen_ms} ms, and these features are validated from {validation.from_ms} ms on: "
            "cut at another moment, as a night of `recsys benchmark nightly` is; give a checkpoint of `recsys train`"
        )
    weights = safetensors.torch.load_file(place / START_FILE)
    with torch.no_grad():
        for name, parameter in opened.model.named_parameters():
            parameter.copy_(weights[name])
    judge = Judge(validation, len(data.vocabulary), recipe, mask_seen=protocol.masks_seen)
    return ValidationUsers(validation.user_ids, judge.judges(opened.model), protocol)


def by_others(
    candidates: Candidates, find: Callable[[Candidates], Fusion], seed: int
) -> tuple[npt.NDArray[np.float64], list[Fusion]]:
    """NDCG@10 of each user with weights that were found on the other half of them, shape [U], and both halves' weights.

    So weights are not judged by users they were chosen on; the round of training was chosen on all of them.
    """
    halves = np.array_split(np.random.default_rng(seed).permutation(len(candidates)), 2)
    ndcg_U, found = np.empty(len(candidates)), []
    for chosen_on, judged in (halves, halves[::-1]):
        weights = find(candidates.of(chosen_on))
        ndcg_U[judged] = candidates.of(judged).ndcg_U(weights)
        found.append(weights)
    return ndcg_U, found
