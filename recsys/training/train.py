"""The training stage: features in, a checkpoint with its loss curve out.

First the model is trained on what validation leaves, until validation no longer improves; then the best
weights absorb the held-out events too, so that the newest days are not lost on a log that drifts.
"""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from recsys import dataset
from recsys.contracts import artifact
from recsys.contracts.errors import DataError
from recsys.contracts.ids import PAD
from recsys.contracts.protocol import Protocol
from recsys.dataset import Dataset
from recsys.model import incremental, pretrained
from recsys.model.checkpoint import START_FILE, save_weights
from recsys.model.decoder import SequenceModel
from recsys.model.summaries import build_model
from recsys.peak_memory import peak_bytes
from recsys.runtime.fusion import Fusion
from recsys.training import curve
from recsys.training.config import AND, LONG, Recipe
from recsys.training.fit import fit
from recsys.training.fitted import Fitted
from recsys.training.journal import Journal
from recsys.training.loop import DivergedError
from recsys.training.new_items import Choice
from recsys.training.processes import Processes, device_of
from recsys.training.resume import SavedRun
from recsys.training.start import Start


def run(
    recipe: Recipe,
    features: Path,
    out: Path,
    *,
    protocol: Protocol,
    refit: Path | None = None,
    resume: bool = False,
    start: Path | None = None,
    split_ms: int | None = None,
    processes: Processes | None = None,
) -> artifact.Manifest:
    """Train on what the protocol allows and write a checkpoint.

    Of a recipe with a model for sparse logs, or windows for long histories, those are meant that this log asks for, or
    that `refit` or `start` is of.
    `refit` names a checkpoint whose number of epochs, fusion weights and temperature are taken over; everything is
    then trained on from the start, and nothing is held out. `resume` goes on with a run that was interrupted.
    `start` is an older checkpoint to go on from, such as last night's, of any features of the same shop.
    `split_ms` cuts the protocol `time` at another moment than the features' own.
    Several `processes` train one model; the first of them writes. Without them this one does, on the recipe's device.

    Raises:
        DataError: nothing to train on, or the loss became no number: names the batch by its users and items.
        ConfigError: the recipe wants a GPU, and there is none, or a decoder that is none.
        ArtifactError: `refit` is no checkpoint of these features, `start` is of another model or has seen what is
            held out, or there is no such run to resume.
    """
    started = time.monotonic()
    processes = processes or Processes(device=device_of(recipe.training.device))
    torch.set_num_threads(recipe.training.num_threads or 1)
    data = dataset.load(features, protocol, split_ms=split_ms)
    following = np.delete(data.fit.targets, data.fit.offsets[:-1])
    if not (following != PAD).any():
        raise DataError(f"{features}: no user has two events on kept items, so there is nothing to predict")
    known = None if refit is None else _found_before(refit, data, recipe)
    form, recipe = _settled(recipe, data, refit or start, processes)
    older = None if start is None else Start.open(start, recipe)
    parents = {"features": data.manifest.digest} | ({} if older is None else {"start": older.digest})
    saved = SavedRun(out, recipe, protocol.value, dict(parents), is_refit=known is not None)
    journal = Journal(out, recipe.training.tensorboard if processes.is_first else False)
    torch.manual_seed(recipe.training.seed)
    model = build_model(recipe.model, len(data.vocabulary), recipe.window)
    reason = incremental.why_not(recipe.model, recipe.window.most_rows)
    if reason is not None:
        architecture = recipe.model.architecture
        _tell(f"architecture = {architecture!r} trains, but `recsys optimize` will refuse it: {reason}", processes)
    if recipe.model.pretrained is not None:
        parents["pretrained"] = pretrained.load_into(model, Path(recipe.model.pretrained))
    try:
        fitted = fit(model, data, recipe, known, saved, journal, processes, older, resume=resume)
    except DivergedError as error:
        raise error.named(data.vocabulary) from None
    if processes.is_first:
        settings = {
            **recipe.model_dump(mode="json", exclude={"sparse", "long"}),
            "form": form,
            "protocol": protocol.value,
        }
        config = settings | {"refit": known is not None}
        with artifact.writing(out, "checkpoint") as writer:
            _write(model, fitted, data, writer.folder)
            journal.move_into(writer.folder)
            metrics = _metrics(model, fitted, data) | {"seconds": round(time.monotonic() - started, 2)}
            writer.commit(parents=parents, config=config | _found(fitted), metrics=metrics)
        saved.clear()
    processes.wait()
    return artifact.read_manifest(out)


