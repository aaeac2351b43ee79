import re
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimize import build, calibration, export, gate, quantize, report
from optimize.config import CudaConfig, GateConfig, OptimizeConfig
from recsys import dataset
from recsys.cli import app
from recsys.contracts import artifact
from recsys.contracts.errors import ArtifactError, DataError, GateError
from recsys.contracts.precision import CacheFormat, EngineName, ItemFormat
from recsys.contracts.protocol import Protocol
from recsys.evaluation import looks
from recsys.model.checkpoint import Checkpoint
from recsys.model.decoder import SequenceModel
from recsys.model.reference import encode
from recsys.pipeline.tables import release_summary
from recsys.runtime.engines import Parts
from recsys.runtime.index import ItemIndex
from recsys.runtime.items import ItemTable
from recsys.runtime.recommender import Recommender
from recsys.runtime.release import Release
from recsys.windows import WindowConfig
from tests.conftest import cyclic_histories, write_features


def loss(estimate: float, half_width: float, num_different: int = 500) -> report.MetricLoss:
    return report.MetricLoss(
        reference=0.2,
        engine=0.2 * (1 - estimate),
        loss=estimate,
        low=estimate - half_width,
        high=estimate + half_width,
        num_different=num_different,
    )


def fidelity(**changes: Any) -> report.FidelityReport:
    values = {
        "num_users": 5000,
        "relative_error": 0.01,
        "top10_overlap": 0.99,
        "top100_overlap": 0.99,
        "num_held_out_users": 5000,
        "recall10": loss(0.0, 0.001),
        "ndcg10": loss(0.0, 0.001),
    }
    return report.FidelityReport(**{**values, **changes})


FEW = {"num_held_out_users": 10}
NO_DIFFERENCE = {"recall10": loss(0.0, 0.0), "ndcg10": loss(0.0, 0.0)}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"recall10": loss(0.0015, 0.001)}, None),  # at most 0.25 %
        ({"recall10": loss(0.005, 0.001)}, "recall@10 lost 0.50% (0.40% … 0.60%) by the engine, at most 0.30% allowed"),
        ({"ndcg10": loss(0.0035, 0.001)}, "NDCG@10 lost 0.35%"),  # may be 0.25 %, but 5,000 users say 0.35 %
        ({"ndcg10": loss(0.0035, 0.001), **FEW}, None),  # too few: error and overlap decide
        ({"recall10": loss(0.0062, 0.008)}, None),  # or nothing is lost: they decide again
        ({"recall10": loss(0.0062, 0.008), "top10_overlap": 0.989}, "top-10 overlap 0.989"),
        ({**NO_DIFFERENCE, "num_held_out_users": 5, "top10_overlap": 0.3}, "top-10 overlap 0.300, at least 0.99"),
        ({**NO_DIFFERENCE, "num_held_out_users": 999, "top10_overlap": 0.98}, "top-10 overlap 0.980"),
        ({**NO_DIFFERENCE, "num_held_out_users": 1000, "top10_overlap": 0.98}, None),  # the interval decides
        ({"ndcg10": loss(0.0, 0.0, 19), "top10_overlap": 0.98}, "top-10 overlap 0.980"),  # 19 tell too little
        ({"ndcg10": loss(0.0, 0.0, 20), "top10_overlap": 0.98}, None),
        ({"ndcg10": loss(0.0035, 0.001, 19)}, None),  # nor is an estimate of them a reason
        ({"ndcg10": loss(0.05, 0.01), **FEW}, "NDCG@10 lost 5.00%"),  # beyond, however few
        ({"ndcg10": loss(float("nan"), 0.0), "top10_overlap": 0.96}, "top-10 overlap 0.960"),
        ({"ndcg10": loss(0.0005, 0.01), "top10_overlap": 0.96}, "top-10 overlap 0.960"),
        ({"ndcg10": loss(0.0005, 0.001), "top10_overlap": 0.96}, None),  # the interval decides
        ({"recall10": None, "ndcg10": None, "top10_overlap": 0.96}, "top-10 overlap 0.960"),
        ({"relative_error": 0.11}, "relative error 0.11, at most 0.1 allowed"),  # however small the loss
        ({"relative_error": float("nan")}, "relative error nan"),
        ({"appended_error": 0.11}, "relative error after appends 0.11, at most 0.1 allowed"),
        ({"appended_error": None}, None),
    ],
)
def test_the_gate_refuses_what_answers_worse(changes: dict[str, Any], reason: str | None) -> None:
    decided = gate.verdict(fidelity(**changes), GateConfig())
    if reason is None:
        gate.check(decided)
    else:
        with pytest.raises(GateError, match=re.escape(reason)):
            gate.check(decided)


