"""Evaluate a release as it serves, beside the baselines, on the features it was made from."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recsys import dataset
from recsys.contracts import artifact
from recsys.contracts.errors import ArtifactError, ConfigError
from recsys.contracts.files import write_text
from recsys.contracts.ids import Tokens, Vocabulary
from recsys.contracts.protocol import Protocol
from recsys.dataset import Dataset
from recsys.evaluation import looks
from recsys.evaluation.baselines import Cooccurrence, LastItem, Popularity, Ranker, Trending
from recsys.evaluation.comparison import DEFAULT_MARGIN, DEFAULT_METRIC, Comparison, compare
from recsys.evaluation.lists import ListFacts, list_means, list_values
from recsys.evaluation.looks import Look
from recsys.evaluation.metrics import distinct_pairs
from recsys.evaluation.protocols import AGAINST, MODEL, Report, evaluate
from recsys.evaluation.segments import Question, by_segment
from recsys.evaluation.summary import Evaluation, Origin
from recsys.evaluation.translation import Translated
from recsys.pipeline.progress import bar
from recsys.runtime.recommender import Recommender

KS = (10, 20, 100)
"""Lengths at which lists are judged. Segments, list metrics and comparisons use the first."""
_BASELINE_NAMES = [baseline.name for baseline in (Popularity, Trending, LastItem, Cooccurrence)]
_COMPARED = [f"{name}@{KS[0]}" for name in ("ndcg", "recall", "hit_rate", "map")] + ["mrr"]
_METRICS = [f"{name}@{k}" for k in KS for name in ("ndcg", "recall", "hit_rate", "map")] + ["mrr"]

_NOBODY: Tokens = np.empty(0, dtype=np.int32)
"""The history of a user of whom nothing is known."""

Rivals = Callable[[Dataset, int], dict[str, Ranker]]
"""From the data and the length of lists to more rankers, by name."""


@dataclass(frozen=True, slots=True)
class Opponent:
    """What a release is compared with."""

    name: str
    """Of the release's folder, or of the baseline."""
    digest: str
    """Of the release; for a baseline its name."""
    ranker: Ranker | None
    """None for a baseline: those are always ranked."""


def run(
    release: Path,
    features: Path,
    protocol: Protocol | None = None,
    *,
    against: str | None = None,
    metric: str = DEFAULT_METRIC,
    margin: float = DEFAULT_MARGIN,
    num_threads: int = 2,
    rivals: Rivals | None = None,
) -> Evaluation:
    """Rank the whole catalogue for every held-out user by the release's own engine and index.

    `against` is a baseline by name, another release of the same features, or one of older features that was
    fitted before the cut of these: last night's. The look at the test set is written to `evaluations.jsonl`
    in the folder of releases before anything is returned. `rivals` are ranked among the baselines.

    Raises:
        ArtifactError: a release was made from other features, or fitted on what would be its test.
        ConfigError: no such metric, or `against` is neither a release nor a baseline.
    """
    if metric not in _METRICS:
        raise ConfigError(f"metric {metric!r}, expected one of {', '.join(_METRICS)}")
    recommender = Recommender.load(release, num_threads=num_threads)
    fitted = _protocol(recommender, release, protocol)
    data = dataset.load(features, fitted)
    _check_made_from(recommender, data, release)
    opponent = None if against is None else _opponent(against, data, recommender, num_threads)
    log = artifact.resolve_release(release).parent / looks.LOG_FILE
    looks.read(log)
    shown = _shown(recommender, opponent)
    test = data.test_set(shown)
    with bar("evaluate") as advance:
        rankers = _rankers(recommender, opponent, data) | (rivals(data, max(KS)) if rivals else {})
        report = evaluate(rankers, test, len(shown), fitted, ks=KS, progress=advance)
    for_unknown = {name: ranker.rank([_NOBODY], max(KS))[0] for name, ranker in rankers.items()}
    facts = ListFacts.of(data.fit, len(shown))
    seen = distinct_pairs([test.contexts[row] for row in report.rows])
    lists = {name: list_values(result.ranked, seen, facts, KS[0]) for name, result in report.results.items()}
    question = Question(k=KS[0], metric=metric, against=None if opponent is None else _result_of(opponent))
    return Evaluation(
        origin=_record(recommender, data, report, log, metric, opponent),
        report=report,
        metric=metric,
        lists={name: list_means(r.ranked, lists[name], len(shown), KS[0]) for name, r in report.results.items()},
        segments=by_segment(data, shown, test, report, question, facts, lists, for_unknown),
        comparison=None if opponent is None else _compare(report, opponent, metric, margin),
    )


def check_page(place: Path) -> None:
    """See that a page can be written, before a test set is looked at for it.

    Raises:
        ConfigError: the place is a folder, or nobody may write there, or what draws the figures is not installed.
    """
    from recsys.evaluation import figures

    figures.check_installed()
    if place.exists() and not place.is_file():
        raise ConfigError(f"--report {place}: no file, expected the name of an .html file")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--report {place}: cannot be written: {error}") from None
    if not os.access(place.parent, os.W_OK):
        raise ConfigError(f"--report {place}: no permission to write in {place.parent}")