def _settled(recipe: Recipe, data: Dataset, before: Path | None, processes: Processes) -> tuple[str, Recipe]:
    """The recipe with the one model and the windows that are trained, and their tables.

    They are those of the checkpoint `before`, if given.
    """
    form = asked_for = recipe.form_for(data)
    if before is not None:  # files are verified where they are read
        form = _form_of(artifact.read_manifest(before), recipe, asked_for)
    reasons = []
    if recipe.sparse is not None:
        reasons.append(f"{data.events_per_item:,.2f} events on an item, sparse below {recipe.sparse.below:g}")
    if recipe.long is not None:
        share, size = data.share_with_more_than(recipe.window.size), recipe.window.size
        reasons.append(f"{share:.1%} of users have more than {size:,} events, long from {recipe.long.from_share:.0%}")
    if reasons:
        kept = "" if form == asked_for else f"; {before} is of {_tables(form)}, which is kept"
        _tell(f"{'; '.join(reasons)}: the recipe's {_tables(asked_for)}{kept}", processes)
    return form, recipe.settled(form)


def _form_of(manifest: artifact.Manifest, recipe: Recipe, asked_for: str) -> str:
    """The tables of this recipe that a checkpoint was made by; checkpoints of before do not say."""
    form = manifest.config.get("form")
    if form is None:  # none of them had windows for long histories
        form = asked_for.removesuffix(f"{AND}{LONG}")
    return recipe.form_like(form)


def _tables(form: str) -> str:
    return "[" + form.replace(AND, "] and [") + "]"


def _tell(line: str, processes: Processes) -> None:
    if processes.is_first:
        Console(stderr=True, soft_wrap=True).print(line, highlight=False, markup=False)


def _write(model: SequenceModel, fitted: Fitted, data: Dataset, folder: Path) -> None:
    names = [name for name, _ in model.named_parameters()]
    save_weights(model.state_dict(), folder)
    save_weights(dict(zip(names, fitted.weights, strict=True)), folder, START_FILE)
    data.vocabulary.save(folder)
    curve.save(fitted.log, folder)


def _found(fitted: Fitted) -> dict[str, Any]:
    """Settings that validation found."""
    return {
        "fusion": fitted.fusion.model_dump(),
        "temperature": fitted.temperature,
        "new_items": fitted.new_items.plain(),
    }


def _metrics(model: SequenceModel, fitted: Fitted, data: Dataset) -> dict[str, Any]:
    return {
        "epochs": round(fitted.epochs, 4),
        "trained_before_ms": fitted.trained_before_ms,
        "num_rounds": len(fitted.log),
        "validation_ndcg@10": fitted.ndcg,
        "num_items": len(data.vocabulary),
        "events_per_item": round(data.events_per_item, 2),
        "num_threads": torch.get_num_threads(),
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "expected_memory_bytes": fitted.memory_bytes,
        "peak_memory_bytes": peak_bytes(),
        "log": [asdict(row) for row in fitted.log],
    }


def _found_before(refit: Path, data: Dataset, recipe: Recipe) -> Fitted:
    manifest = artifact.verify(refit, "checkpoint")
    artifact.check_parent(manifest, "features", data.manifest, refit)
    fusion = Fusion.from_mapping(manifest.config["fusion"], f"{refit}: fusion")
    if not recipe.training.trend:
        fusion = fusion.model_copy(update={"trend": 0.0})
    new_items = Choice(**manifest.config.get("new_items", {}))
    temperature = float(manifest.config.get("temperature", 1.0))  # checkpoints of before have none
    epochs = float(manifest.metrics["epochs"])
    return Fitted(epochs=epochs, fusion=fusion, temperature=temperature, new_items=new_items)
