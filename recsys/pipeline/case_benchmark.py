"""The mission's table: an unoptimised pipeline (all ids, full attention over 2,048, float32, eager) against ours.

Full attention reads two windows of the recipe; 2,048 are those of the default's.
"""

import itertools
import json
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from features import build as features_build
from optimize import build as optimize_build
from optimize import quantize
from optimize.config import OptimizeConfig
from recsys import dataset
from recsys.contracts import artifact
from recsys.contracts.errors import DataError
from recsys.contracts.ids import PAD
from recsys.contracts.precision import ItemFormat
from recsys.contracts.protocol import Protocol
from recsys.dataset import Dataset
from recsys.evaluation import looks
from recsys.evaluation.looks import Look
from recsys.evaluation.metrics import per_user_metrics
from recsys.evaluation.statistics import PairedDifference, paired_difference
from recsys.model.checkpoint import Checkpoint
from recsys.pipeline import case_answers, case_latency, case_replay
from recsys.pipeline.case_answers import Way
from recsys.pipeline.case_latency import Contenders, context, lengths
from recsys.pipeline.demo import sample_log
from recsys.pipeline.kept_runs import kept_looks, same_settings, workplace
from recsys.runtime.recommender import Recommender
from recsys.runtime.release import Release
from recsys.training import train
from recsys.training.config import Recipe
from recsys.windows import WindowConfig

PROCESS_TIMEOUT_S = 300
SETTINGS_FILE = "case.json"


@dataclass(frozen=True)
class _Side:
    """One pipeline's artifacts."""

    features: Path
    checkpoint: Path
    release: Path
    way: Way = "engine"
    """How histories are encoded when accuracy is measured."""

    @property
    def arithmetic(self) -> str:
        """What the release's engine computes in."""
        found: str = artifact.read_manifest(self.release).config["arithmetic"]
        return found

    @cached_property
    def ndcg(self) -> dict[str, float]:
        """NDCG@10 of every user with a target, by user_id."""
        return _ndcg(self)


def run(
    features: Path | None,
    recipe: Recipe,
    config: OptimizeConfig,
    *,
    num_seeds: int,
    num_rounds: int,
    force: bool,
    out: Path | None = None,
) -> dict[str, Any]:
    """Train all sides with the same recipe and budget, then measure latency, memory, disk and accuracy.

    Without `features` those of the bundled sample are built. What is trained and built is kept in `out`, if given, and
    taken from there: a killed run goes on, and seeds can be added.

    Raises:
        GateError: the engine is worse than the gate allows, and not `force`.
        DataError: `out` holds a case of other features or with other settings.
    """
    with workplace(out) as folder:
        if features is None:
            features = folder / "features"
            features_build.run(features_build.FeaturesConfig(), [sample_log(folder)], features)
        data = dataset.load(features, Protocol.TIME)
        recipe = recipe.for_log(data)  # the same for all sides
        settings = {
            "recipe": recipe.model_dump(mode="json"),
            "optimize": config.model_dump(mode="json"),
            "features": artifact.verify(features, "features").digest,
        }
        same_settings(folder / SETTINGS_FILE, settings)
        runs = [_sides(features, recipe, seed, config, folder, force) for seed in range(num_seeds)]
        before, float_after, after = (runs[0][name] for name in ("before", "window", "quantization"))
        contenders = Contenders(
            Checkpoint.open(before.checkpoint),
            Checkpoint.open(after.checkpoint),
            Release.open(float_after.release, num_threads=config.num_threads),
            Release.open(after.release, num_threads=config.num_threads),
        )
        num_read = context(recipe.window)
        events = data.fit.tokens[: 2 * num_read]
        shape = contenders.after.model.config, len(contenders.release.vocabulary), num_read
        with case_replay.running(*shape, config.num_threads) as peer:
            peers = {} if peer is None else {"replay": peer.answer}
            latency = case_latency.measure(contenders, events, num_rounds, config.num_threads, peers)
        process = partial(_process, num_threads=config.num_threads, of_lengths=lengths(recipe.window))
        memory = {
            **{name: process("eager", runs[0][name].checkpoint) for name in ("before", "pruning", "window")},
            "engine": process("release", float_after.release),
            "quantization": process("release", after.release),
            "cache": process("sessions", after.release),
        }
        disk = {"before": _size(before.release), "float32": _size(float_after.release), "after": _size(after.release)}
        accuracy = _accuracy(runs, "before", "quantization")
        manifest = artifact.read_manifest(after.release)
        return {
            **_headline(latency, memory, disk, accuracy, manifest.metrics),
            **_error_ratios(manifest.metrics["relative_error_by_method"], bits=8),
            **_error_ratios(_methods(after, features, config, bits=4), bits=4),
            "replay_ratio_cold": _replay_ratio(latency, "quantization"),
            "replay_ratio_warm": _replay_ratio(latency, "cache"),
            "replay": peer and {"p50_ms": latency["replay"], "load_s": peer.load_s, "peak_mb": peer.peak_mb},
            "latency_ms": latency,
            "users_per_second": case_latency.throughput(contenders, events, num_rounds),
            "accuracy_by_cause": _by_cause(runs),
            "memory": memory,
            "cache": config.cache.value,
            "arithmetic": {name: runs[0][name].arithmetic for name in ("engine", "quantization")},
            "disk_bytes": disk,
            "num_items": {
                name: len(Release.open(side.release).vocabulary)
                for name, side in (("before", before), ("after", after))
            },
            "num_seeds": num_seeds,
            "window": recipe.window.model_dump(),
            **kept_looks(out),
            "gate": manifest.metrics["gate"],
            **_without_summaries(latency, manifest.metrics.get("summaries")),
        }


