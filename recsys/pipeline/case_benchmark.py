"""The mission's table: an unoptimised pipeline (all ids, full attention over 2,048, float32, eager) against ours."""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from features import build as features_build
from optimize import build as optimize_build
from optimize import quantize
from optimize.config import OptimizeConfig
from recsys import dataset
from recsys.contracts import artifact
from recsys.contracts.precision import ItemFormat
from recsys.dataset import Dataset, Protocol
from recsys.evaluation.metrics import per_user_metrics
from recsys.evaluation.statistics import PairedDifference, paired_difference
from recsys.model.checkpoint import Checkpoint
from recsys.pipeline import case_latency
from recsys.pipeline.case_latency import CONTEXT, Contenders
from recsys.pipeline.demo import sample_log
from recsys.runtime.recommender import Recommender
from recsys.runtime.release import Release
from recsys.training import train
from recsys.training.config import Recipe
from recsys.windows import WindowConfig

PROCESS_TIMEOUT_S = 300


@dataclass(frozen=True, slots=True)
class _Side:
    """One pipeline's artifacts."""

    features: Path
    checkpoint: Path
    release: Path


def run(
    features: Path | None, recipe: Recipe, config: OptimizeConfig, *, num_seeds: int, num_rounds: int, force: bool
) -> dict[str, Any]:
    """Train both with the same recipe and budget, then measure latency, memory, disk and accuracy.

    Without `features` those of the bundled sample are built.

    Raises:
        GateError: the engine is worse than the gate allows, and not `force`.
    """
    with tempfile.TemporaryDirectory(prefix="recsys-case-") as folder:
        if features is None:
            features = Path(folder) / "features"
            features_build.run(features_build.FeaturesConfig(), [sample_log(Path(folder))], features)
        pairs = [_pair(features, recipe, seed, config, Path(folder), force) for seed in range(num_seeds)]
        before, after = pairs[0]
        float_release = _release(after.checkpoint, features, _float(config), Path(folder) / "float", force=True)
        latency = _latency(before, after, float_release, config.num_threads, num_rounds)
        memory = {
            "before": _process("before", before.checkpoint, config.num_threads),
            "after": _process("after", after.release, config.num_threads),
        }
        disk = {"before": _size(before.release), "float32": _size(float_release), "after": _size(after.release)}
        accuracy = _accuracy(pairs)
        manifest = artifact.read_manifest(after.release)
        return {
            **_headline(latency, memory, disk, accuracy, manifest.metrics),
            "awq_error_ratio_4": _error_ratio(_methods(after, features, config, bits=4)),
            # Measured only where the peer is installed beside this project; not built into this command.
            "replay_ratio_cold": None,
            "replay_ratio_warm": None,
            "latency_ms": latency,
            "memory": memory,
            "disk_bytes": disk,
            "num_items": {side: len(Release.open(path.release).vocabulary) for side, path in _named(pairs[0]).items()},
            "num_seeds": num_seeds,
            "gate": manifest.metrics["gate"],
            "summaries": "none: an answer reads the open window alone, so cold with and without summaries is the same",
        }


def _named(pair: tuple[_Side, _Side]) -> dict[str, _Side]:
    return {"before": pair[0], "after": pair[1]}


def _pair(
    features: Path, recipe: Recipe, seed: int, config: OptimizeConfig, folder: Path, force: bool
) -> tuple[_Side, _Side]:
    """Both pipelines of one seed, trained before the cut."""
    values = recipe.model_dump()
    values["training"]["seed"] = seed
    ours = Recipe.from_mapping(values, "recipe")
    full = WindowConfig(size=CONTEXT, overlap_share=1 / CONTEXT)
    unoptimised = Recipe.from_mapping({**values, "window": full.model_dump()}, "recipe")
    sides = []
    for name, one, settings in (("before", unoptimised, _float(config)), ("after", ours, config)):
        place = folder / f"{name}-{seed}"
        data = features if name == "after" else _with_all_items(features, place / "features")
        train.run(one, data, place / "checkpoint", protocol=Protocol.TIME)
        release = _release(place / "checkpoint", data, settings, place / "releases", force=force or name == "before")
        sides.append(_Side(data, place / "checkpoint", release))
    return sides[0], sides[1]


