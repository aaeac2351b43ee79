"""Several processes give what one gives."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from recsys.contracts import artifact
from recsys.model.decoder import ClosedWindows
from recsys.model.dropout import Dropout
from recsys.model.summaries import SummaryModel
from recsys.training.batches import Batch
from recsys.training.config import Recipe
from recsys.training.loop import Trainer
from recsys.training.processes import Processes
from recsys.windows import WindowConfig

RECIPE = """
[model]
width = 32
num_layers = 1
head_dim = 16
feedforward_width = 32
dropout = 0.25
[window]
size = 8
overlap_share = 0.25
summary_tokens = {summary_tokens}
[training]
learning_rate = 0.01
warmup_steps = 5
batch_tokens = 80
num_negatives = {num_negatives}
precision = "{precision}"
max_epochs = 2
max_minutes = 60
num_threads = 1
"""
"""Batches of at most ten rows; dropout and negatives are random."""


def train_command(features: Path, out: Path, recipe: Path, num_processes: int) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    command = [sys.executable, *(torchrun if num_processes > 1 else []), "-m", "recsys", "train", str(features)]
    done = subprocess.run(
        [*command, "--out", str(out), "--recipe", str(recipe), "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"kind": "checkpoint"') == 1
    assert done.stderr.count("training needs about") == 1


@pytest.mark.parametrize(
    ("num_negatives", "precision", "summary_tokens"),
    [
        (12, "fp32", 0),
        pytest.param(0, "fp32", 0, marks=pytest.mark.slow),
        pytest.param(12, "fp16", 0, marks=pytest.mark.slow),
        pytest.param(12, "fp32", 2, marks=pytest.mark.slow),
    ],
)
def test_two_processes_give_what_one_gives(
    ring_features: Path, tmp_path: Path, num_negatives: int, precision: str, summary_tokens: int
) -> None:
    recipe = tmp_path / "ring.toml"
    recipe.write_text(RECIPE.format(num_negatives=num_negatives, precision=precision, summary_tokens=summary_tokens))
    for count in (1, 2):
        train_command(ring_features, tmp_path / str(count), recipe, count)
    one, two = (artifact.verify(tmp_path / str(count), "checkpoint").metrics["log"] for count in (1, 2))
    tolerance = 1e-4 if precision == "fp32" else 2e-2
    for row, other in zip(one, two, strict=True):
        assert other["loss"] == pytest.approx(row["loss"], rel=tolerance)
    ours, theirs = (safetensors.numpy.load_file(tmp_path / str(count) / "model.safetensors") for count in (1, 2))
    for name, weight in ours.items():
        assert np.linalg.norm(weight - theirs[name]) < 20 * tolerance * np.linalg.norm(weight), name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", "ring.toml"]


def batch(num_rows: int) -> Batch:
    tokens = torch.arange(1, num_rows + 1)[:, None].expand(-1, 3)
    return Batch(tokens, tokens)


@pytest.mark.parametrize("num_rows", [1, 2, 5])
def test_each_row_is_computed_once_and_counts_by_its_targets(num_rows: int) -> None:
    whole, counts = batch(num_rows), torch.zeros(num_rows)
    for rank in range(3):
        processes = Processes(rank=rank, count=3)
        mine = processes.share(whole)
        weight = processes.weight(whole, mine.targets_BL.numel(), whole.targets_BL.numel())
        # a mean over one's own rows, weighed: each row counts 1 / num_rows in the end
        for row in mine.tokens_BL[:, 0].tolist():
            counts[row - 1] += weight / len(mine.tokens_BL)
    torch.testing.assert_close(counts, torch.full((num_rows,), 1 / num_rows))


def test_dropout_of_a_part_is_that_part_of_the_dropout_of_the_whole() -> None:
    values = torch.randn(5, 7, 3)
    whole, part = Dropout(0.4), Dropout(0.4)
    torch.manual_seed(3)
    expected = whole(values)
    for rank in range(2):
        rows = Processes(rank=rank, count=2).rows(5)
        part.part = rows, 5
        torch.manual_seed(3)
        torch.testing.assert_close(part(values[rows]), expected[rows], rtol=0, atol=0)


def test_a_process_without_a_row_adds_nothing_to_the_loss_of_summaries(tiny_recipe: Recipe) -> None:
    window = WindowConfig(size=8, summary_tokens=2)
    recipe = tiny_recipe.model_copy(update={"window": window})
    processes = Processes(rank=1, count=2)
    trainer = Trainer(SummaryModel(tiny_recipe.model, 30, window), recipe, torch.ones(30), 10, processes)
    largest = torch.full((1, 2, 32), 60_000.0, dtype=torch.float16, requires_grad=True)  # its sum is none in float16
    told = trainer._told(ClosedWindows(largest, torch.ones(1, 8, dtype=torch.int64)), batch(1))
    told.backward()
    assert told.item() == 0
    assert torch.equal(largest.grad, torch.zeros_like(largest))