def _sides(
    features: Path, recipe: Recipe, seed: int, config: OptimizeConfig, folder: Path, force: bool
) -> dict[str, _Side]:
    """The pipelines of one seed, trained before the cut; each switches one more thing on, as `latency_ms` names it."""
    values = recipe.model_dump()
    values["training"]["seed"] = seed
    ours = Recipe.from_mapping(values, "recipe")
    num_read = context(recipe.window)
    window = WindowConfig(size=num_read, overlap_share=1 / num_read)
    full = Recipe.from_mapping({**values, "window": window.model_dump()}, "recipe")
    all_items = _with_all_items(features, folder / f"all-items-{seed}")
    plain = _float(config)
    sides = {
        "before": _side(full, all_items, plain, folder / f"before-{seed}", "full attention"),
        "pruning": _side(full, features, plain, folder / f"pruning-{seed}", "full attention"),
        "window": _side(ours, features, plain, folder / f"window-{seed}", "eager"),
    }
    checkpoint = sides["window"].checkpoint
    release = _release(checkpoint, features, config, folder / f"quantization-{seed}", force=force)
    return {
        **sides,
        "engine": _Side(features, checkpoint, sides["window"].release),
        "quantization": _Side(features, checkpoint, release),
        "cache": _Side(features, checkpoint, release, "sessions"),
    }


def _side(recipe: Recipe, features: Path, config: OptimizeConfig, place: Path, way: Way) -> _Side:
    if not (place / "checkpoint" / artifact.MANIFEST_NAME).exists():
        train.run(recipe, features, place / "checkpoint", protocol=Protocol.TIME)
    release = _release(place / "checkpoint", features, config, place / "releases", force=True)
    return _Side(features, place / "checkpoint", release, way)


def _with_all_items(features: Path, place: Path) -> Path:
    """The same histories without pruning: every item with an event is kept."""
    if (place / artifact.MANIFEST_NAME).exists():
        return place
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
    return config.model_copy(
        update={"bits": 32, "items": ItemFormat.FLOAT32, "packed": False, "num_comparison_windows": 0}
    )


def _release(checkpoint: Path, features: Path, config: OptimizeConfig, out: Path, *, force: bool) -> Path:
    if artifact.current_name(out) is None:
        optimize_build.run(config, checkpoint, features, out, force=force)
    return artifact.resolve_release(out)


def _process(kind: str, folder: Path, num_threads: int, of_lengths: list[int]) -> dict[str, float]:
    arguments = kind, str(folder), str(num_threads), ",".join(map(str, of_lengths))
    command = [sys.executable, "-m", "recsys.pipeline.case_process", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PROCESS_TIMEOUT_S)  # noqa: S603
    if done.returncode:
        raise DataError(f"{' '.join(command[1:])} failed: {done.stderr[-300:].strip()}")
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def _size(release: Path) -> int:
    return sum(entry.size_bytes for entry in artifact.read_manifest(release).files.values())


