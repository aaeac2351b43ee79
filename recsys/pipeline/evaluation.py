"""Evaluate a release as it serves, beside the baselines, on the features it was made from."""

from collections.abc import Mapping
from pathlib import Path

from recsys import dataset
from recsys.contracts import artifact
from recsys.contracts.errors import ArtifactError
from recsys.dataset import Protocol
from recsys.evaluation.baselines import Cooccurrence, LastItem, Popularity, Ranker
from recsys.evaluation.protocols import MODEL, Report, evaluate
from recsys.pipeline.progress import bar
from recsys.runtime.recommender import Recommender


def run(release: Path, features: Path, protocol: Protocol | None = None, *, num_threads: int = 2) -> Report:
    """Rank the whole catalogue for every held-out user by the release's own engine and index.

    Raises:
        ArtifactError: the release was made from other features, or fitted on what would be its test.
    """
    recommender = Recommender.load(release, num_threads=num_threads)
    manifest = recommender.release.manifest
    fitted = Protocol(manifest.config["protocol"])
    if fitted is Protocol.FINAL:
        raise ArtifactError(
            f"{release}: this release was fitted on all events, so evaluating it on them would leak; "
            "evaluate the one that was trained before the cut"
        )
    if protocol is not None and protocol is not fitted:
        raise ArtifactError(
            f"{release}: fitted under protocol {fitted}, asked to be evaluated under {protocol}; "
            f"train with --protocol {protocol}"
        )
    data = dataset.load(features, fitted)
    artifact.check_parent(manifest, "features", data.manifest, release)
    num_items = len(data.vocabulary)
    rankers: Mapping[str, Ranker] = {
        MODEL: recommender,
        "popularity": Popularity(data.fit, num_items),
        "last_item": LastItem(data.fit, num_items),
        "cooccurrence": Cooccurrence(data.fit, num_items),
    }
    with bar("evaluate") as advance:
        return evaluate(rankers, data.test_set(), num_items, fitted, progress=advance)