def _with_all_items(features: Path, place: Path) -> Path:
    """The same histories without pruning: every item with an event is kept."""
    manifest = artifact.verify(features, "features")
    with artifact.writing(place, "features") as writer:
        for name in manifest.files:
            (writer.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (writer.folder / name).write_bytes((features / name).read_bytes())
        writer.commit(
            parents={**manifest.parents, "features": manifest.digest},
            config={**manifest.config, "min_count": 1},
            metrics=manifest.metrics,
        )
    return place


def _float(config: OptimizeConfig) -> OptimizeConfig:
    return config.model_copy(update={"bits": 32, "items": ItemFormat.FLOAT32, "packed": False})


def _release(checkpoint: Path, features: Path, config: OptimizeConfig, out: Path, *, force: bool) -> Path:
    name, _ = optimize_build.run(config, checkpoint, features, out, force=force)
    return out / name


def _latency(before: _Side, after: _Side, float_release: Path, num_threads: int, num_rounds: int) -> dict[str, float]:
    data = dataset.load(after.features, Protocol.TIME)
    contenders = Contenders(
        Checkpoint.open(before.checkpoint),
        Checkpoint.open(after.checkpoint),
        Release.open(float_release, num_threads=num_threads),
        Release.open(after.release, num_threads=num_threads),
    )
    return case_latency.measure(contenders, data.fit.tokens[: 2 * CONTEXT], num_rounds, num_threads)


def _process(kind: str, folder: Path, num_threads: int) -> dict[str, float]:
    command = [sys.executable, "-m", "recsys.pipeline.case_process", kind, str(folder), str(num_threads)]
    done = subprocess.run(command, check=True, capture_output=True, timeout=PROCESS_TIMEOUT_S)  # noqa: S603
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def _size(release: Path) -> int:
    return sum(entry.size_bytes for entry in artifact.read_manifest(release).files.values())


def _accuracy(pairs: list[tuple[_Side, _Side]]) -> PairedDifference:
    """NDCG@10 of ours against the other's, on the users both know; values of a user are means over seeds."""
    after, before = [], []
    for old, new in pairs:
        ours, theirs = _ndcg(new), _ndcg(old)
        users = sorted(ours.keys() & theirs.keys())
        after.append([ours[user] for user in users])
        before.append([theirs[user] for user in users])
    return paired_difference(np.mean(after, axis=0), np.mean(before, axis=0), seed=0)


def _ndcg(side: _Side) -> dict[str, float]:
    """NDCG@10 by user; a target outside the vocabulary is a miss."""
    data: Dataset = dataset.load(side.features, Protocol.TIME)
    test = data.test_set()
    users = [u for u in range(len(test.contexts)) if len(test.contexts[u]) and len(test.targets[u])]
    ranked = Recommender.load(side.release).rank([test.contexts[u] for u in users], 10)
    values = per_user_metrics(ranked, [test.targets[u] for u in users], [10])["ndcg@10"]
    return {test.contexts.user_ids[u]: float(value) for u, value in zip(users, values, strict=True)}


def _methods(side: _Side, features: Path, config: OptimizeConfig, *, bits: int) -> dict[str, float]:
    data = dataset.load(features, Protocol.TIME)
    settings = config.model_copy(update={"bits": bits, "group_size": None})
    return quantize.compare_methods(Checkpoint.open(side.checkpoint), data, settings)


def _error_ratio(methods: dict[str, float]) -> float:
    """What the release builder does against plain rounding."""
    return round(methods["AWQ, compensated"] / methods["plain rounding"], 4)


def _headline(
    latency: dict[str, float],
    memory: dict[str, dict[str, float]],
    disk: dict[str, int],
    accuracy: PairedDifference,
    fidelity: dict[str, Any],
) -> dict[str, Any]:
    losses = [fidelity[name]["high"] for name in ("recall10", "ndcg10") if fidelity[name]]
    return {
        "latency_ratio_cold": round(latency["before"] / latency["quantization"], 2),
        "latency_ratio_warm": round(latency["before"] / latency["cache"], 2),
        "memory_ratio": round(memory["after"]["peak_mb"] / memory["before"]["peak_mb"], 4),
        "disk_ratio": round(disk["after"] / disk["before"], 4),
        "accuracy_change": round(accuracy.relative, 5),
        "accuracy_change_low": round(accuracy.relative_low, 5),
        "quantization_loss_upper": round(max(losses), 5) if losses else None,
        "top10_overlap": round(fidelity["top10_overlap"], 5),
        "awq_error_ratio_8": _error_ratio(fidelity["relative_error_by_method"]),
        "peak_mb": memory["after"]["peak_mb"],
        "load_s": memory["after"]["load_s"],
    }