@pytest.mark.parametrize(
    ("there_are", "most", "decided_by", "looks_at"),
    [
        (100, 90, 1, [10]),  # the first ten decide
        (100, 90, 30, [10, 40]),
        (100, 90, 1_000, [10, 40, 90]),  # never decided: as many as may be
        (25, 90, 1_000, [10, 40]),  # or as there are
        (100, 5, 1_000, [10]),
    ],
)
def test_the_gate_looks_at_more_users_until_they_decide(
    there_are: int,
    most: int,
    decided_by: int,
    looks_at: list[int],
    ring_releases: Path,
    ring_checkpoint: Path,
    ring_features: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def compare(*arguments: Any) -> report.FidelityReport:
        seen.append(arguments[5])
        num_users = min(there_are, arguments[5])
        width = 0.01 if num_users < decided_by else 0.001
        return fidelity(num_users=num_users, num_held_out_users=num_users, ndcg10=loss(0.001, width))

    monkeypatch.setattr(report, "compare", compare)
    config = OptimizeConfig(num_check_users=10, gate=GateConfig(most_users=most))
    checkpoint, data = Checkpoint.open(ring_checkpoint), dataset.load(ring_features, Protocol.TIME)
    release = Release.open(artifact.resolve_release(ring_releases), num_threads=1)
    parts = Parts(folder=release.folder, items=ItemTable.load(release.folder), config={}, num_threads=1)
    build.measure(checkpoint, data, config, release.engine, parts, release.index)
    assert seen == looks_at


def test_a_gate_without_held_out_users_needs_no_more() -> None:
    assert not gate.needs_more_users(fidelity(recall10=None, ndcg10=None, num_held_out_users=0), GateConfig())
    assert gate.needs_more_users(fidelity(recall10=None, ndcg10=loss(0.0035, 0.001)), GateConfig())
    assert not gate.needs_more_users(fidelity(recall10=loss(0.0045, 0.001)), GateConfig())  # it is beyond
    assert gate.needs_more_users(fidelity(recall10=loss(0.0, 0.0, 19)), GateConfig())
    assert not gate.needs_more_users(
        fidelity(recall10=loss(0.0, 0.0, 0)), GateConfig()
    )  # nor would more of them differ


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({**FEW, **NO_DIFFERENCE}, "10 held-out users (at least 1,000 needed)"),
        ({"ndcg10": loss(0.0, 0.01)}, "5,000 held-out users (NDCG@10 lost -1.00% … 1.00%, at most 0.30% allowed)"),
        (
            {"ndcg10": loss(0.0, 0.0, 3)},
            "5,000 held-out users (NDCG@10 differs for 3 of them, at least 20 needed)",
        ),
        (
            {"num_held_out_users": 0, "recall10": None, "ndcg10": None},
            "0 held-out users (at least 1,000 needed; recall@10 not measured; NDCG@10 not measured)",
        ),
    ],
)
def test_an_undecided_gate_says_why(changes: dict[str, Any], why: str) -> None:
    judged = "judged by output error and list overlap, 0.9900 of the top 10, at least 0.99 needed"
    assert gate.verdict(fidelity(**changes), GateConfig()).basis == f"undecided by {why}: {judged}"


def test_the_loss_of_a_metric_by_hand() -> None:
    reference, engine = np.array([0.5, 0.5, 1.0, 0.2]), np.array([0.5, 0.4, 1.0, 0.2])
    measured = report.metric_loss(reference, engine, seed=0)
    assert measured is not None
    assert measured.loss == pytest.approx(0.1 / 2.2)
    assert measured.low == 0 < measured.loss < measured.high
    assert measured.num_different == 1
    assert report.metric_loss(np.zeros(4), engine, seed=0) is None


