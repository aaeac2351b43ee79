import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys import dataset
from recsys.contracts.protocol import Protocol
from recsys.model.config import ModelConfig
from recsys.model.decoder import SequenceModel
from recsys.training import memory
from recsys.training.config import Recipe
from recsys.training.loop import Trainer, WindowStream
from tests.conftest import write_features
from tests.training.test_precision import changed

WIDE = """
[model]
width = {width}
head_dim = 64
[window]
size = 256
[training]
batch_tokens = {batch_tokens}
num_negatives = {num_negatives}
max_epochs = 1
max_round_steps = 6
num_threads = 1
absorb_share = 0
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_items", "width", "batch_tokens", "num_negatives"),
    [(1_000, 128, 8_192, 512), (60_000, 256, 1_024, 512), (30_000, 128, 4_096, 0)],
    ids=["activations", "items", "full softmax"],
)
def test_the_memory_that_was_announced_is_what_a_run_takes(
    tmp_path: Path, num_items: int, width: int, batch_tokens: int, num_negatives: int
) -> None:
    generator = np.random.default_rng(0)
    histories = {f"u{u}": (1 + generator.integers(0, num_items, 200)).tolist() for u in range(150)}
    write_features(tmp_path / "f", histories, num_items, split_ms=180)
    recipe = tmp_path / "wide.toml"
    recipe.write_text(WIDE.format(width=width, batch_tokens=batch_tokens, num_negatives=num_negatives))
    command = [sys.executable, "-m", "recsys", "train", str(tmp_path / "f"), "--out", str(tmp_path / "c")]
    done = subprocess.run([*command, "--recipe", str(recipe), "--json"], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)["metrics"]
    expected, peak = found["expected_memory_bytes"], found["peak_memory_bytes"]
    assert f"training needs about {expected / 1e6:,.0f} MB of memory" in done.stderr
    assert 0.75 < expected / peak < 1.33


def test_counting_leaves_the_run_as_it_was_and_grows_with_the_batch(ring_features: Path, tiny_recipe: Recipe) -> None:
    fit = dataset.load(ring_features, Protocol.FINAL).fit
    needs = []
    for batch_tokens in (1_000, 4_000):
        recipe = changed(tiny_recipe, batch_tokens=batch_tokens)
        torch.manual_seed(0)
        trainer = Trainer(SequenceModel(recipe.model, 30, 8), recipe, torch.ones(30), horizon=10)
        before = {name: tensor.clone() for name, tensor in trainer.state().items()}
        needs.append(memory.estimate(trainer, WindowStream(fit, recipe, np.random.default_rng(0)), fit))
        torch.testing.assert_close(trainer.state(), before, rtol=0, atol=0)
    assert needs[1].activations == pytest.approx(4 * needs[0].activations, rel=0.01)
    assert needs[0].weights == 3 * sum(p.numel() * 4 for p in trainer.model.parameters())


def test_a_decoder_with_learned_positions_is_counted_on_no_more_than_a_window(
    ring_features: Path, tiny_recipe: Recipe
) -> None:
    fit = dataset.load(ring_features, Protocol.FINAL).fit
    model = SequenceModel(ModelConfig(architecture="gpt2", width=32, head_dim=16), 30, 8)
    trainer = Trainer(model, tiny_recipe, torch.ones(30), horizon=10)
    assert memory.estimate(trainer, WindowStream(fit, tiny_recipe, np.random.default_rng(0)), fit).activations > 0


def test_what_a_gpu_has_to_hold_is_said_apart() -> None:
    need = memory.MemoryNeed(
        program=10**9, data=10**6, weights=2 * 10**6, optimizer=0, activations=3 * 10**6, scratch=0
    )
    assert need.line(10**7).endswith("; 5 MB of it on the GPU")
    assert need.line(4 * 10**6).endswith("GPU, where only 4 MB are free: lower batch_tokens or width")
    assert "GPU" not in need.line()
    assert memory.free_on(torch.device("cpu")) is None


def test_a_machine_with_less_memory_is_warned_about() -> None:
    need = memory.MemoryNeed(program=10**15, data=0, weights=0, optimizer=0, activations=0, scratch=0)
    assert "MB are free: lower batch_tokens or width" in need.line()
