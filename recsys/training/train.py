"""The training loop: windows in, a checkpoint with its loss curve out."""

import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from recsys import dataset
from recsys.contracts import artifact
from recsys.contracts.errors import DataError
from recsys.contracts.ids import PAD
from recsys.dataset import Dataset, Protocol, ValidationSet
from recsys.model.checkpoint import save_weights
from recsys.model.decoder import SequenceModel
from recsys.model.loss import full_softmax_loss
from recsys.training import batches, curve
from recsys.training.config import Recipe
from recsys.training.validation import ndcg_at_10


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochResult:
    """One row of the training log."""

    epoch: int
    loss: float
    """Mean cross-entropy in nats per predicted event."""
    validation_ndcg: float | None
    seconds: float
    tokens_per_second: float
    """Real events, padding not counted."""


@dataclass(slots=True)
class _Best:
    """The best weights by validation, or the last ones where there is no validation."""

    epoch: int = 0
    ndcg: float = -math.inf
    weights: dict[str, Any] = field(default_factory=dict)


def run(
    recipe: Recipe, features: Path, out: Path, *, protocol: Protocol, num_epochs: int | None = None
) -> artifact.Manifest:
    """Train on what the protocol allows and write a checkpoint.

    `num_epochs` trains exactly so long without looking at validation: the refit of a recipe whose
    number of epochs was found before.

    Raises:
        DataError: nothing to train on.
    """
    torch.set_num_threads(recipe.training.num_threads)
    data = dataset.load(features, protocol)
    if not (data.fit.lengths > 1).any():
        raise DataError(f"{features}: no user has two events on kept items, so there is nothing to predict")
    torch.manual_seed(recipe.training.seed)
    model = SequenceModel(recipe.model, len(data.vocabulary), recipe.window.size)
    started = time.monotonic()
    best, log = _fit(model, data, recipe, num_epochs)
    with artifact.writing(out, "checkpoint") as writer:
        save_weights(best.weights, writer.folder)
        data.vocabulary.save(writer.folder)
        curve.save(log, writer.folder)
        return writer.commit(
            parents={"features": data.manifest.digest},
            config={**recipe.model_dump(mode="json"), "protocol": protocol.value, "num_epochs": num_epochs},
            metrics={
                "best_epoch": best.epoch,
                "num_epochs": len(log),
                "validation_ndcg@10": None if num_epochs else best.ndcg,
                "num_items": len(data.vocabulary),
                "num_parameters": sum(p.numel() for p in model.parameters()),
                "seconds": round(time.monotonic() - started, 2),
                "log": [asdict(row) for row in log],
            },
        )


def _fit(
    model: SequenceModel, data: Dataset, recipe: Recipe, num_epochs: int | None
) -> tuple[_Best, list[EpochResult]]:
    config = recipe.training
    validation = None if num_epochs else _validation(data, recipe)
    histories = validation.train if validation else data.fit
    windows = batches.training_windows(histories, recipe.window)
    generator = np.random.default_rng(config.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / config.warmup_steps))
    best, log = _Best(), list[EpochResult]()
    deadline = math.inf if config.max_minutes is None else time.monotonic() + 60 * config.max_minutes
    last_epoch = num_epochs or config.max_epochs
    with _progress() as progress:
        task = progress.add_task("train", total=last_epoch * len(windows), loss=math.nan, ndcg=math.nan)
        for epoch in range(1, last_epoch + 1):
            started = time.monotonic()
            total_loss, num_targets = 0.0, 0
            for batch in batches.epoch(histories.tokens, windows, config.batch_tokens, generator):
                loss, count = _step(model, batch, optimizer, config.gradient_clip)
                schedule.step()
                total_loss += loss * count
                num_targets += count
                progress.update(task, advance=len(batch.tokens_BL), loss=total_loss / num_targets)
            seconds = time.monotonic() - started
            ndcg = _validate(model, validation, recipe, data.protocol)
            log.append(
                EpochResult(
                    epoch=epoch,
                    loss=total_loss / num_targets,
                    validation_ndcg=ndcg,
                    seconds=seconds,
                    tokens_per_second=num_targets / seconds,
                )
            )
            progress.update(task, ndcg=math.nan if ndcg is None else ndcg)
            if ndcg is None or ndcg > best.ndcg:
                weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
                best = _Best(epoch, math.inf if ndcg is None else ndcg, weights)
            if (ndcg is not None and epoch - best.epoch >= config.patience) or time.monotonic() > deadline:
                break
    return best, log


def _step(
    model: SequenceModel, batch: batches.Batch, optimizer: torch.optim.Optimizer, clip: float
) -> tuple[float, int]:
    """One update; returns (mean loss, number of targets)."""
    model.train()
    optimizer.zero_grad()
    wanted_BL = batch.targets_BL != PAD
    hidden_ND = model(batch.tokens_BL)[wanted_BL]
    loss = full_softmax_loss(hidden_ND, model.items_VD, batch.targets_BL[wanted_BL] - 1)
    value = loss.item()
    if not math.isfinite(value):
        raise DataError(f"loss became {value} in a batch of {len(batch.tokens_BL)} windows; lower learning_rate")
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return value, len(hidden_ND)


def _validation(data: Dataset, recipe: Recipe) -> ValidationSet | None:
    """None where no user is long enough to hold an event out."""
    validation = data.validation(recipe.training.num_validation_users, recipe.training.seed)
    return validation if len(validation.targets) else None


def _validate(
    model: SequenceModel, validation: ValidationSet | None, recipe: Recipe, protocol: Protocol
) -> float | None:
    if validation is None:
        return None
    return ndcg_at_10(model, validation, recipe.window, mask_seen=protocol.masks_seen)


def _progress() -> Progress:
    """A bar on standard error, none where that is not a terminal."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.4f}  validation NDCG@10 {task.fields[ndcg]:.4f}"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