def test_a_damaged_scale_is_refused(ring_features: Path, ring_checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    def damaged(*arguments: Any) -> SequenceModel:
        model = quantize_rounded(*arguments)
        down_proj = model.decoder.layers[0].mlp.down_proj
        down_proj.scales = down_proj.scales * 100
        return model

    quantize_rounded = quantize.rounded
    monkeypatch.setattr(quantize, "rounded", damaged)
    with pytest.raises(GateError, match="nothing published"):
        build.run(OptimizeConfig(), ring_checkpoint, ring_features, tmp_path / "releases")
    assert [place.name for place in (tmp_path / "releases").iterdir()] == [looks.LOG_FILE]


def test_sessions_that_come_apart_are_refused(
    ring_features: Path, ring_checkpoint: Path, tmp_path: Path, monkeypatch
) -> None:
    """The append graph alone is damaged: what is encoded whole is right."""

    def damaged(model: SequenceModel, *arguments: Any) -> Any:
        copy = deepcopy(model)
        copy.decoder.layers[0].mlp.down_proj.scales *= 100
        return append_graph(copy, *arguments)

    append_graph = export.append_graph
    monkeypatch.setattr(export, "append_graph", damaged)
    with pytest.raises(GateError, match=r"refused, nothing published: relative error after appends \S+, at most 0.1"):
        build.run(OptimizeConfig(), ring_checkpoint, ring_features, tmp_path / "releases")


def test_relative_error_and_overlap_by_hand() -> None:
    reference = np.array([[3.0, 4.0], [0.0, 2.0]], dtype=np.float32)
    engine = np.array([[3.0, 4.5], [0.0, 2.0]], dtype=np.float32)
    assert report.relative_error(reference, engine) == pytest.approx((0.5 / 5 + 0) / 2)
    assert report.overlap(np.array([[1, 2], [3, 0]]), np.array([[2, 9], [3, 0]])) == pytest.approx((0.5 + 1) / 2)


def test_the_float_engine_is_the_reference_and_the_8_bit_one_is_near(
    ring_features: Path, ring_checkpoint: Path, ring_releases: Path, tmp_path: Path
) -> None:
    checkpoint = Checkpoint.open(ring_checkpoint)
    generator = np.random.default_rng(0)
    windows = [generator.integers(1, 31, size=n).astype(np.int32) for n in (1, 2, 5, 8, 8)]
    expected = encode(checkpoint.model, windows)
    build.run(OptimizeConfig(bits=32, items=ItemFormat.FLOAT32), ring_checkpoint, ring_features, tmp_path / "releases")
    float_engine = Release.open(tmp_path / "releases").engine
    np.testing.assert_allclose(float_engine.encode(windows), expected, atol=2e-5)
    rounded = Release.open(ring_releases).engine
    assert 0 < report.relative_error(expected, rounded.encode(windows)) < 0.05


def test_a_release_may_be_served_by_the_float32_model_itself(
    ring_features: Path, ring_checkpoint: Path, tmp_path: Path, capsys
) -> None:
    places = [str(ring_checkpoint), "--features", str(ring_features), "--out", str(tmp_path)]
    app(["optimize", "build", *places, "--engine", "reference"], standalone_mode=False)
    assert ": float32 model, index of int8 items, " in capsys.readouterr().out
    release, checkpoint = Release.open(tmp_path, num_threads=1), Checkpoint.open(ring_checkpoint)
    assert release.engine.info.name == "float32 model"
    assert max(release.manifest.metrics[name] for name in ("relative_error", "appended_error")) < 1e-5
    windows = [np.arange(1, n + 1, dtype=np.int32) for n in (1, 3, 8)]
    np.testing.assert_allclose(release.engine.encode(windows), encode(checkpoint.model, windows), rtol=1e-5, atol=1e-6)
    Recommender(release).check()
    assert Release.open(tmp_path, engine=EngineName.CPU).engine.info.name == "openvino"  # which every release holds


def test_a_release_may_keep_sessions_in_bf16(ring_features: Path, ring_checkpoint: Path, tmp_path: Path) -> None:
    config = OptimizeConfig(
        gate=GateConfig(min_top10_overlap=0.9),
        num_comparison_windows=0,
        cache=CacheFormat.BF16,
        cuda=CudaConfig(precision="float32", device="cpu"),
    )
    build.run(config, ring_checkpoint, ring_features, tmp_path)
    event, window = np.array([9], dtype=np.int32), np.arange(1, 8, dtype=np.int32)
    for engine in (EngineName.CPU, EngineName.CUDA):
        release = Release.open(tmp_path, num_threads=1, engine=engine)
        assert release.engine.info.cache is CacheFormat.BF16
        session = release.engine.append(release.engine.open([window]), [event])[0]
        assert session.size_bytes == 64 * 2 * 32 * 2  # events x keys and values of a layer x width x bytes
        whole = release.engine.encode([np.concatenate([window, event])])
        assert 0 < report.relative_error(whole, session.vector_D[None]) < 2e-2
        Recommender(release).check()


def test_8_bits_make_the_engine_smaller(
    ring_features: Path, ring_checkpoint: Path, ring_releases: Path, tmp_path
) -> None:
    build.run(OptimizeConfig(bits=32), ring_checkpoint, ring_features, tmp_path / "releases")
    sizes = [
        artifact.read_manifest(artifact.resolve_release(folder)).files["engine.bin"].size_bytes
        for folder in (ring_releases, tmp_path / "releases")
    ]
    assert sizes[0] < 0.5 * sizes[1]


def test_a_refused_release_is_not_published(
    ring_features: Path, ring_checkpoint: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(report, "relative_error", lambda *_: float("nan"))
    with pytest.raises(GateError, match="nothing published"):
        build.run(OptimizeConfig(), ring_checkpoint, ring_features, tmp_path / "releases")
    assert [place.name for place in (tmp_path / "releases").iterdir()] == [looks.LOG_FILE]
    given = OptimizeConfig(), ring_checkpoint, ring_features, tmp_path / "releases"
    name, manifest = build.run(*given, force=True, forced_past=["no better than popularity"])
    assert manifest.metrics["forced_past_gate"] == [
        "no better than popularity",
        "relative error nan, at most 0.1 allowed",
        "relative error after appends nan, at most 0.1 allowed",
    ]
    gate_line, mark = release_summary(name, manifest, tmp_path).splitlines()[1:]
    assert gate_line.startswith("gate: undecided by 47 held-out users (at least 1,000 needed): judged by output error")
    assert mark.startswith("FORCED past the gate: no better than popularity; relative error nan, at most 0.1 allowed;")


def test_the_gate_is_a_look_at_the_test_set(ring_checkpoint: Path, ring_releases: Path) -> None:
    release = artifact.read_manifest(artifact.resolve_release(ring_releases))
    look, *_ = looks.read(ring_releases / looks.LOG_FILE)
    assert look.release == look.against == artifact.read_manifest(ring_checkpoint).digest
    assert (look.metric, look.value) == ("ndcg@10", release.metrics["ndcg10"]["engine"])
    assert look.features == release.parents["features"]


def test_a_damaged_log_of_looks_is_refused_before_anything_is_built(
    ring_features: Path, ring_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / looks.LOG_FILE).write_text("{}\n")
    with pytest.raises(DataError, match=r"evaluations.jsonl, line 1: at: field required"):
        build.run(OptimizeConfig(), ring_checkpoint, ring_features, tmp_path)
    assert [place.name for place in tmp_path.iterdir()] == [looks.LOG_FILE]


def test_features_that_the_checkpoint_was_not_made_from_are_refused(ring_checkpoint: Path, tmp_path: Path) -> None:
    write_features(tmp_path / "other", cyclic_histories(seed=9), 30, split_ms=10)
    with pytest.raises(ArtifactError, match=r"made from features [0-9a-f]{12}, but the features given"):
        build.run(OptimizeConfig(), ring_checkpoint, tmp_path / "other", tmp_path / "releases")


def test_only_an_activated_release_becomes_current(ring_features: Path, ring_checkpoint: Path, tmp_path: Path) -> None:
    config = OptimizeConfig(bits=32)
    first, _ = build.run(config, ring_checkpoint, ring_features, tmp_path / "releases", activate=False)
    assert artifact.current_name(tmp_path / "releases") == first  # the first one always
    shutil.move(tmp_path / "releases" / first, tmp_path / "releases" / "older")
    artifact.set_current(tmp_path / "releases", "older")
    build.run(config, ring_checkpoint, ring_features, tmp_path / "releases", activate=False)
    assert artifact.current_name(tmp_path / "releases") == "older"


def test_the_gate_judges_the_index_that_will_serve_without_its_new_items(
    ring_features: Path, ring_checkpoint: Path, ring_releases: Path
) -> None:
    checkpoint, data = Checkpoint.open(ring_checkpoint), dataset.load(ring_features, Protocol.TIME)
    release = Release.open(artifact.resolve_release(ring_releases), num_threads=1)

    def overlap(vectors_VD: np.ndarray) -> float:
        shift_V = checkpoint.trend_V
        if shift_V is not None:
            shift_V = np.pad(shift_V, (0, len(vectors_VD) - len(shift_V)))
        index = ItemIndex.build(vectors_VD, shift_V)
        found = report.compare(checkpoint, release.engine, index, release.transitions, data, 40, 0)
        return found.top10_overlap

    exact = checkpoint.model.items_VD.detach().numpy()
    assert overlap(exact) > 0.99
    assert overlap(np.concatenate([exact, 100 * np.ones_like(exact[:20])])) > 0.99  # as loud as may be, and hidden
    assert overlap(exact[::-1].copy()) < 0.97  # an index that finds others, but for what counts say


def test_the_gate_judges_by_users_that_nothing_was_calibrated_on(
    ring_features: Path,
) -> None:
    data, window, size = dataset.load(ring_features, Protocol.TIME), WindowConfig(), 10**6
    calibrated = quantize.calibrated(data, OptimizeConfig(num_calibration_windows=size))
    assert len(calibrated) == len(data.fit) // 2  # though more were asked for
    both = [*calibration.windows(data.fit, window, size, 0), *calibration.others(data.fit, window, size, size, 0)]
    everybody = calibration.sample(data.fit, window, size, 0)
    assert sorted(each.tolist() for each in both) == sorted(each.tolist() for each in everybody)
    users = data.test_set().contexts.user_ids
    contexts, targets = report._users(data, size, 0, calibrated)
    assert len(contexts) == len(targets) == len(set(users) - set(calibrated))
    assert len(report._users(data, size, 0, users)[0]) == len(users)  # all there are
