"""From a checkpoint to a published release: engine, items, vocabulary, report, gate."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optimize import arithmetic, calibration, cost, gate, index, new_items, quantize, report, summaries, tiers
from optimize.config import CudaConfig, OptimizeConfig
from optimize.export import build_engine
from optimize.steps import Advance, Rules, Steps
from optimize.tensorrt import TensorRtConfig, build_plans
from recsys import dataset
from recsys.contracts import artifact, packing
from recsys.contracts.artifact import ArtifactWriter
from recsys.contracts.errors import GateError
from recsys.contracts.ids import Floats, Vocabulary
from recsys.contracts.precision import Arithmetic, EngineName
from recsys.contracts.protocol import Protocol
from recsys.dataset import Dataset
from recsys.evaluation import looks
from recsys.evaluation.looks import Look
from recsys.model import incremental
from recsys.model.checkpoint import Checkpoint
from recsys.model.summaries import SummaryModel
from recsys.runtime import consistency
from recsys.runtime.engine import Engine
from recsys.runtime.engines import Parts, open_engine
from recsys.runtime.fusion import Fusion
from recsys.runtime.index import IndexChoice, ItemIndex
from recsys.runtime.items import ItemTable
from recsys.runtime.new_items import NewItems
from recsys.runtime.release import VOCABULARY_PARENT, shifts
from recsys.runtime.summaries import SummaryEngine, SummaryWeights
from recsys.transitions import TransitionTable

REPORT_FILE = "report.json"
_TIMES_AS_MANY = 4
"""Users of the gate's next look, where the last one did not decide."""
_RULES = {
    "calibration": Rules(1, ("torch", "transformers")),
    "rounded": Rules(2, ("torch",)),
    "cpu": Rules(4, ("torch", "openvino")),
    "tensorrt": Rules(4, ("torch", "onnx", "onnxscript", "tensorrt", "tensorrt_rtx_cu13_libs")),
    "index": Rules(2, ("torch", "openvino", "faiss-cpu", "faiss-gpu")),
    "methods": Rules(2, ("torch",)),
    "summaries": Rules(1, ("torch", "openvino")),
}
"""What each step depends on besides its settings and parents."""


