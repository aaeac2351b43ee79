"""From a checkpoint to a published release: engine, items, vocabulary, report, gate."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from optimize import gate, new_items, quantize, report
from optimize.config import OptimizeConfig
from optimize.export import build_engine
from optimize.tensorrt import build_plan
from recsys import dataset
from recsys.contracts import artifact, packing
from recsys.contracts.ids import Vocabulary
from recsys.dataset import Dataset, Protocol
from recsys.model.checkpoint import Checkpoint
from recsys.runtime.index import ItemIndex
from recsys.runtime.items import ItemTable
from recsys.runtime.new_items import NewItems
from recsys.runtime.openvino import OpenVinoEngine
from recsys.runtime.release import VOCABULARY_PARENT
from recsys.transitions import TransitionTable

REPORT_FILE = "report.json"


def run(
    config: OptimizeConfig,
    checkpoint_folder: Path,
    features: Path,
    out: Path,
    *,
    activate: bool = True,
    force: bool = False,
    evaluation: dict[str, Any] | None = None,
) -> tuple[str, artifact.Manifest]:
    """Build a release into the folder of releases `out`; returns its name and manifest.

    `evaluation` goes into the manifest: what the same recipe reached when it was trained before the cut.
    `activate` points `current` at it (the first release of a folder always becomes current).

    Raises:
        ArtifactError: the checkpoint was not made from these features.
        GateError: the engine is worse than the gate allows, and not `force`. Nothing is published.
    """
    started = time.monotonic()
    checkpoint = Checkpoint.open(checkpoint_folder)
    data = dataset.load(features, Protocol(checkpoint.manifest.config["protocol"]))
    artifact.check_parent(checkpoint.manifest, "features", data.manifest, checkpoint_folder)
    name = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{checkpoint.manifest.digest[:8]}"
    with artifact.writing(out / name, "release") as writer:
        placed = write_parts(checkpoint, data, config, writer.folder)
        fidelity = measure(checkpoint, data, config, writer.folder)
        decided = gate.verdict(fidelity, config.gate)
        if not force:
            gate.check(decided)
        methods = quantize.compare_methods(checkpoint, data, config)
        metrics = {**fidelity.model_dump(), "gate": decided.basis, "relative_error_by_method": methods}
        (writer.folder / REPORT_FILE).write_text(json.dumps(metrics, indent=2) + "\n")
        manifest = writer.commit(
            parents=_parents(checkpoint, data, writer.folder),
            config=_config(checkpoint, data, config) | {"new_items": placed.model_dump()},
            metrics={
                **metrics,
                "fitted_on": _fitted_on(data),
                "fitted_before_ms": data.split_ms if data.protocol is Protocol.TIME else None,
                "evaluation_before_refit": evaluation,
                "forced_past_gate": decided.reasons if force else [],
                "num_items": len(checkpoint.vocabulary),
                "num_new_items": len(Vocabulary.load(writer.folder)) - len(checkpoint.vocabulary),
                "seconds": round(time.monotonic() - started, 2),
            },
        )
    if activate or artifact.current_name(out) is None:
        artifact.set_current(out, name)
    return name, manifest


def write_parts(checkpoint: Checkpoint, data: Dataset, config: OptimizeConfig, folder: Path) -> NewItems:
    """Everything that an answer is computed from; returns how new items stand among the others."""
    rounded = quantize.rounded(checkpoint, data, config)
    build_engine(rounded, folder, checkpoint.window.size, config.cache, packed=config.packed)
    if config.tensorrt is not None:
        build_plan(rounded, checkpoint.window.size, config.tensorrt, folder)
    new, vectors_ND = new_items.place_new(checkpoint, data)
    vectors_VD = checkpoint.model.embedding.weight.detach().numpy()
    ItemTable.of(np.concatenate([vectors_VD, vectors_ND]), config.items).save(folder)
    Vocabulary([*checkpoint.vocabulary.items, *new]).save(folder, packed=config.packed)
    placed = new_items.settings(checkpoint, data, vectors_ND, config.new_items_share, config.seed)
    TransitionTable.fit(data.fit, len(checkpoint.vocabulary)).save(folder, packed=config.packed)
    return placed


def measure(checkpoint: Checkpoint, data: Dataset, config: OptimizeConfig, folder: Path) -> report.FidelityReport:
    """The parts in `folder`, read back as the endpoint reads them, against the checkpoint."""
    items = ItemTable.load(folder)
    engine = OpenVinoEngine(
        folder,
        items,
        num_threads=config.num_threads,
        precision=quantize.precision(config),
        window_size=checkpoint.window.size,
        cache=config.cache,
    )
    return report.compare(
        checkpoint,
        engine,
        ItemIndex.build(items.vectors_VD()[: len(checkpoint.vocabulary)]),
        TransitionTable.load(folder),
        data,
        config.num_check_users,
        config.seed,
    )


def _parents(checkpoint: Checkpoint, data: Dataset, folder: Path) -> dict[str, str]:
    return {
        "checkpoint": checkpoint.manifest.digest,
        "features": data.manifest.digest,
        VOCABULARY_PARENT: artifact.sha256_of(packing.found(folder / Vocabulary.FILE_NAME)),
    }


def _config(checkpoint: Checkpoint, data: Dataset, config: OptimizeConfig) -> dict[str, Any]:
    return {
        **config.model_dump(mode="json"),
        "precision": quantize.precision(config),
        "protocol": data.protocol.value,
        "fusion": checkpoint.manifest.config["fusion"],
        "window": checkpoint.window.model_dump(),
    }


def _fitted_on(data: Dataset) -> str:
    if data.protocol is Protocol.FINAL:
        return "all events"
    return f"events before the {data.protocol.value} cut"
