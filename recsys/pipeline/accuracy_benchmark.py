"""From a raw log to figures: the whole road, trained once a seed, and other libraries on the very same split."""

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from features.build import FeaturesConfig
from optimize import build as optimize_build
from optimize.config import OptimizeConfig
from recsys import dataset
from recsys.contracts import artifact
from recsys.contracts.artifact import Manifest
from recsys.contracts.protocol import Protocol
from recsys.evaluation.baselines import Ranker
from recsys.evaluation.protocols import MODEL
from recsys.pipeline import evaluation, nightly_features
from recsys.pipeline.kept_runs import KeptRuns, kept_looks, same_settings, workplace
from recsys.pipeline.peers import KINDS, PeerRanker
from recsys.training import train
from recsys.training.config import Recipe

SETTINGS_FILE = "accuracy.json"
SPREAD = ("recall@10", "hit_rate@10", "ndcg@10", "map@10", "mrr", "coverage@10")
SPREAD_OF_NEXT = ("recall@10", "ndcg@10", "mrr")
"""Figures whose spread over seeds is reported: of all targets, and of the next one alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """A folder with features/, releases/, and of each seed checkpoint-SEED/ and its figures; what is there is used."""

    folder: Path
    features: Manifest
    protocol: Protocol
    optimize: OptimizeConfig

    def figures(self, recipe: Recipe, *, with_peers: bool) -> dict[str, Any]:
        """Evaluate's values of one training, its seconds by stage, and why the gate would have refused."""
        name, seed = "figures-with-peers" if with_peers else "figures", recipe.training.seed
        kept = KeptRuns(self.folder, {"features": self.features.digest})
        found = kept.read(name, seed)
        if found is not None:
            return dict(found["values"])
        checkpoint = self._checkpoint(recipe)
        release = self._release(checkpoint, seed)
        peers = self._peers(checkpoint) if with_peers else {}
        began = time.monotonic()
        threads = self.optimize.num_threads
        report = evaluation.run(release, self.folder / "features", num_threads=threads, rivals=lambda *_: peers)
        metrics = artifact.read_manifest(release).metrics
        seconds = {
            "features": round(sum(step["seconds"] for step in self.features.metrics["steps"]), 2),
            "train": checkpoint.metrics["seconds"],
            "optimize": metrics["seconds"],
            "evaluate": round(time.monotonic() - began, 2),
        }
        values = {**report.to_json(), "seconds": seconds, "gate_reasons": metrics["forced_past_gate"]}
        kept.write(name, seed, {"values": values})
        return values

    def _checkpoint(self, recipe: Recipe) -> Manifest:
        place = self.folder / f"checkpoint-{recipe.training.seed}"
        if not (place / artifact.MANIFEST_NAME).exists():
            return train.run(recipe, self.folder / "features", place, protocol=self.protocol)
        return artifact.verify(place, "checkpoint")

    def _release(self, checkpoint: Manifest, seed: int) -> Path:
        """The checkpoint's, built past the gate: nothing is published for use here."""
        releases = self.folder / "releases"
        finished = sorted(releases.glob(f"[0-9]*-{checkpoint.digest[:8]}"))
        if finished:
            return finished[0]
        place = self.folder / f"checkpoint-{seed}"
        name, _ = optimize_build.run(self.optimize, place, self.folder / "features", releases, force=True)
        return releases / name

    def _peers(self, checkpoint: Manifest) -> dict[str, Ranker]:
        """RecTools' models: transformers train for as long as ours did, on as many threads."""
        data, metrics = dataset.load(self.folder / "features", self.protocol), checkpoint.metrics
        rankers = [
            PeerRanker(
                kind,
                data,
                max(evaluation.KS),
                seconds=metrics["seconds"],
                num_threads=metrics["num_threads"],
                kept=self.folder / "peers" / f"{kind}.parquet",
            )
            for kind in KINDS
        ]
        return {ranker.name: ranker for ranker in rankers}


def run(
    features_config: FeaturesConfig,
    recipe: Recipe,
    optimize_config: OptimizeConfig,
    sources: list[Path],
    protocol: Protocol,
    *,
    num_seeds: int = 1,
    with_peers: bool = False,
    out: Path | None = None,
) -> dict[str, Any]:
    """Evaluate's values for the recipe's own seed, seconds by stage, and mean and spread over seeds.

    A gate that would refuse is reported instead (`gate_reasons`). With peers, RecTools' models stand among the
    baselines. What is built, trained and measured is kept in `out`, if given, and taken from there: a killed run goes
    on after the last finished stage, and seeds and peers can be added.

    Raises:
        DataError: `out` is of another log, recipe, protocol or other settings.
    """
    with workplace(out) as folder:
        settings = {
            "recipe": recipe.model_dump(mode="json"),
            "optimize": optimize_config.model_dump(mode="json"),
            "protocol": protocol.value,
            "format": features_config.model_dump(mode="json"),
            "log": [str(source.resolve()) for source in sources],
        }
        same_settings(folder / SETTINGS_FILE, settings)
        features = nightly_features.run(features_config, sources, folder / "features")
        place = _Place(folder=folder, features=features, protocol=protocol, optimize=optimize_config)
        found = [
            place.figures(_with_seed(recipe, recipe.training.seed + number), with_peers=with_peers and number == 0)
            for number in range(num_seeds)
        ]
    return {**found[0], **kept_looks(out), "seeds": _spread([values[MODEL] for values in found])}


def _with_seed(recipe: Recipe, seed: int) -> Recipe:
    values = recipe.model_dump()
    values["training"]["seed"] = seed
    return Recipe.from_mapping(values, f"seed {seed}")


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