def run(
    config: OptimizeConfig,
    checkpoint_folder: Path,
    features: Path,
    out: Path,
    *,
    activate: bool = True,
    force: bool = False,
    forced_past: Sequence[str] = (),
    evaluation: dict[str, Any] | None = None,
    advance: Advance = lambda *_: None,
) -> tuple[str, artifact.Manifest]:
    """Build a release into the folder of releases `out`; returns its name and manifest.

    `evaluation` goes into the manifest: what the same recipe reached when it was trained before the cut.
    `forced_past` stands there before the reasons of this gate that `force` goes past: earlier ones of the same night.
    A run that was interrupted goes on after its last finished step (see `optimize/steps.py`).
    What the gate sees of held-out users is a look at the test set, written to `evaluations.jsonl` in `out`.
    `activate` points `current` at it (the first release of a folder always becomes current).

    Raises:
        ConfigError: no engine can be built of the checkpoint's decoder, and why.
        ArtifactError: the checkpoint was not made from these features.
        DataError: the log of evaluations is damaged.
        GateError: the engine is worse than the gate allows, and not `force`. Nothing is published.
    """
    started = time.monotonic()
    checkpoint = Checkpoint.open(checkpoint_folder)
    incremental.check(checkpoint.model.config, checkpoint.window.most_rows)
    data = dataset.load(features, Protocol(checkpoint.manifest.config["protocol"]))
    artifact.check_parent(checkpoint.manifest, "features", data.manifest, checkpoint_folder)
    looks.read(out / looks.LOG_FILE)
    name = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{checkpoint.manifest.digest[:8]}"
    steps = Steps(out, {"checkpoint": checkpoint.manifest.digest, "features": data.manifest.digest}, _RULES, advance)
    artifact.remove_leftovers(out)
    with artifact.writing(out / name, "release") as writer:
        resolved = _config(checkpoint, data, config) | write_parts(checkpoint, data, config, steps, writer)
        resolved |= _arithmetic(config, writer.folder, resolved)
        if config.engine is EngineName.TIERED:
            resolved["tiers"] = _tiers(config, _parts(writer.folder, config, resolved))
        parts = _parts(writer.folder, config, resolved)
        engine = open_engine(config.engine, parts)
        searched = _indexed(checkpoint, data, config, engine, parts, steps, writer, advance)
        _write_reference(checkpoint, engine, parts, searched)
        fidelity = measure(checkpoint, data, config, engine, parts, _index(parts, searched), advance)
        _record_look(out / looks.LOG_FILE, checkpoint, data, fidelity)
        decided = gate.verdict(fidelity, config.gate)
        if not force:
            _check(decided, steps)
        summarised = _summarised(data, config, engine, parts, steps, advance)
        methods = _compared(checkpoint, data, config, steps)
        metrics = {**fidelity.model_dump(), "gate": decided.basis, "relative_error_by_method": methods}
        (writer.folder / REPORT_FILE).write_text(json.dumps(metrics, indent=2) + "\n")
        manifest = writer.commit(
            parents=_parents(checkpoint, data, writer.folder),
            config=resolved,
            metrics={
                **metrics,
                "cost": cost.measure(
                    checkpoint, engine, config.num_threads, config.seed, same_device=config.answers_on_cpu
                ).model_dump(),
                "index": searched,
                "summaries": summarised,
                "fitted_on": _fitted_on(data),
                "fitted_before_ms": data.split_ms if data.protocol is Protocol.TIME else None,
                "evaluation_before_refit": evaluation,
                "forced_past_gate": [*forced_past, *(decided.reasons if force else [])],
                "num_items": len(checkpoint.vocabulary),
                "num_new_items": len(Vocabulary.load(writer.folder)) - len(checkpoint.vocabulary),
                "seconds": round(time.monotonic() - started, 2),
            },
        )
    if activate or artifact.current_name(out) is None:
        artifact.set_current(out, name)
    steps.remove()  # last: a run that is killed before it is done again in no time
    return name, manifest


def _record_look(log: Path, checkpoint: Checkpoint, data: Dataset, fidelity: report.FidelityReport) -> None:
    """The engine against its reference on held-out users, where there are some: no release is out yet."""
    if fidelity.num_held_out_users:
        value = None if fidelity.ndcg10 is None else fidelity.ndcg10.engine
        look = Look.now(data, checkpoint.manifest.digest, value, against=checkpoint.manifest.digest)
        looks.record(log, look)


def _check(decided: gate.Verdict, steps: Steps) -> None:
    """Refuse, and leave nothing behind."""
    try:
        gate.check(decided)
    except GateError:
        steps.remove()
        raise


