"""The whole road in one call: features, train, optimize, evaluate. The demo and benchmarks walk it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from features.build import FeaturesConfig
from optimize import build as optimize_build
from optimize.config import OptimizeConfig
from recsys.contracts.artifact import Manifest
from recsys.contracts.protocol import Protocol
from recsys.evaluation.summary import Evaluation
from recsys.pipeline import evaluation, nightly_features
from recsys.training import train
from recsys.training.config import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class RoadResult:
    """What came out of each stage."""

    features: Manifest
    checkpoint: Manifest
    release: Manifest
    report: Evaluation
    seconds: dict[str, float]
    """Wall time by stage."""


def run(
    features_config: FeaturesConfig,
    recipe: Recipe,
    optimize_config: OptimizeConfig,
    sources: Sequence[str | Path],
    folder: Path,
    protocol: Protocol,
    *,
    force: bool = False,
    start: Path | None = None,
) -> RoadResult:
    """Walk the road inside `folder`: features/, checkpoint/, releases/.

    `force`: past the gate, marked. `start`: a checkpoint that training goes on from.
    """
    marks = [time.monotonic()]
    features = nightly_features.run(features_config, sources, folder / "features")
    marks.append(time.monotonic())
    checkpoint = train.run(recipe, folder / "features", folder / "checkpoint", protocol=protocol, start=start)
    marks.append(time.monotonic())
    _, release = optimize_build.run(
        optimize_config, folder / "checkpoint", folder / "features", folder / "releases", force=force
    )
    marks.append(time.monotonic())
    report = evaluation.run(folder / "releases", folder / "features", num_threads=optimize_config.num_threads)
    marks.append(time.monotonic())
    stages = ("features", "train", "optimize", "evaluate")
    seconds = {stage: round(marks[i + 1] - marks[i], 2) for i, stage in enumerate(stages)}
    return RoadResult(features=features, checkpoint=checkpoint, release=release, report=report, seconds=seconds)
