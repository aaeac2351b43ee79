"""The training stage: features in, a checkpoint with its loss curve out.

First the model is trained on what validation leaves, until validation no longer improves; then the best
weights absorb the held-out events too, so that the newest days are not lost on a log that drifts.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from recsys import dataset, transitions
from recsys.contracts import artifact
from recsys.contracts.errors import ArtifactError, DataError
from recsys.dataset import Dataset, Histories, Protocol
from recsys.model import spectral
from recsys.model.checkpoint import save_weights
from recsys.model.decoder import SequenceModel
from recsys.runtime.fusion import Fusion
from recsys.training import curve
from recsys.training.config import Recipe
from recsys.training.loop import Stretch, Trainer, WindowStream
from recsys.training.validation import Judge

UNVALIDATED_EPOCHS = 10.0
"""How long a log is trained on that leaves nobody to validate with."""
_ABSORB_TIME_SHARE = 0.2
"""Of `max_minutes`, kept for absorbing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundResult:
    """One row of the training log."""

    round: int
    """From 1; a round ends with a look at validation."""
    epochs: float
    """Times the data has been seen so far."""
    loss: float
    """Mean cross-entropy in nats per predicted event; an estimate where negatives are sampled."""
    validation_ndcg: float | None
    """NDCG@10 of the averaged weights, fused; None where nothing is held out."""
    seconds: float
    tokens_per_second: float
    """Events predicted; padding and context not counted."""


@dataclass(slots=True)
class Fitted:
    """What fitting found."""

    epochs: float = 0.0
    """How often the data had been seen at the best round; absorbing not counted."""
    ndcg: float | None = None
    fusion: Fusion = field(default_factory=Fusion)
    weights: list[torch.Tensor] = field(default_factory=list)
    log: list[RoundResult] = field(default_factory=list)


def run(
    recipe: Recipe, features: Path, out: Path, *, protocol: Protocol, refit: Path | None = None
) -> artifact.Manifest:
    """Train on what the protocol allows and write a checkpoint.

    `refit` names a checkpoint whose number of epochs and fusion weights are taken over; everything is then
    trained on from the start, and nothing is held out.

    Raises:
        DataError: nothing to train on.
        ArtifactError: `refit` is no checkpoint of these features.
    """
    started = time.monotonic()
    config = recipe.training
    torch.set_num_threads(config.num_threads or 1)
    data = dataset.load(features, protocol)
    if not (data.fit.lengths > 1).any():
        raise DataError(f"{features}: no user has two events on kept items, so there is nothing to predict")
    known = None if refit is None else _found_before(refit, data)
    torch.manual_seed(config.seed)
    model = SequenceModel(recipe.model, len(data.vocabulary), recipe.window.size)
    fitted = _fit(model, data, recipe, known)
    with artifact.writing(out, "checkpoint") as writer:
        save_weights(model.state_dict(), writer.folder)
        data.vocabulary.save(writer.folder)
        curve.save(fitted.log, writer.folder)
        return writer.commit(
            parents={"features": data.manifest.digest},
            config={
                **recipe.model_dump(mode="json"),
                "protocol": protocol.value,
                "fusion": fitted.fusion.model_dump(),
                "refit": known is not None,
            },
            metrics={
                "epochs": round(fitted.epochs, 4),
                "num_rounds": len(fitted.log),
                "validation_ndcg@10": fitted.ndcg,
                "num_items": len(data.vocabulary),
                "num_threads": torch.get_num_threads(),
                "num_parameters": sum(p.numel() for p in model.parameters()),
                "seconds": round(time.monotonic() - started, 2),
                "log": [asdict(row) for row in fitted.log],
            },
        )


def _found_before(refit: Path, data: Dataset) -> Fitted:
    manifest = artifact.verify(refit, "checkpoint")
    artifact.check_parent(manifest, "features", data.manifest, refit)
    fusion = Fusion.from_mapping(manifest.config["fusion"], f"{refit}: fusion")
    if not manifest.metrics["epochs"]:
        raise ArtifactError(f"{refit}: holds no number of epochs; train it again")
    return Fitted(epochs=float(manifest.metrics["epochs"]), fusion=fusion)


