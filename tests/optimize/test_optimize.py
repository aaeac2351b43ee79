import shutil
from pathlib import Path

import numpy as np
import pytest

from optimize import build, gate, report
from optimize.config import GateConfig, OptimizeConfig
from recsys.contracts import artifact
from recsys.contracts.errors import ArtifactError, GateError
from recsys.model.checkpoint import Checkpoint
from recsys.model.reference import encode
from recsys.runtime.release import Release
from tests.conftest import cyclic_histories, write_features


def fidelity(**changes: float | int | None) -> report.FidelityReport:
    values = {
        "num_users": 5000,
        "relative_error": 0.01,
        "top10_overlap": 0.99,
        "top100_overlap": 0.99,
        "num_held_out_users": 5000,
        "recall10_reference": 0.200,
        "recall10_engine": 0.200,
    }
    return report.FidelityReport(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"recall10_engine": 0.1995}, None),  # −0.25 %
        ({"recall10_engine": 0.1993}, "recall@10 lost 0.35% by the engine, at most 0.30% allowed"),
        ({"recall10_engine": 0.1, "num_held_out_users": 10}, None),  # too few: the lists decide
        ({"top10_overlap": 0.5, "num_held_out_users": 10}, "top-10 overlap 0.500"),
        ({"top10_overlap": 0.5, "recall10_reference": None, "recall10_engine": None}, "top-10 overlap 0.500"),
        ({"relative_error": float("nan")}, "relative error nan"),
    ],
)
def test_the_gate_refuses_what_answers_worse(changes: dict[str, float], reason: str | None) -> None:
    if reason is None:
        gate.check(fidelity(**changes), GateConfig())
    else:
        with pytest.raises(GateError, match=reason):
            gate.check(fidelity(**changes), GateConfig())


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
    build.run(OptimizeConfig(bits=32), ring_checkpoint, ring_features, tmp_path / "releases")
    float_engine = Release.open(tmp_path / "releases").engine
    np.testing.assert_allclose(float_engine.encode(windows), expected, atol=2e-5)
    rounded = Release.open(ring_releases).engine
    assert 0 < report.relative_error(expected, rounded.encode(windows)) < 0.05


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
    assert list((tmp_path / "releases").iterdir()) == []
    _, manifest = build.run(OptimizeConfig(), ring_checkpoint, ring_features, tmp_path / "releases", force=True)
    assert manifest.metrics["forced_past_gate"] == ["relative error nan, expected below 1"]


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