def write_page(evaluation: Evaluation, place: Path) -> None:
    """The evaluation as one self-contained HTML file."""
    from recsys.evaluation import report_page

    write_text(place, report_page.page(evaluation.to_json()))


def _protocol(recommender: Recommender, place: Path, asked: Protocol | None) -> Protocol:
    """What the release was fitted under, if it can be evaluated as asked."""
    fitted = Protocol(recommender.release.manifest.config["protocol"])
    if fitted is Protocol.FINAL:
        raise ArtifactError(
            f"{place}: this release was fitted on all events, so evaluating it on them would leak; "
            "evaluate the one that was trained before the cut"
        )
    if asked is not None and asked is not fitted:
        raise ArtifactError(
            f"{place}: fitted under protocol {fitted}, asked to be evaluated under {asked}; "
            f"train with --protocol {asked}"
        )
    return fitted


def _check_made_from(recommender: Recommender, data: Dataset, place: Path) -> None:
    """Refuse a release whose tokens mean other items than the data set's."""
    artifact.check_parent(recommender.release.manifest, "features", data.manifest, place)
    if not _same_items(recommender.release.vocabulary, data.vocabulary):
        raise ArtifactError(
            f"{place}: {len(recommender.release.vocabulary):,} items in the release, {len(data.vocabulary):,} others "
            "in the features under this protocol; train and optimize again"
        )


def _same_items(one: Vocabulary, other: Vocabulary) -> bool:
    """Whether the kept items are the same; new items are a release's own."""
    return [item.item_id for item in one.items[: one.num_kept]] == [
        item.item_id for item in other.items[: other.num_kept]
    ]


def _shown(recommender: Recommender, opponent: Opponent | None) -> Vocabulary:
    """Everything that either may show. Two releases of the same features have the same new items, or none."""
    ours = recommender.release.vocabulary
    theirs = opponent.ranker.release.vocabulary if opponent and isinstance(opponent.ranker, Recommender) else ours
    return max(ours, theirs, key=len)


def _opponent(against: str, data: Dataset, recommender: Recommender, num_threads: int) -> Opponent:
    """What to compare with, if the cut of `data` is no leak for it."""
    if against in _BASELINE_NAMES:
        return Opponent(against, against, None)
    place = Path(against)
    if not place.exists():
        raise ConfigError(f"--against {against}: expected a release or one of {', '.join(_BASELINE_NAMES)}")
    other = Recommender.load(place, num_threads=num_threads)
    _protocol(other, place, data.protocol)
    manifest = other.release.manifest
    if manifest.parents["features"] == data.manifest.digest:
        _check_made_from(other, data, place)
        return Opponent(other.release.name, manifest.digest, other)
    before_ms = manifest.metrics.get("fitted_before_ms")
    if data.split_ms is None or before_ms is None or before_ms > data.split_ms:
        fitted = "until an unknown moment" if before_ms is None else f"before {before_ms} ms"
        raise ArtifactError(
            f"{place}: made from other features and fitted {fitted}, expected before {data.split_ms} ms or earlier, "
            "or comparing would leak; compare releases of the same features, or an older one"
        )
    try:
        ranker = Translated(other, other.release.vocabulary, recommender.release.vocabulary)
    except ArtifactError as error:
        raise ArtifactError(f"{place}: {error}") from None
    return Opponent(other.release.name, manifest.digest, ranker)


def _rankers(recommender: Recommender, opponent: Opponent | None, data: Dataset) -> dict[str, Ranker]:
    rankers: dict[str, Ranker] = {MODEL: recommender}
    if opponent is not None and opponent.ranker is not None:
        rankers[AGAINST] = opponent.ranker
    fit, num_items = data.fit, len(data.vocabulary)
    baselines = (
        Popularity(fit, num_items),
        Trending(fit, num_items, data.vocabulary.num_recent),
        LastItem(fit, num_items),
        Cooccurrence(fit, num_items),
    )
    return rankers | {baseline.name: baseline for baseline in baselines}


def _result_of(opponent: Opponent) -> str:
    """Its name among the results of a report."""
    return opponent.name if opponent.ranker is None else AGAINST


def _compare(report: Report, opponent: Opponent, metric: str, margin: float) -> Comparison:
    metrics = [metric, *(name for name in _COMPARED if name != metric)]
    a, b = report.results[MODEL], report.results[_result_of(opponent)]
    return compare(a.headline, b.headline, opponent.name, metrics=metrics, margin=margin)


def _record(
    recommender: Recommender, data: Dataset, report: Report, log: Path, metric: str, opponent: Opponent | None
) -> Origin:
    release = recommender.release
    look = Look.now(
        data,
        release.manifest.digest,
        float(report.results[MODEL].headline[metric].mean()),
        metric=metric,
        against=None if opponent is None else opponent.digest,
    )
    return Origin(
        evaluated_at=look.at,
        release=release.name,
        release_digest=release.manifest.digest,
        features_digest=data.manifest.digest,
        test_set=look.test_set,
        num_looks=looks.record(log, look),
        split_ms=data.split_ms if data.protocol is Protocol.TIME else None,
    )
