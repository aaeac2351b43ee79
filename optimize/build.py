"""From a checkpoint to a published release: engine, index, vocabulary, report, gate."""

import json
import time
from pathlib import Path
from typing import Any

from optimize import gate, report
from optimize.config import OptimizeConfig
from optimize.export import build_engine, item_vectors
from recsys import dataset
from recsys.contracts import artifact
from recsys.contracts.ids import Vocabulary
from recsys.dataset import Protocol
from recsys.model.checkpoint import Checkpoint
from recsys.runtime.index import ItemIndex
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
        precision = build_engine(checkpoint, writer.folder, config.bits)
        engine = OpenVinoEngine(writer.folder, num_threads=config.num_threads, precision=precision)
        index = ItemIndex.build(item_vectors(checkpoint))
        index.save(writer.folder)
        checkpoint.vocabulary.save(writer.folder)
        TransitionTable.fit(data.fit, len(checkpoint.vocabulary)).save(writer.folder)
        fidelity = report.compare(
            checkpoint.model, engine, index, data, checkpoint.window, config.num_check_users, config.seed
        )
        reasons = gate.verdict(fidelity, config.gate)
        if not force:
            gate.check(fidelity, config.gate)
        (writer.folder / REPORT_FILE).write_text(json.dumps(fidelity.model_dump(), indent=2) + "\n")
        manifest = writer.commit(
            parents={
                "checkpoint": checkpoint.manifest.digest,
                "features": data.manifest.digest,
                VOCABULARY_PARENT: artifact.sha256_of(writer.folder / Vocabulary.FILE_NAME),
            },
            config={
                **config.model_dump(mode="json"),
                "precision": precision,
                "protocol": data.protocol.value,
                "fusion": checkpoint.manifest.config["fusion"],
                "window": checkpoint.window.model_dump(),
            },
            metrics={
                **fidelity.model_dump(),
                "fitted_on": "all events"
                if data.protocol is Protocol.FINAL
                else f"events before the {data.protocol.value} cut",
                "fitted_before_ms": data.split_ms if data.protocol is Protocol.TIME else None,
                "evaluation_before_refit": evaluation,
                "forced_past_gate": reasons if force else [],
                "num_items": len(checkpoint.vocabulary),
                "seconds": round(time.monotonic() - started, 2),
            },
        )
    if activate or artifact.current_name(out) is None:
        artifact.set_current(out, name)
    return name, manifest
