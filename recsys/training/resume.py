"""What a training run needs to go on after it was killed: an artifact beside the checkpoint's place.

It is written before the first step and after each round; what was under way (absorbing is no round) is trained again.
Weights, optimizer, average, generators and the place in the shuffled epoch are as they were, so the steps are those of
a run that was never interrupted, bit for bit with the same number of threads, unless minutes end it.
"""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from recsys.contracts import artifact
from recsys.contracts.errors import ArtifactError
from recsys.runtime.fusion import Fusion
from recsys.training.config import METHOD, Recipe
from recsys.training.fitted import Fitted, RoundResult
from recsys.training.loop import Trainer, WindowStream

KIND = "training"
_TENSORS_FILE, _PLAIN_FILE = "state.safetensors", "state.json"
_BEST = "best."


class SavedRun:
    """The state of one run, kept at `.NAME.training` beside the checkpoint it will become."""

    def __init__(
        self, out: Path, recipe: Recipe, protocol: str, parents: dict[str, str], *, is_refit: bool = False
    ) -> None:
        self.place = out.parent / f".{out.name}.training"
        self._config = {**recipe.model_dump(mode="json"), "protocol": protocol, "refit": is_refit, "method": METHOD}
        self._parents = parents

    def save(self, trainer: Trainer, stream: WindowStream, best: Fitted, seconds: float) -> None:
        """Replace what was kept, whole or not at all."""
        plain = {
            "stream": stream.state(),
            "best": {"epochs": best.epochs, "ndcg": best.ndcg, "round": best.round},
            "num_best": len(best.weights),
            "fusion": best.fusion.model_dump(),
            "last_fusion": best.last_fusion.model_dump(),
            "log": [asdict(row) for row in best.log],
            "num_threads": torch.get_num_threads(),
            "seconds": seconds,
        }
        state = trainer.state() | {f"{_BEST}{i}": weight for i, weight in enumerate(best.weights)}
        tensors = {name: tensor.cpu() for name, tensor in state.items()}
        with artifact.writing(self.place, KIND) as writer:
            safetensors.torch.save_file(tensors, writer.folder / _TENSORS_FILE)
            (writer.folder / _PLAIN_FILE).write_text(json.dumps(plain))
            writer.commit(parents=self._parents, config=self._config, metrics={})

    def load(self, trainer: Trainer, stream: WindowStream, begun: Fitted) -> tuple[Fitted, float]:
        """Restore trainer, stream and threads; returns the best so far of what `begun` began, and the seconds spent.

        Raises:
            ArtifactError: nothing was kept, or it is of another recipe, protocol or features.
        """
        manifest = artifact.verify(self.place, KIND)
        if manifest.parents != self._parents or manifest.config != self._config:
            raise ArtifactError(
                f"{self.place}: an interrupted training of other features, another recipe or an older version; "
                "give the same ones, or train without --resume"
            )
        plain: dict[str, Any] = json.loads((self.place / _PLAIN_FILE).read_text())
        tensors = safetensors.torch.load_file(self.place / _TENSORS_FILE)
        torch.set_num_threads(plain["num_threads"])
        trainer.restore(tensors)
        stream.restore(plain["stream"])
        best = replace(
            begun,
            **plain["best"],
            fusion=Fusion.from_mapping(plain["fusion"], str(self.place)),
            last_fusion=Fusion.from_mapping(plain["last_fusion"], str(self.place)),
            weights=[tensors[f"{_BEST}{i}"] for i in range(plain["num_best"])],
            log=[RoundResult(**row) for row in plain["log"]],
        )
        return best, plain["seconds"]

    def clear(self) -> None:
        """Forget the run: it is finished, or a new one begins."""
        shutil.rmtree(self.place, ignore_errors=True)
