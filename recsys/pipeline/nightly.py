"""The nightly job: features → train → gate → refit on all data → publish."""

import json
from pathlib import Path
from typing import Any

from features.build import FeaturesConfig
from optimize import build as optimize_build
from optimize.config import OptimizeConfig
from recsys.contracts.errors import GateError
from recsys.dataset import Protocol
from recsys.evaluation.protocols import MODEL
from recsys.pipeline import road
from recsys.training import train
from recsys.training.config import Recipe

REPORT_FILE = "report.json"
GATE_METRIC = "ndcg@10"
GATE_BASELINE = "popularity"


def run(
    features_config: FeaturesConfig,
    recipe: Recipe,
    optimize_config: OptimizeConfig,
    sources: list[Path],
    state: Path,
    *,
    activate: bool,
    force: bool = False,
) -> tuple[str, dict[str, Any]]:
    """Build tonight's release into `state/releases`; returns its name and the report.

    The gate judges a model trained before the cut: it must rank better than popularity, and its engine
    must answer as its float32 reference does. Then the same recipe is refitted, for as many epochs, on all
    events, and published; `current` moves only if `activate` (or if it is the first release).

    Raises:
        GateError: refused; nothing is published and `current` stays.
    """
    protocol = Protocol.TIME
    tonight = road.run(features_config, recipe, optimize_config, sources, state / "gate", protocol)
    evaluation = tonight.report.to_json()
    state.joinpath(REPORT_FILE).write_text(json.dumps({**evaluation, "seconds": tonight.seconds}, indent=2) + "\n")
    ours, theirs = evaluation[MODEL][GATE_METRIC], evaluation["baselines"][GATE_BASELINE][GATE_METRIC]
    if not ours > theirs and not force:
        raise GateError(
            f"release refused, nothing published: {GATE_METRIC} {ours:.4f}, {GATE_BASELINE} reaches {theirs:.4f}; "
            "look at the log and the recipe, or use --force"
        )
    train.run(
        recipe,
        state / "gate" / "features",
        state / "checkpoint",
        protocol=Protocol.FINAL,
        refit=state / "gate" / "checkpoint",
    )
    name, _ = optimize_build.run(
        optimize_config,
        state / "checkpoint",
        state / "gate" / "features",
        state / "releases",
        activate=activate,
        force=force,
        evaluation=evaluation,
    )
    return name, evaluation
