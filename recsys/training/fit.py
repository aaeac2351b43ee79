"""Fitting: rounds until validation no longer improves, then absorbing what was held out."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from recsys import transitions
from recsys.dataset import Dataset, Histories
from recsys.model import spectral
from recsys.model.decoder import SequenceModel
from recsys.runtime.fusion import Fusion
from recsys.training import memory, new_items
from recsys.training.config import Recipe, TrainingConfig
from recsys.training.fitted import Fitted, RoundListener, RoundResult
from recsys.training.loop import Stretch, Trainer, WindowStream
from recsys.training.processes import Processes
from recsys.training.resume import SavedRun
from recsys.training.start import Start
from recsys.training.validation import Judge

UNVALIDATED_EPOCHS = 10.0
"""How long a log is trained on that leaves nobody to validate with."""
_ABSORB_TIME_SHARE = 0.2
"""Of `max_minutes`, kept for absorbing."""


def fit(
    model: SequenceModel,
    data: Dataset,
    recipe: Recipe,
    known: Fitted | None,
    saved: SavedRun,
    listener: RoundListener,
    processes: Processes,
    start: Start | None = None,
    *,
    resume: bool,
) -> Fitted:
    """Train `model` in place, from `start` if given; with `known`, on everything for as long as was found before."""
    config = recipe.training
    num_items = len(data.vocabulary)
    validation = None if known else data.validation(config.num_validation_users, config.seed)
    histories = validation.train if validation and validation.targets else data.fit
    if start is not None:
        start.check_unseen(validation.from_ms if validation else data.fit_end_ms)
        start.put_into(model, histories, data.vocabulary)
    elif config.spectral_start:
        _start_from_counts(model, histories, recipe)
    generator = np.random.default_rng(config.seed)
    stream = WindowStream(histories, recipe, generator)
    num_events_V = torch.from_numpy(np.bincount(histories.tokens, minlength=num_items + 1)[1:])
    horizon = min(stream.epoch_steps, config.max_round_steps)
    trainer = Trainer(model, recipe, num_events_V, horizon, processes)
    need = memory.estimate(trainer, stream, histories)
    if processes.is_first:
        Console(stderr=True, soft_wrap=True).print(
            f"training {need.line(memory.free_on(processes.device))}", highlight=False
        )
    judge, begun = None, known or Fitted(epochs=UNVALIDATED_EPOCHS)
    if validation is not None and validation.targets:
        judge = Judge(validation, num_items, recipe, mask_seen=data.protocol.masks_seen)
        begun = Fitted(ndcg=-math.inf) if start is None else _first_look(trainer, judge, start)
    spent = 0.0
    if resume:
        begun, spent = saved.load(trainer, stream, begun)
    elif processes.is_first:
        saved.save(trainer, stream, begun, spent)
    if config.num_threads is None and not trainer.num_steps:
        trainer.choose_threads(stream)  # takes steps
    run = _Run(trainer, stream, config, saved, listener, time.monotonic() - spent)
    for row in begun.log:
        listener.add(row)
    if judge is not None:
        patience = config.patience if start is None else config.start_patience
        fitted = _until_no_better(run, judge, begun, patience)
    else:
        fitted = _for_so_long(run, begun)
    trainer.use(fitted.weights)
    if judge is not None and processes.is_first:
        weights, temperature = judge.settled(model)
        fitted = replace(fitted, fusion=weights, temperature=temperature)
    if validation is not None and processes.is_first:
        chosen = new_items.choose(model, data, validation, recipe, fitted.fusion)
        fitted = replace(fitted, new_items=chosen)
    epochs = fitted.epochs if start is None else max(1.0, fitted.epochs)
    _absorb(trainer, WindowStream(data.fit, recipe, generator), config.absorb_share * epochs)
    model.cpu()
    fitted = replace(fitted, weights=[weight.cpu() for weight in fitted.weights])
    seen_ms = data.fit_end_ms if validation is None else validation.from_ms
    return replace(fitted, memory_bytes=need.total, trained_before_ms=seen_ms)


def _first_look(trainer: Trainer, judge: Judge, start: Start) -> Fitted:
    """What the rounds have to beat: what the run starts from."""
    judge.fusion = start.fusion
    ndcg = _validated(trainer, judge)
    weights = [weight.clone() for weight in trainer.averaged]
    return Fitted(ndcg=ndcg, fusion=judge.fusion, weights=weights, last_fusion=judge.fusion)


@dataclass(frozen=True, slots=True)
class _Run:
    """A training under way."""

    trainer: Trainer
    stream: WindowStream
    config: TrainingConfig
    saved: SavedRun
    listener: RoundListener
    started: float
    """By `time.monotonic()`, less what was spent before an interruption."""

    @property
    def round_steps(self) -> int:
        """Steps of a round."""
        return min(self.stream.epoch_steps, self.config.max_round_steps)

    def ended(self, so_far: Fitted) -> None:
        """A round ended; from here the run goes on after an interruption."""
        self.listener.add(so_far.log[-1])
        if self.trainer.processes.is_first:
            self.saved.save(self.trainer, self.stream, so_far, time.monotonic() - self.started)


def _until_no_better(run: _Run, judge: Judge, best: Fitted, patience: int) -> Fitted:
    """Rounds of training and validation; the averaged weights of the best round, or `best` where none is better."""
    trainer, config, round_steps = run.trainer, run.config, run.round_steps
    judge.fusion = best.last_fusion
    deadline = run.started + 60 * (1 - _ABSORB_TIME_SHARE) * (config.max_minutes or math.inf)
    while not _is_over(best, config.max_epochs, patience) and trainer.is_before(deadline):
        number, round_started = len(best.log) + 1, time.monotonic()
        title = _round_title(number, math.ceil(config.max_epochs * run.stream.epoch_steps / round_steps), deadline)
        with _bar(trainer, title, round_steps, best.ndcg) as advance:
            stretch = trainer.train(run.stream, round_steps, deadline=deadline, advance=advance)
        ndcg = _validated(trainer, judge)
        seen = best.log[-1].epochs if best.log else 0.0
        epochs = seen + stretch.steps / run.stream.epoch_steps
        row = _row(number, epochs, stretch, ndcg, time.monotonic() - round_started)
        if best.ndcg is None or ndcg > best.ndcg:
            weights = [weight.clone() for weight in trainer.averaged]
            best = replace(best, epochs=row.epochs, ndcg=ndcg, fusion=judge.fusion, weights=weights, round=number)
        best = replace(best, log=[*best.log, row], last_fusion=judge.fusion)
        run.ended(best)
    return best


def _round_title(number: int, most_rounds: int, deadline: float) -> str:
    """What the time left on the bar is of, and what bounds the rounds; `deadline` by `time.monotonic()`."""
    minutes = max(0.0, deadline - time.monotonic()) / 60
    return f"train round {number} of at most {most_rounds}{'' if math.isinf(minutes) else f', {minutes:.0f} min'}"


def _validated(trainer: Trainer, judge: Judge) -> float:
    """NDCG@10 of the averaged weights by the first process; all learn it, and the fusion it was found with."""
    ndcg = 0.0
    if trainer.processes.is_first:
        with trainer.averaged_in_place() as averaged:
            ndcg = judge.ndcg_at_10(averaged)
    names = list(Fusion.model_fields)
    ndcg, *weights = trainer.processes.agreed(ndcg, *(getattr(judge.fusion, name) for name in names))
    judge.fusion = Fusion(**dict(zip(names, weights, strict=True)))
    return ndcg


def _is_over(best: Fitted, max_epochs: int, patience: int) -> bool:
    return bool(best.log) and (best.log[-1].epochs >= max_epochs or len(best.log) - best.round >= patience)


def _for_so_long(run: _Run, known: Fitted) -> Fitted:
    """A number of epochs that is known beforehand, in rounds that nothing is judged by."""
    trainer, epoch_steps = run.trainer, run.stream.epoch_steps
    num_steps = max(1, math.ceil(known.epochs * epoch_steps))
    num_rounds = math.ceil(num_steps / run.round_steps)
    done = len(known.log) * run.round_steps  # only the last round may be shorter
    while done < num_steps:
        number, steps = len(known.log) + 1, min(run.round_steps, num_steps - done)
        with _bar(trainer, f"train round {number} of {num_rounds}", steps) as advance:
            stretch = trainer.train(run.stream, steps, advance=advance)
        done += stretch.steps
        row = _row(number, done / epoch_steps, stretch, None, stretch.seconds)
        known = replace(known, log=[*known.log, row])
        run.ended(known)
    return replace(known, weights=[weight.clone() for weight in trainer.averaged])


def _absorb(trainer: Trainer, stream: WindowStream, epochs: float) -> None:
    """Go on with the held-out events included, the learning rate falling to zero."""
    num_steps = math.ceil(epochs * stream.epoch_steps)
    if num_steps:
        with _bar(trainer, "absorb", num_steps) as advance:
            trainer.train(stream, num_steps, rate=lambda share: 1 - share, advance=advance)


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


@contextmanager
def _bar(
    trainer: Trainer, title: str, num_steps: int, ndcg: float | None = None
) -> Iterator[Callable[[float, int], None]]:
    """A bar on standard error, none where that is not a terminal; it is advanced with loss and events so far."""
    console = Console(stderr=True)
    best = "" if ndcg is None or ndcg == -math.inf else f"  best NDCG@10 {ndcg:.4f}"
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.4f}  {task.fields[speed]:,.0f} events/s" + best),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    started = time.monotonic()
    with Progress(
        *columns, console=console, disable=not (console.is_terminal and trainer.processes.is_first)
    ) as progress:
        task = progress.add_task(title, total=num_steps, loss=math.nan, speed=0.0)

        def advance(loss: float, tokens: int) -> None:
            progress.update(task, advance=1, loss=loss, speed=tokens / (time.monotonic() - started))

        yield advance