def _fit(model: SequenceModel, data: Dataset, recipe: Recipe, known: Fitted | None) -> Fitted:
    """Train `model` in place; with `known`, for as long as was found before."""
    config = recipe.training
    num_items = len(data.vocabulary)
    validation = None if known else data.validation(config.num_validation_users, config.seed)
    histories = validation.train if validation and validation.targets else data.fit
    if config.spectral_start:
        _start_from_counts(model, histories, recipe)
    generator = np.random.default_rng(config.seed)
    stream = WindowStream(histories, recipe, generator)
    round_steps = min(stream.epoch_steps, config.max_round_steps)
    trainer = Trainer(model, recipe, _num_events(histories, num_items), horizon=round_steps)
    if config.num_threads is None:
        trainer.choose_threads(stream)
    deadline = math.inf
    if config.max_minutes is not None and known is None:
        deadline = time.monotonic() + 60 * config.max_minutes * (1 - _ABSORB_TIME_SHARE)
    if validation is not None and validation.targets:
        judge = Judge(validation, num_items, recipe.window, mask_seen=data.protocol.masks_seen)
        fitted = _until_no_better(trainer, stream, round_steps, judge, recipe, deadline)
    else:
        fitted = _for_so_long(trainer, stream, known or Fitted(epochs=UNVALIDATED_EPOCHS), deadline)
    trainer.use(fitted.weights)
    absorbing = WindowStream(data.fit, recipe, generator)
    num_steps = math.ceil(config.absorb_share * fitted.epochs * absorbing.epoch_steps)
    if num_steps:
        with _bar("absorb", num_steps) as advance:
            trainer.train(absorbing, num_steps, rate=lambda share: 1 - share, advance=advance)
    return fitted


def _until_no_better(
    trainer: Trainer, stream: WindowStream, round_steps: int, judge: Judge, recipe: Recipe, deadline: float
) -> Fitted:
    """Rounds of training and validation; the averaged weights of the best round."""
    config = recipe.training
    best, steps, best_round = Fitted(ndcg=-math.inf), 0, 0
    while steps < config.max_epochs * stream.epoch_steps:
        number = len(best.log) + 1
        started = time.monotonic()
        with _bar(f"train {number}", round_steps, best.ndcg) as advance:
            stretch = trainer.train(stream, round_steps, deadline=deadline, advance=advance)
        steps += stretch.steps
        current = trainer.current()
        torch._foreach_copy_([p.data for p in trainer.model.parameters()], trainer.averaged)
        ndcg = judge.ndcg_at_10(trainer.model)
        torch._foreach_copy_([p.data for p in trainer.model.parameters()], current)
        epochs = steps / stream.epoch_steps
        best.log.append(_row(number, epochs, stretch, ndcg, time.monotonic() - started))
        assert best.ndcg is not None
        if ndcg > best.ndcg:
            weights = [weight.clone() for weight in trainer.averaged]
            best, best_round = Fitted(epochs, ndcg, judge.fusion, weights, best.log), number
        if number - best_round >= config.patience or time.monotonic() > deadline:
            break
    return best


def _for_so_long(trainer: Trainer, stream: WindowStream, known: Fitted, deadline: float) -> Fitted:
    """A number of epochs that is known beforehand."""
    num_steps = math.ceil(known.epochs * stream.epoch_steps)
    with _bar("train", num_steps) as advance:
        stretch = trainer.train(stream, num_steps, deadline=deadline, advance=advance)
    row = _row(1, stretch.steps / stream.epoch_steps, stretch, None, stretch.seconds)
    return Fitted(known.epochs, None, known.fusion, trainer.averaged, [row])


def _row(number: int, epochs: float, stretch: Stretch, ndcg: float | None, seconds: float) -> RoundResult:
    return RoundResult(
        round=number,
        epochs=round(epochs, 4),
        loss=stretch.loss,
        validation_ndcg=ndcg,
        seconds=round(seconds, 3),
        tokens_per_second=round(stretch.tokens / stretch.seconds, 1),
    )


def _start_from_counts(model: SequenceModel, histories: Histories, recipe: Recipe) -> None:
    counts = transitions.count(histories, model.embedding.num_embeddings - 1)
    generator = torch.Generator().manual_seed(recipe.training.seed)
    vectors = spectral.item_vectors(counts, recipe.model.width, recipe.model.init_std, generator)
    with torch.no_grad():
        model.embedding.weight[1:] = vectors[1:]


def _num_events(fit: Histories, num_items: int) -> torch.Tensor:
    """Events per item, shape [V]."""
    return torch.from_numpy(np.bincount(fit.tokens, minlength=num_items + 1)[1:])


@contextmanager
def _bar(title: str, num_steps: int, ndcg: float | None = None) -> Iterator[Callable[[float], None]]:
    """A bar on standard error, none where that is not a terminal; the function it gives takes the loss."""
    console = Console(stderr=True)
    best = "" if ndcg is None or ndcg == -math.inf else f"best NDCG@10 {ndcg:.4f}"
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.4f}  {task.speed} steps/s " + best),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=num_steps, loss=math.nan)
        yield lambda loss: progress.update(task, advance=1, loss=loss)