def write_parts(
    checkpoint: Checkpoint, data: Dataset, config: OptimizeConfig, steps: Steps, writer: ArtifactWriter
) -> dict[str, Any]:
    """Everything that an answer is computed from; what the manifest must say to open it.

    Calibration, rounding and each engine are steps: an interrupted run does not do them again.

    Raises:
        ConfigError: the weights cannot be rounded in groups of this size.
    """
    quantize.check_groups(checkpoint, config)
    settings, size = config.model_dump(mode="json"), checkpoint.window.most_rows

    def calibrate(folder: Path) -> dict[str, Any]:
        calibration.save(quantize.calibrate(checkpoint, data, config), folder)
        return {}

    num_windows = 0 if config.weights is None else config.num_calibration_windows
    steps.run("calibration", {"num_calibration_windows": num_windows, "seed": config.seed}, calibrate)

    def round_(folder: Path) -> dict[str, Any]:
        quantize.save(quantize.rounded(checkpoint, config, calibration.load(steps.folder / "calibration")), folder)
        return {}

    rounding = {name: settings[name] for name in ("bits", "group_size", "compensate")}
    steps.run("rounded", rounding, round_, after="calibration")
    rounded = quantize.load(checkpoint, config, steps.folder / "rounded")

    def cpu(folder: Path) -> dict[str, Any]:
        build_engine(rounded, folder, config.cache, packed=config.packed)
        return {}

    steps.run("cpu", {name: settings[name] for name in ("cache", "packed")}, cpu, after="rounded")
    steps.hand_over("cpu", writer)
    said: dict[str, Any] = {}
    if isinstance(checkpoint.model, SummaryModel):
        SummaryWeights(*checkpoint.model.weights()).save(writer.folder)
    if EngineName.CUDA in config.engines:
        steps.hand_over("rounded", writer)
        said["cuda"] = (config.cuda or CudaConfig()).model_dump()
    if EngineName.TENSORRT in config.engines:
        plan = config.tensorrt or TensorRtConfig()
        done = steps.run(
            "tensorrt",
            plan.model_dump(mode="json"),
            lambda folder: build_plans(rounded, size, plan, folder),
            after="rounded",
        )
        steps.hand_over("tensorrt", writer)
        said["plans"] = done.metrics
    new, vectors_ND = new_items.place_new(checkpoint, data)
    vectors_VD = checkpoint.model.embedding.weight.detach().numpy()
    every_VD = np.concatenate([vectors_VD, vectors_ND])
    ItemTable.of(every_VD, config.items).save(writer.folder)
    if EngineName.REFERENCE in config.engines:
        quantize.save_unrounded(checkpoint.model, every_VD, writer.folder)
    Vocabulary([*checkpoint.vocabulary.items, *new]).save(writer.folder, packed=config.packed)
    placed = new_items.settings(checkpoint, data, vectors_ND, config.new_items_share, config.seed)
    said["new_items"] = placed.model_dump()
    TransitionTable.fit(data.fit, len(checkpoint.vocabulary)).save(writer.folder, packed=config.packed)
    return said


def measure(
    checkpoint: Checkpoint,
    data: Dataset,
    config: OptimizeConfig,
    engine: Engine,
    parts: Parts,
    index: ItemIndex,
    advance: Advance = lambda *_: None,
) -> report.FidelityReport:
    """The engine and the index that will serve, without new items, against the checkpoint.

    By more users where the first do not decide. Inverted lists look a little further here than when they serve, where
    there are new items to be hidden.
    """
    transitions, calibrated = TransitionTable.load(parts.folder), quantize.calibrated(data, config)
    num_users, most = config.num_check_users, max(config.num_check_users, config.gate.most_users)
    while True:
        found = report.compare(
            checkpoint, engine, index, transitions, data, num_users, config.seed, calibrated, advance
        )
        there_are_more = found.num_users == num_users < most
        if not (there_are_more and gate.needs_more_users(found, config.gate)):
            return found
        num_users = min(_TIMES_AS_MANY * num_users, most)


def _write_reference(checkpoint: Checkpoint, engine: Engine, parts: Parts, searched: dict[str, Any]) -> None:
    """What the engine answers here and now: the endpoint compares itself with it."""
    windows = consistency.random_windows(checkpoint.vocabulary.num_events, checkpoint.window)
    reference = consistency.Reference.of(engine, _index(parts, searched), windows, checkpoint.manifest.digest)
    reference.save(parts.folder / consistency.REFERENCE_FILE)


def _index(parts: Parts, searched: dict[str, Any]) -> ItemIndex:
    return ItemIndex.open(parts.folder, parts.items, IndexChoice(**searched["choice"]), _shifts(parts))


def _shifts(parts: Parts) -> Floats | None:
    fusion = Fusion.from_mapping(parts.config["fusion"], f"{parts.folder}: fusion")
    return shifts(Vocabulary.load(parts.folder), NewItems(**parts.config["new_items"]), fusion)


