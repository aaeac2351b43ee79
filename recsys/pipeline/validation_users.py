"""The users that a training was judged by, as its weights saw them before they absorbed those users' later events."""

from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch

from recsys import dataset
from recsys.contracts import artifact
from recsys.contracts.errors import ArtifactError
from recsys.contracts.protocol import Protocol
from recsys.model.checkpoint import START_FILE, Checkpoint
from recsys.training.config import Recipe
from recsys.training.fusion import Candidates, candidates_of
from recsys.training.validation import Judge

_TABLES = ("model", "window", "training")


@dataclass(frozen=True, slots=True)
class Users:
    """One model's validation users, parallel."""

    user_ids: list[str]
    candidates: Candidates


def validation_users(features: Path, place: Path) -> Users:
    """Those of a checkpoint.

    Raises:
        ArtifactError: no checkpoint of these features, or one whose weights have all seen what validation holds out.
    """
    manifest = artifact.verify(place, "checkpoint")
    protocol = Protocol(manifest.config["protocol"])
    data = dataset.load(features, protocol)
    artifact.check_parent(manifest, "features", data.manifest, place)
    recipe = Recipe.from_mapping({name: manifest.config[name] for name in _TABLES}, f"{place}: recipe")
    validation = data.validation(recipe.training.num_validation_users, recipe.training.seed)
    seen_ms = manifest.metrics.get("trained_before_ms")
    is_cut_elsewhere = validation.from_ms is not None and (seen_ms is None or seen_ms > validation.from_ms)
    if START_FILE not in manifest.files or manifest.config["refit"] or is_cut_elsewhere:
        raise ArtifactError(
            f"{place}: has no weights that have not seen what validation holds out; train a checkpoint of these "
            "features without --refit"
        )
    model = Checkpoint.open(place).model
    weights = safetensors.torch.load_file(place / START_FILE)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    judge = Judge(validation, len(data.vocabulary), recipe, mask_seen=protocol.masks_seen)
    return Users(validation.user_ids, candidates_of(judge.judges(model)))
