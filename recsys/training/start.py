"""Warm start: go on from an older checkpoint, with rows for the items that it did not know."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from recsys import transitions
from recsys.contracts import artifact
from recsys.contracts.errors import ArtifactError
from recsys.contracts.ids import PAD, Vocabulary
from recsys.dataset import Histories
from recsys.model.checkpoint import START_FILE
from recsys.model.config import ModelConfig
from recsys.model.decoder import SequenceModel
from recsys.runtime.fusion import Fusion
from recsys.training.config import DENSE, Recipe

# V items of tonight, D width; a V axis here has V + 1 entries, entry 0 = PAD

_EMBEDDING = "embedding.weight"


@dataclass(frozen=True, slots=True)
class Start:
    """An older checkpoint as it was before it absorbed what its validation held out.

    So tonight's validation, which begins no earlier, is as new to these weights as to a model trained from scratch.
    """

    place: Path
    digest: str
    weights: dict[str, Tensor]
    vocabulary: Vocabulary
    fusion: Fusion
    trained_before_ms: int

    @classmethod
    def open(cls, place: Path, recipe: Recipe) -> "Start":
        """Load and check.

        Raises:
            ArtifactError: no checkpoint, one of another model, or one that does not say what it has seen.
        """
        manifest = artifact.verify(place, "checkpoint")
        problem = mismatch(manifest, recipe)
        if problem is not None:
            raise ArtifactError(f"{place}: {problem}; train without --start")
        return cls(
            place,
            manifest.digest,
            safetensors.torch.load_file(place / START_FILE),
            Vocabulary.load(place),
            Fusion.from_mapping(manifest.config["fusion"], f"{place}: fusion"),
            int(manifest.metrics["trained_before_ms"]),
        )

    def check_unseen(self, from_ms: int | None) -> None:
        """Refuse to be validated or tested on events that these weights may have been trained on.

        Raises:
            ArtifactError: held-out events begin before the weights' last one, or nobody knows when.
        """
        if from_ms is None or from_ms < self.trained_before_ms:
            held_out = "at no certain moment" if from_ms is None else f"from {from_ms} ms on"
            raise ArtifactError(
                f"{self.place}: trained on events before {self.trained_before_ms} ms, tonight's held out {held_out}: "
                "that would leak; start from an older checkpoint, or train without --start"
            )

    def put_into(self, model: SequenceModel, histories: Histories, vocabulary: Vocabulary) -> None:
        """Copy every weight; an item's row by item_id, a new item's as the mean of what stands near it in the log."""
        state = dict(self.weights)
        old_VD = state.pop(_EMBEDDING)
        old_V = torch.from_numpy(np.concatenate([[PAD], self.vocabulary.tokens(i.item_id for i in vocabulary.items)]))
        is_known_V = old_V != PAD
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name != _EMBEDDING:
                    parameter.copy_(state[name])
            rows_VD = model.embedding.weight
            rows_VD[is_known_V] = old_VD[old_V[is_known_V].long()]
            rows_VD[1:][~is_known_V[1:]] = _of_neighbours(rows_VD.detach(), is_known_V, histories)


def mismatch(manifest: artifact.Manifest, recipe: Recipe) -> str | None:
    """Why a checkpoint cannot be started from with this recipe; None where it can."""
    form = manifest.config.get("form")
    if form is None and recipe.sparse is not None:
        return "made before recipes had a model for sparse logs"
    if START_FILE not in manifest.files or manifest.metrics.get("trained_before_ms") is None:
        return "does not hold the weights and the moment that a later training starts from"
    made = ModelConfig.from_mapping(manifest.config["model"], "checkpoint: model").shape
    settled = recipe.settled(form or DENSE)
    model, window = settled.model.shape, settled.window
    changed = sorted(name for name in model if made[name] != model[name])
    if changed:
        name = changed[0]
        return f"made with model.{name} = {made[name]}, the recipe has {model[name]}"
    leaves = manifest.config["window"].get("summary_tokens", 0)
    if leaves != window.summary_tokens:
        return f"made with window.summary_tokens = {leaves}, the recipe has {window.summary_tokens}"
    return None


def _of_neighbours(rows_VD: Tensor, is_known_V: Tensor, histories: Histories) -> Tensor:
    """A row for each unknown item but PAD: the mean of the known items near it, by their counts; else of all known."""
    counts_VV = transitions.count(histories, len(rows_VD) - 1)
    unknown = (~is_known_V).numpy()
    unknown[PAD] = False
    near_NV = (counts_VV + counts_VV.T).tocsr()[np.flatnonzero(unknown)]
    near_NV = near_NV.multiply(is_known_V.numpy()[None]).tocsr()
    totals_N = np.asarray(near_NV.sum(axis=1)).ravel()
    means_ND = near_NV @ rows_VD.numpy() / np.maximum(totals_N, 1e-12)[:, None]
    means_ND[totals_N == 0] = rows_VD[is_known_V].mean(dim=0).numpy()
    return torch.from_numpy(means_ND.astype(np.float32))
