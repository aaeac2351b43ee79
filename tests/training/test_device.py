"""What a model is trained on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recsys.contracts.errors import ConfigError
from recsys.contracts.protocol import Protocol
from recsys.model.checkpoint import Checkpoint
from recsys.training import train
from recsys.training.config import Device, Precision, Recipe
from recsys.training.processes import CPU, device_of
from tests.training.conftest import KilledError, Steps


def on(recipe: Recipe, device: Device, **training: Any) -> Recipe:
    return recipe.model_copy(update={"training": recipe.training.model_copy(update={"device": device, **training})})


@pytest.mark.parametrize(
    ("wanted", "num_gpus", "place", "found"),
    [
        (Device.AUTO, 0, 0, CPU),
        (Device.AUTO, 2, 1, torch.device("cuda", 1)),
        (Device.CPU, 2, 0, CPU),
        (Device.CUDA, 1, 0, torch.device("cuda", 0)),
    ],
)
def test_a_gpu_is_taken_where_there_is_one_and_it_is_not_declined(
    monkeypatch: pytest.MonkeyPatch, wanted: Device, num_gpus: int, place: int, found: torch.device
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    assert device_of(wanted, place) == found


@pytest.mark.parametrize(("num_gpus", "place"), [(0, 0), (2, 2)])
def test_a_process_without_a_gpu_of_its_own_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, num_gpus: int, place: int
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    with pytest.raises(ConfigError, match=f"needs a GPU of its own, torch finds {num_gpus}; start fewer"):
        device_of(Device.CUDA, place)


def test_a_recipe_that_wants_a_gpu_ends_before_anything_is_written(
    ring_features: Path, tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match='device "cuda"'):
        train.run(on(tiny_recipe, Device.CUDA), ring_features, tmp_path / "c", protocol=Protocol.TIME)
    assert not list(tmp_path.iterdir())


@pytest.mark.gpu
@pytest.mark.parametrize("precision", list(Precision))
def test_a_gpu_learns_the_ring(ring_features: Path, tiny_recipe: Recipe, tmp_path: Path, precision: Precision) -> None:
    recipe = on(tiny_recipe, Device.CUDA, precision=precision)
    manifest = train.run(recipe, ring_features, tmp_path / "c", protocol=Protocol.TIME)
    assert manifest.metrics["validation_ndcg@10"] > 0.95


@pytest.mark.gpu
def test_a_gpu_without_dropout_takes_the_steps_of_the_processor(
    ring_features: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    tiny_recipe = tiny_recipe.model_copy(update={"model": tiny_recipe.model.model_copy(update={"dropout": 0.0})})
    losses = []
    for device in (Device.CPU, Device.CUDA):
        recipe = on(tiny_recipe, device, max_epochs=2)
        manifest = train.run(recipe, ring_features, tmp_path / device, protocol=Protocol.TIME)
        losses.append([row["loss"] for row in manifest.metrics["log"]])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("step", [1, 20])
def test_a_resumed_run_on_a_gpu_ends_where_an_uninterrupted_one_does(
    ring_features: Path, tiny_recipe: Recipe, tmp_path: Path, steps: Steps, step: int
) -> None:
    """Sums on a GPU may be in another order each time, so within rounding."""
    recipe = on(tiny_recipe, Device.CUDA)
    train.run(recipe, ring_features, tmp_path / "whole", protocol=Protocol.TIME)
    steps.dies_at, steps.taken = step, 0
    with pytest.raises(KilledError):
        train.run(recipe, ring_features, tmp_path / "cut", protocol=Protocol.TIME)
    train.run(recipe, ring_features, tmp_path / "cut", protocol=Protocol.TIME, resume=True)
    whole, again = (Checkpoint.open(tmp_path / name).model.items_VD.detach() for name in ("whole", "cut"))
    torch.testing.assert_close(again, whole, rtol=1e-2, atol=1e-2)