def _indexed(
    checkpoint: Checkpoint,
    data: Dataset,
    config: OptimizeConfig,
    engine: Engine,
    parts: Parts,
    steps: Steps,
    writer: ArtifactWriter,
    advance: Advance,
) -> dict[str, Any]:
    """The index, a step: its choice, its recall on real user vectors, its latency."""
    shift_V = _shifts(parts)

    def make(folder: Path) -> dict[str, Any]:
        windows = calibration.sample(data.fit, checkpoint.window, config.index.num_queries, config.seed + 2)
        return index.build(parts.items, engine.encode(windows), config.index, folder, shift_V=shift_V, advance=advance)

    settings = {
        "items": config.items.value,
        "engine": config.engine.value,
        "new_items": parts.config["new_items"],
        "trend": parts.config["fusion"].get("trend", 0.0),
        **config.index.model_dump(),
    }
    done = steps.run("index", settings, make, after="rounded")
    steps.hand_over("index", writer)
    return done.metrics


def _summarised(
    data: Dataset, config: OptimizeConfig, engine: Engine, parts: Parts, steps: Steps, advance: Advance
) -> dict[str, Any] | None:
    """Summaries of the most active users; None where windows leave none, or the engine reads none that are rounded."""
    if not isinstance(engine, SummaryEngine) or config.engine is EngineName.REFERENCE:
        return None
    names = ("items", "engine", "cache", "arithmetic", "cuda", "tensorrt", "tiers")
    settings = {name: parts.config.get(name) for name in names}
    window = parts.window
    return summaries.build(engine, data.fit, window, config.summaries, steps, settings, parts.folder, advance)


def _parts(folder: Path, config: OptimizeConfig, resolved: dict[str, Any]) -> Parts:
    return Parts(folder=folder, items=ItemTable.load(folder), config=resolved, num_threads=config.num_threads)


def _arithmetic(config: OptimizeConfig, folder: Path, resolved: dict[str, Any]) -> dict[str, Any]:
    def opened(each: Arithmetic) -> Engine:
        return open_engine(EngineName.CPU, _parts(folder, config, resolved | {"arithmetic": each}))

    return arithmetic.choose(config.arithmetic, opened, len(ItemTable.load(folder)), config.seed)


def _tiers(config: OptimizeConfig, parts: Parts) -> dict[str, Any]:
    """The engines of the tiers and the length at which they take over, measured here unless it is given."""
    named = {"short": config.tiered.short, "long": config.tiered.long}
    if config.tiered.threshold is not None:
        return {**named, "threshold": config.tiered.threshold, "by_length": []}
    short, long = (open_engine(EngineName(name), parts) for name in named.values())
    return {**named, **tiers.measure(short, long, len(parts.items), seed=config.seed)}


def _compared(checkpoint: Checkpoint, data: Dataset, config: OptimizeConfig, steps: Steps) -> dict[str, float]:
    """Error of every way to round, a step."""

    def make(_: Path) -> dict[str, Any]:
        statistics = calibration.load(steps.folder / "calibration")
        return dict(quantize.compare_methods(checkpoint, data, config, statistics))

    settings = config.model_dump(mode="json")
    names = ("bits", "group_size", "num_calibration_windows", "num_comparison_windows", "seed")
    done = steps.run("methods", {name: settings[name] for name in names}, make, after="calibration")
    return dict(done.metrics)


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
        "temperature": checkpoint.manifest.config.get("temperature", 1.0),  # checkpoints of before have none
        "window": checkpoint.window.model_dump(),
        "history_types": data.manifest.config.get("history_types", []),
        "model": checkpoint.manifest.config["model"],
    }


def _fitted_on(data: Dataset) -> str:
    if data.protocol is Protocol.FINAL:
        return "all events"
    return f"events before the {data.protocol.value} cut"
