"""From a raw log to figures: the whole road once a seed, and other libraries on the very same split."""

from pathlib import Path
from statistics import mean, stdev
from typing import Any

from features.build import FeaturesConfig
from optimize.config import OptimizeConfig
from recsys.contracts.protocol import Protocol
from recsys.dataset import Dataset
from recsys.evaluation.baselines import Ranker
from recsys.evaluation.protocols import MODEL
from recsys.pipeline import evaluation, road
from recsys.pipeline.peers import KINDS, PeerRanker
from recsys.pipeline.road import RoadResult
from recsys.training.config import Recipe

SPREAD = ("recall@10", "hit_rate@10", "ndcg@10", "map@10", "mrr", "coverage@10")
SPREAD_OF_NEXT = ("recall@10", "ndcg@10", "mrr")
"""Figures whose spread over seeds is reported: of all targets, and of the next one alone."""


def run(
    features_config: FeaturesConfig,
    recipe: Recipe,
    optimize_config: OptimizeConfig,
    sources: list[Path],
    folder: Path,
    protocol: Protocol,
    *,
    num_seeds: int = 1,
    with_peers: bool = False,
) -> dict[str, Any]:
    """Evaluate's values for the recipe's own seed, seconds by stage, and mean and spread over seeds.

    Nothing is published for use here, so a gate that would refuse is reported instead (`gate_reasons`). With
    peers, RecTools' transformers train for as long as ours did, on as many threads, and stand among the baselines.
    """
    first = _walk(features_config, recipe, optimize_config, sources, folder / "0", protocol)
    report = first.report
    if with_peers:
        threads, seconds = first.checkpoint.metrics["num_threads"], first.seconds["train"]

        def peers(data: Dataset, k: int) -> dict[str, Ranker]:
            rankers = [PeerRanker(kind, data, k, seconds=seconds, num_threads=threads) for kind in KINDS]
            return {ranker.name: ranker for ranker in rankers}

        place = folder / "0"
        report = evaluation.run(place / "releases", place / "features", rivals=peers)
    results = [first]
    for number in range(1, num_seeds):
        values = recipe.model_dump()
        values["training"]["seed"] = recipe.training.seed + number
        again = Recipe.from_mapping(values, f"seed {values['training']['seed']}")
        results.append(_walk(features_config, again, optimize_config, sources, folder / str(number), protocol))
    return {
        **report.to_json(),
        "seconds": first.seconds,
        "gate_reasons": first.release.metrics["forced_past_gate"],
        "seeds": _spread([result.report.to_json()[MODEL] for result in results]),
    }


def _walk(
    features_config: FeaturesConfig,
    recipe: Recipe,
    optimize_config: OptimizeConfig,
    sources: list[Path],
    folder: Path,
    protocol: Protocol,
) -> RoadResult:
    return road.run(features_config, recipe, optimize_config, sources, folder, protocol, force=True)


def _spread(models: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over seeds of the model's figures; the deviation of one seed is None."""

    def over(names: tuple[str, ...], figures: list[dict[str, Any]]) -> dict[str, Any]:
        found = {name: [values[name] for values in figures] for name in names}
        return {
            name: {"mean": mean(values), "std": stdev(values) if len(values) > 1 else None, "values": values}
            for name, values in found.items()
        }

    following = over(SPREAD_OF_NEXT, [values["next"] for values in models])
    return {"num_seeds": len(models), **over(SPREAD, models), "next": following}
