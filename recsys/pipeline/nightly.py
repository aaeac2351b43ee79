"""The nightly job: features → train → gate → refit on all data → publish."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from features.build import FeaturesConfig
from optimize import build as optimize_build
from optimize.config import OptimizeConfig
from optimize.summaries import SummariesConfig
from recsys.contracts import artifact
from recsys.contracts.artifact import Manifest
from recsys.contracts.errors import GateError
from recsys.contracts.files import write_text
from recsys.contracts.protocol import Protocol
from recsys.evaluation.protocols import MODEL
from recsys.pipeline import road
from recsys.training import train
from recsys.training.config import DENSE, Recipe
from recsys.training.start import mismatch

REPORT_FILE = "report.json"
GATE_METRIC = "ndcg@10"
GATE_BASELINES = ("popularity", "trending")
"""What users are shown without a model."""


class _Checkpoints(NamedTuple):
    """Last night's, before the cut and of all events. Tonight's go on from both, or from neither."""

    gate: Path
    final: Path


def _last_night(state: Path, recipe: Recipe) -> tuple[_Checkpoints | None, str | None]:
    """The checkpoints to go on from, or None and the reason."""
    found = _Checkpoints(state / "gate" / "checkpoint", state / "checkpoint")
    for place in found:
        if not (place / artifact.MANIFEST_NAME).exists():
            return None, "no earlier night"
        manifest = artifact.verify(place, "checkpoint")
        problem = mismatch(manifest, recipe)
        if problem is not None:
            return None, f"the last night's checkpoint: {problem}"
        recipe = recipe.settled(manifest.config.get("form", DENSE))  # both are of one model
    return found, None


def _no_better(evaluation: dict[str, Any]) -> list[str]:
    """Why the model is not worth serving, if it is not."""
    ours = evaluation[MODEL][GATE_METRIC]
    theirs = {name: evaluation["baselines"][name][GATE_METRIC] for name in GATE_BASELINES}
    best = max(theirs, key=lambda name: float(theirs[name]))
    return [] if ours > theirs[best] else [f"{GATE_METRIC} {ours:.4f}, {best} reaches {theirs[best]:.4f}"]


def run(
    features_config: FeaturesConfig,
    recipe: Recipe,
    optimize_config: OptimizeConfig,
    sources: Sequence[str | Path],
    state: Path,
    *,
    activate: bool,
    start: bool,
    force: bool = False,
) -> tuple[str, Manifest, dict[str, Any]]:
    """Build tonight's release into `state/releases`; returns its name, its manifest and the report.

    The gate judges a model trained before the cut: it must rank better than popularity, and its engine
    must answer as its float32 reference does. Then the same recipe is refitted, for as many epochs, on all
    events, and published; `current` moves only if `activate` (or if it is the first release).
    With `force` nothing is refused: the manifest names every reason, before the cut and after the refit, in
    `forced_past_gate`. With `start` both trainings go on from last night's, where there is one of the same model: the
    report says so.

    Raises:
        GateError: refused; nothing is published and `current` stays.
    """
    protocol = Protocol.TIME
    last, why_scratch = _last_night(state, recipe) if start else (None, "asked to")
    tonight = road.run(
        features_config,
        recipe,
        optimize_config.model_copy(update={"summaries": SummariesConfig(max_users=0)}),  # nobody is answered by it
        sources,
        state / "gate",
        protocol,
        force=force,
        start=last and last.gate,
    )
    form = tonight.checkpoint.config["form"]
    started = {"started": last is not None, "why_from_scratch": why_scratch, "form": form}
    evaluation = {**tonight.report.to_json(), **started}
    write_text(state / REPORT_FILE, json.dumps({**evaluation, "seconds": tonight.seconds}, indent=2) + "\n")
    no_better = _no_better(evaluation)
    if no_better and not force:
        raise GateError(
            f"release refused, nothing published: {no_better[0]}; look at the log and the recipe, or use --force"
        )
    before_the_cut = [f"before the cut: {reason}" for reason in tonight.release.metrics["forced_past_gate"]]
    train.run(
        recipe,
        state / "gate" / "features",
        state / "checkpoint",
        protocol=Protocol.FINAL,
        refit=state / "gate" / "checkpoint",
        start=last and last.final,
    )
    name, manifest = optimize_build.run(
        optimize_config,
        state / "checkpoint",
        state / "gate" / "features",
        state / "releases",
        activate=activate,
        force=force,
        forced_past=[*before_the_cut, *no_better],
        evaluation=evaluation,
    )
    return name, manifest, evaluation