def _accuracy(runs: list[dict[str, _Side]], old: str, new: str) -> PairedDifference:
    """NDCG@10 of one side against another's; values of a user are means over seeds.

    Users are those with an event before the cut, on whatever item: who has no kept one stays in it.
    """
    users = dataset.load(runs[0]["before"].features, Protocol.TIME).test_set().contexts.user_ids
    after, before = ([[sides[name].ndcg[user] for user in users] for sides in runs] for name in (new, old))
    return paired_difference(np.mean(after, axis=0), np.mean(before, axis=0), seed=0)


def _by_cause(runs: list[dict[str, _Side]]) -> dict[str, dict[str, float]]:
    """What each step alone changed of NDCG@10, relative, with its interval."""
    names = list(runs[0])
    found = {new: _accuracy(runs, old, new) for old, new in itertools.pairwise(names)}
    return {
        name: {
            "change": round(one.relative, 5),
            "low": round(one.relative_low, 5),
            "high": round(one.relative_high, 5),
        }
        for name, one in found.items()
    }


def _replay_ratio(latency: dict[str, float], step: str) -> float | None:
    """How many times faster than the peer, which encodes the whole history for every answer."""
    return round(latency["replay"] / latency[step], 2) if "replay" in latency else None


def _without_summaries(latency: dict[str, float], stored: dict[str, Any] | None) -> dict[str, Any]:
    """The cold ratio with no summary at hand, and what those of the most active users cost; None without summaries."""
    milliseconds = latency.get(case_latency.WITHOUT_SUMMARIES)
    ratio = milliseconds and round(latency["before"] / milliseconds, 2)
    return {"latency_ratio_cold_without_summaries": ratio, "summaries": stored}


def _ndcg(side: _Side) -> dict[str, float]:
    """NDCG@10 by user, a look that the log beside the release gets; a target outside the vocabulary is a miss.

    A user without a kept event gets popular items, as from the endpoint.
    """
    data: Dataset = dataset.load(side.features, Protocol.TIME)
    test, recommender = data.test_set(), Recommender.load(side.release)
    ranked_UK = np.full((len(test.contexts) + test.num_cold_users, 10), PAD, dtype=np.int32)
    ranked_UK[: len(test.contexts)] = case_answers.ranked(
        side.way, side.checkpoint, recommender, list(test.contexts), 10
    )
    popular = recommender.release.vocabulary.popular()[:10]
    ranked_UK[len(test.contexts) :, : len(popular)] = popular
    values = per_user_metrics(ranked_UK, [*test.targets, *test.cold_targets], [10])["ndcg@10"]
    look = Look.now(data, artifact.read_manifest(side.release).digest, float(values.mean()))
    looks.record(side.release.parent / looks.LOG_FILE, look)
    return dict(zip([*test.contexts.user_ids, *test.cold_user_ids], values.tolist(), strict=True))


def _methods(side: _Side, features: Path, config: OptimizeConfig, *, bits: int) -> dict[str, float]:
    data = dataset.load(features, Protocol.TIME)
    settings = config.model_copy(update={"bits": bits, "group_size": None})
    checkpoint = Checkpoint.open(side.checkpoint)
    return quantize.compare_methods(checkpoint, data, settings, quantize.calibrate(checkpoint, data, settings))


def _error_ratios(methods: dict[str, float], *, bits: int) -> dict[str, float]:
    """Relative error of AWQ alone, and with each rounding error made up for (GPTQ), by plain rounding's."""
    named = {"awq_error_ratio": "AWQ", "awq_compensated_error_ratio": "AWQ, compensated"}
    return {f"{key}_{bits}": round(methods[name] / methods["plain rounding"], 4) for key, name in named.items()}


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
        "memory_ratio": round(memory["quantization"]["peak_mb"] / memory["before"]["peak_mb"], 4),
        "disk_ratio": round(disk["after"] / disk["before"], 4),
        "accuracy_change": round(accuracy.relative, 5),
        "accuracy_change_low": round(accuracy.relative_low, 5),
        "quantization_loss_upper": round(max(losses), 5) if losses else None,
        "top10_overlap": round(fidelity["top10_overlap"], 5),
        "peak_mb": memory["quantization"]["peak_mb"],
        "load_s": memory["quantization"]["load_s"],
    }
