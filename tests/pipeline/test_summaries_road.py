"""Summaries on the whole road: trained, released, checked, and answered from."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimize import build
from optimize.config import GateConfig, OptimizeConfig
from optimize.report import relative_error
from optimize.summaries import SummariesConfig
from recsys import dataset
from recsys.contracts.errors import ArtifactError
from recsys.contracts.precision import EngineName
from recsys.dataset import Protocol
from recsys.model.checkpoint import Checkpoint
from recsys.model.reference import encode
from recsys.model.summaries import SummaryModel
from recsys.pipeline import benchmark_tables, case_latency, case_sessions, consistency
from recsys.pipeline.case_benchmark import _without_summaries
from recsys.pipeline.case_latency import Contenders
from recsys.runtime.consistency import Consistency, Tolerance
from recsys.runtime.recommender import Recommender
from recsys.runtime.release import Release
from recsys.runtime.stored_summaries import StoredSummaries
from recsys.runtime.summaries import Summaries, SummaryEngine
from recsys.training import train
from recsys.training.config import Recipe
from recsys.windows import answer_context, num_windows


@pytest.fixture(scope="module")
def summary_recipe(tiny_recipe: Recipe) -> Recipe:
    window = tiny_recipe.window.model_copy(update={"summary_tokens": 2})
    return tiny_recipe.model_copy(update={"window": window})


@pytest.fixture(scope="module")
def checkpoint(ring_features: Path, summary_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("summaries") / "checkpoint"
    train.run(summary_recipe, ring_features, place, protocol=Protocol.TIME)
    return place


@pytest.fixture(scope="module")
def releases(ring_features: Path, checkpoint: Path) -> Path:
    config = OptimizeConfig(gate=GateConfig(min_top10_overlap=0.9))
    build.run(config, checkpoint, ring_features, checkpoint.parent / "releases")
    return checkpoint.parent / "releases"


def test_a_checkpoint_of_summaries_learns_the_ring_and_is_read_again(checkpoint: Path) -> None:
    opened = Checkpoint.open(checkpoint)
    assert isinstance(opened.model, SummaryModel)
    assert opened.manifest.metrics["validation_ndcg@10"] > 0.9
    start = np.eye(32) * opened.model.config.init_std
    assert np.abs(opened.model.project.weight.detach().numpy() - start).max() > 1e-3  # it was trained


def test_the_release_answers_as_the_checkpoint_over_several_windows(
    ring_features: Path, checkpoint: Path, releases: Path
) -> None:
    release, opened = Release.open(releases), Checkpoint.open(checkpoint)
    assert isinstance(release.engine, SummaryEngine)
    histories = list(dataset.load(ring_features, Protocol.FINAL).fit)
    contexts = [answer_context(history, release.window) for history in histories]
    assert max(num_windows(len(context), release.window) for context in contexts) == 4
    expected, found = encode(opened.model, contexts), release.engine.encode(contexts)
    errors = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert errors.max() < 0.05  # 8 bits
    best = Recommender(release).rank(histories, 1)[:, 0]
    assert np.mean(best == np.array([history[-1] % 30 + 1 for history in histories])) > 0.9


def checked(releases: Path, max_relative_error: float = 0.03, **settings: Any) -> Consistency:
    given = {"engine": None, "device": None, "against": None, "checkpoint": None, "reference": None, "save": None}
    tolerance = Tolerance(max_relative_error=max_relative_error)
    return consistency.run(releases, **given | {"by_layer": False, "tolerance": tolerance, "num_threads": 1} | settings)


def test_the_engine_is_checked_over_contexts_too(releases: Path, checkpoint: Path) -> None:
    window = Release.open(releases).window
    found = checked(releases)
    assert found.by_length[-1].length == window.longest_context == 8 + 3 * 6
    assert found.agrees
    exact = checked(releases, 0.06, checkpoint=checkpoint)
    assert exact.agrees
    assert exact.by_length[-1].length == window.longest_context
    layers = checked(releases, 0.06, checkpoint=checkpoint, by_layer=True)
    assert layers.by_length[-1].length == window.size
    assert layers.by_layer


def test_tonight_starts_from_a_checkpoint_of_summaries_and_from_no_other(
    ring_features: Path, checkpoint: Path, ring_checkpoint: Path, summary_recipe: Recipe, tmp_path: Path
) -> None:
    manifest = train.run(summary_recipe, ring_features, tmp_path / "tonight", protocol=Protocol.TIME, start=checkpoint)
    assert manifest.metrics["validation_ndcg@10"] > 0.9
    with pytest.raises(ArtifactError, match=r"window\.summary_tokens = 0, the recipe has 2; train without --start"):
        train.run(summary_recipe, ring_features, tmp_path / "x", protocol=Protocol.TIME, start=ring_checkpoint)


def config_of(**budget: Any) -> OptimizeConfig:
    return OptimizeConfig(gate=GateConfig(min_top10_overlap=0.9), summaries=SummariesConfig(**budget))


def test_a_release_brings_the_summaries_of_the_most_active_users(
    ring_features: Path, checkpoint: Path, tmp_path: Path
) -> None:
    build.run(config_of(max_users=5), checkpoint, ring_features, tmp_path / "releases")
    release = Release.open(tmp_path / "releases")
    fitted = dataset.load(ring_features, Protocol.TIME).fit
    order = np.argsort(-fitted.lengths, kind="stable")
    contexts = [answer_context(fitted[user], release.window) for user in order if fitted.lengths[user] > 8]
    assert not any(release.engine.open_at_once(context)[1] for context in contexts[:5])
    assert any(release.engine.open_at_once(context)[1] for context in contexts)
    said = release.manifest.metrics["summaries"]
    assert said["num_users"] == 5
    assert said["num_windows"] == len(StoredSummaries.open(release.folder))
    assert {StoredSummaries.DIGESTS_FILE, StoredSummaries.VECTORS_FILE} <= set(release.manifest.files)
    # as if they were encoded now, but for the rounding to float16
    now = Release.open(tmp_path / "releases")
    now.engine.at_hand = Summaries()
    expected, found = now.engine.encode(contexts[:5]), release.engine.encode(contexts[:5])
    np.testing.assert_allclose(found, expected, atol=0.01 * np.abs(expected).max())
    assert (found != expected).any()


def test_the_float32_model_encodes_its_own_summaries(ring_features: Path, checkpoint: Path, tmp_path: Path) -> None:
    config, model = config_of(max_users=5).model_copy(update={"reference": True}), Checkpoint.open(checkpoint).model
    build.run(config, checkpoint, ring_features, tmp_path)
    exact = Release.open(tmp_path, num_threads=1, engine=EngineName.REFERENCE)
    contexts = [answer_context(history, exact.window) for history in dataset.load(ring_features, Protocol.TIME).fit]
    assert max(num_windows(len(context), exact.window) for context in contexts) > 1
    expected = encode(model, contexts)
    assert relative_error(expected, exact.engine.encode(contexts)) < 1e-5
    assert relative_error(expected, Release.open(tmp_path).engine.encode(contexts)) > 1e-3
    served = config.model_copy(update={"engine": EngineName.REFERENCE})
    _, manifest = build.run(served, checkpoint, ring_features, tmp_path / "served")
    assert manifest.metrics["summaries"] is None  # stored ones are float16
    assert StoredSummaries.VECTORS_FILE not in manifest.files


def test_sessions_that_grew_over_their_summaries_answer_as_contexts_encoded_whole(
    ring_features: Path, releases: Path
) -> None:
    release = Release.open(releases)
    histories = [history for history in dataset.load(ring_features, Protocol.FINAL).fit if len(history) > 8]
    assert max(num_windows(len(history), release.window) for history in histories) == 4
    found = case_sessions.grown(release, histories)
    whole = release.engine.encode([answer_context(history, release.window) for history in histories])
    assert 0 < relative_error(whole, found) < 0.03


def test_the_case_tells_cold_with_stored_summaries_from_cold_without(checkpoint: Path, releases: Path) -> None:
    opened, release = Checkpoint.open(checkpoint), Release.open(releases)
    contenders = Contenders(opened, opened, release, release)
    encoded: list[int] = []
    summaries = release.engine.summaries
    release.engine.summaries = lambda closed: encoded.append(len(closed)) or summaries(closed)  # type: ignore[method-assign]
    events = np.arange(1, 31, dtype=np.int32)
    found = case_latency.measure(contenders, events, 1, 1, {})
    assert found[case_latency.WITHOUT_SUMMARIES] > 0
    assert sum(encoded) >= 3 * case_latency.NUM_LENGTHS  # those that were forgotten, again and again
    assert min(case_latency.throughput(contenders, events, 1).values()) > 0
    said = _without_summaries({**found, "before": 10.0, case_latency.WITHOUT_SUMMARIES: 4.0}, {"num_windows": 3})
    assert said == {"latency_ratio_cold_without_summaries": 2.5, "summaries": {"num_windows": 3}}
    assert benchmark_tables._without_summaries(said)[0][1] == "2.5 x faster"


def test_answers_by_the_open_window_alone_are_measured_beside_whole_ones(
    ring_features: Path, checkpoint: Path, releases: Path
) -> None:
    from recsys.evaluation.metrics import per_user_metrics
    from recsys.windows import open_window

    metrics = Release.open(releases).manifest.metrics
    data, recommender = dataset.load(ring_features, Protocol.TIME), Recommender.load(releases)
    test, window = data.test_set(), recommender.release.window
    long = [i for i, context in enumerate(test.contexts) if num_windows(len(context), window) > 1]
    assert 0 < metrics["num_partial_users"] < len(long)  # who was calibrated on is left out
    targets = [test.targets[i] for i in long]
    whole, partial = (
        per_user_metrics(recommender.rank([read(test.contexts[i]) for i in long], 10), targets, [10])["ndcg@10"].mean()
        for read in (lambda context: context, lambda context: open_window(context, window))
    )
    assert metrics["partial_ndcg10"]["reference"] == pytest.approx(whole, abs=0.1)
    assert metrics["partial_ndcg10"]["engine"] == pytest.approx(partial, abs=0.1)
