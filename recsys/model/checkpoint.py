"""Checkpoints: weights in safetensors, settings in the manifest, the vocabulary beside them."""

from pathlib import Path
from typing import Any

import safetensors.torch

from recsys import trend
from recsys.contracts import artifact
from recsys.contracts.errors import ArtifactError
from recsys.contracts.ids import Floats, Vocabulary
from recsys.model.config import ModelConfig
from recsys.model.decoder import SequenceModel
from recsys.model.summaries import build_model
from recsys.windows import WindowConfig

WEIGHTS_FILE = "model.safetensors"
START_FILE = "start.safetensors"
"""The weights before they absorbed what validation held out: what the next training may start from."""


class Checkpoint:
    """A trained model, its vocabulary and the window it was trained on."""

    def __init__(
        self, manifest: artifact.Manifest, model: SequenceModel, vocabulary: Vocabulary, window: WindowConfig
    ) -> None:
        self.manifest = manifest
        self.model = model
        self.vocabulary = vocabulary
        self.window = window

    @classmethod
    def open(cls, folder: Path) -> "Checkpoint":
        """Load and check a checkpoint; the model is in evaluation mode.

        Raises:
            ArtifactError: damaged, or weights that do not fit the settings.
        """
        manifest = artifact.verify(folder, "checkpoint")
        vocabulary = Vocabulary.load(folder)
        window = WindowConfig.from_mapping(manifest.config["window"], f"{folder}: window")
        model_config = ModelConfig.from_mapping(manifest.config["model"], f"{folder}: model")
        model = build_model(model_config, len(vocabulary), window)
        try:
            model.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS_FILE))
        except RuntimeError as error:
            raise ArtifactError(f"{folder / WEIGHTS_FILE}: {str(error).splitlines()[0]} train again") from None
        return cls(manifest, model.eval(), vocabulary, window)

    @property
    def trend_V(self) -> Floats | None:
        """What the events of the last days add to each item's score, shape [V]; None where that is nothing."""
        weight = float(self.manifest.config["fusion"].get("trend", 0.0))  # checkpoints of before have none
        return trend.shifts(weight, self.vocabulary.num_recent)


def save_weights(weights: dict[str, Any], folder: Path, name: str = WEIGHTS_FILE) -> None:
    """Write `model.safetensors`, or a file of another name."""
    safetensors.torch.save_file(weights, folder / name)
