import math
from pathlib import Path
from typing import Any

import pytest
import torch

from recsys.contracts.errors import DataError
from recsys.contracts.protocol import Protocol
from recsys.model.decoder import SequenceModel
from recsys.training import train
from recsys.training.batches import Batch
from recsys.training.config import Precision, Recipe
from recsys.training.loop import Trainer
from recsys.training.precision import LEAST_SCALE, MixedPrecision
from recsys.training.processes import CPU
from tests.training.conftest import KilledError, Steps


def changed(recipe: Recipe, **training: Any) -> Recipe:
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=training)})


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP16])
def test_sixteen_bits_learn_the_ring_and_say_so(
    ring_features: Path, tiny_recipe: Recipe, tmp_path: Path, precision: Precision
) -> None:
    recipe = changed(tiny_recipe, precision=precision)
    manifest = train.run(recipe, ring_features, tmp_path / "c", protocol=Protocol.TIME)
    assert manifest.config["training"]["precision"] == precision
    losses = [row["loss"] for row in manifest.metrics["log"]]
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize(
    ("precision", "expected"),
    [(Precision.FP32, torch.float32), (Precision.BF16, torch.bfloat16), (Precision.FP16, torch.float16)],
)
def test_matrices_are_multiplied_in_the_precision_of_the_recipe_and_weights_stay_float32(
    tiny_recipe: Recipe, precision: Precision, expected: torch.dtype
) -> None:
    model = SequenceModel(tiny_recipe.model, 9, tiny_recipe.window.size)
    trainer = Trainer(model, changed(tiny_recipe, precision=precision), torch.ones(9), horizon=1)
    found = set()
    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_hook(lambda *given: found.add(given[2].dtype))
    tokens_BL = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    loss, num_targets = trainer.loss(Batch(tokens_BL, tokens_BL))
    loss.backward()
    assert (found, num_targets) == ({expected}, 8)
    assert loss.dtype == torch.float32
    assert {p.dtype for p in model.parameters()} | {p.grad.dtype for p in model.parameters()} == {torch.float32}


def test_a_resumed_fp16_run_has_the_scaler_as_it_was(
    ring_features: Path, tiny_recipe: Recipe, tmp_path: Path, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, scales = changed(tiny_recipe, precision=Precision.FP16, max_epochs=3), {}
    step_or_die = Trainer._step

    def noted(self: Trainer, *arguments: Any) -> tuple[float, int]:
        self._mixed.scaler.set_growth_interval(4)  # so that the scale moves within a test
        result = step_or_die(self, *arguments)
        scales[self._num_steps] = self._mixed.state()["scaler.scale"].item()
        return result

    monkeypatch.setattr(Trainer, "_step", noted)
    whole = train.run(recipe, ring_features, tmp_path / "whole", protocol=Protocol.TIME)
    uninterrupted, steps.taken, steps.dies_at = dict(scales), 0, 9
    with pytest.raises(KilledError):
        train.run(recipe, ring_features, tmp_path / "cut", protocol=Protocol.TIME)
    again = train.run(recipe, ring_features, tmp_path / "cut", protocol=Protocol.TIME, resume=True)
    assert len(set(uninterrupted.values())) > 2
    assert scales == uninterrupted
    assert again.files["model.safetensors"] == whole.files["model.safetensors"]


def test_a_loss_that_is_no_number_stops_training_and_names_the_batch(
    ring_features: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    recipe = changed(tiny_recipe, learning_rate=1e30, warmup_steps=1)
    with pytest.raises(DataError, match=r"step \d+, \d+ windows of users 'u\d.* with items 'sku-\d+', .* became"):
        train.run(recipe, ring_features, tmp_path / "c", protocol=Protocol.TIME)
    assert not (tmp_path / "c").exists()


def test_fp16_gives_up_only_when_no_scale_of_the_loss_helps() -> None:
    mixed = MixedPrecision(Precision.FP16, CPU)
    mixed.scaler.scale(torch.ones(()))
    assert mixed.problem(math.inf) is None
    mixed.scaler.update(LEAST_SCALE / 2)
    assert "at any scale" in str(mixed.problem(math.inf))
    assert mixed.problem(1.0) is None
    assert "gradients became inf" in str(MixedPrecision(Precision.BF16, CPU).problem(math.inf))
