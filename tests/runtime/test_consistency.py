import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimize import build
from optimize.config import CudaConfig, GateConfig, OptimizeConfig
from recsys.cli import app
from recsys.contracts import artifact
from recsys.contracts.errors import ArtifactError, ConfigError
from recsys.pipeline import consistency as pipeline
from recsys.runtime import consistency
from recsys.runtime.consistency import Reference, Tolerance
from recsys.runtime.recommender import Recommender
from recsys.runtime.release import Release


@pytest.fixture(scope="module")
def release(ring_releases: Path) -> Release:
    return Release.open(ring_releases, num_threads=1)


@pytest.fixture(scope="module")
def reference(release: Release) -> Reference:
    return Reference.load(release.folder / consistency.REFERENCE_FILE)


def test_windows_of_every_length_are_compared_and_hold_known_items_only(reference: Reference) -> None:
    assert [len(window) for window in reference.windows] == [1, 1, 2, 2, 4, 4, 8, 8]
    assert all(window.min() >= 1 and window.max() <= 30 for window in reference.windows)


def test_a_release_agrees_with_the_reference_it_holds(release: Release, reference: Reference) -> None:
    found = consistency.compare(reference, release.engine, release.index, Tolerance())
    assert found.agrees
    assert found.max_relative_error < 5e-3  # what an int8 cache costs an append
    assert found.top10_overlap == 1
    assert [row.appended_error is None for row in found.by_length] == [True, False, False, False]


def test_a_reference_is_read_as_it_was_written(reference: Reference, tmp_path: Path) -> None:
    reference.save(tmp_path / "file")
    again = Reference.load(tmp_path / "file")
    assert (again.engine, again.release) == (reference.engine, reference.release)
    np.testing.assert_array_equal(again.vectors_ND, reference.vectors_ND)
    assert all((a == b).all() for a, b in zip(again.windows, reference.windows, strict=True))


@pytest.mark.parametrize(
    ("factor", "problem"), [(1.05, "relative error 0.04"), (np.nan, "relative error nan"), (-1.0, "top-10 overlap")]
)
def test_an_engine_that_answers_otherwise_is_found_out(
    release: Release, reference: Reference, factor: float, problem: str
) -> None:
    other = replace(reference, vectors_ND=reference.vectors_ND * np.float32(factor))
    other = replace(other, top_NK=release.index.search(np.nan_to_num(other.vectors_ND), 100)[0])
    found = consistency.compare(other, release.engine, release.index, Tolerance())
    assert problem in " ".join(found.problems)


def test_a_release_that_answers_otherwise_is_refused_before_it_serves(
    release: Release, reference: Reference, tmp_path: Path
) -> None:
    Recommender(release).check()
    replace(reference, vectors_ND=reference.vectors_ND + 1).save(tmp_path / consistency.REFERENCE_FILE)
    with pytest.raises(ArtifactError, match=r"does not answer here as openvino did .*; run `recsys optimize check"):
        Recommender(replace(release, folder=tmp_path)).check()


def test_a_reference_of_another_release_and_a_file_that_is_none_are_refused(
    ring_releases: Path, reference: Reference, tmp_path: Path
) -> None:
    ask = {"engine": None, "device": None, "against": None, "checkpoint": None, "save": None, "by_layer": False}
    ask |= {"tolerance": Tolerance(), "num_threads": 1}
    replace(reference, release="0" * 64).save(tmp_path / "other")
    with pytest.raises(ArtifactError, match=r"of checkpoint 000000000000, this one is of"):
        pipeline.run(ring_releases, reference=tmp_path / "other", **ask)
    folder = artifact.resolve_release(ring_releases)
    made = artifact.verify(folder, "release")
    with artifact.writing(tmp_path / "mixed", "release") as writer:
        for name, entry in made.files.items():
            if name != consistency.REFERENCE_FILE:
                writer.link(folder, name, entry)
        replace(reference, release="0" * 64).save(writer.folder / consistency.REFERENCE_FILE)
        writer.commit(parents=made.parents, config=made.config, metrics=made.metrics)
    with pytest.raises(ArtifactError, match=r"mixed/reference\.safetensors: answers of a release of"):
        pipeline.run(tmp_path / "mixed", reference=None, **ask)
    (tmp_path / "none").write_text("nothing")
    with pytest.raises(ArtifactError, match="not a reference"):
        pipeline.run(ring_releases, reference=tmp_path / "none", **ask)


def test_the_command_compares_saves_and_draws(ring_releases: Path, tmp_path: Path, capsys) -> None:
    folder = artifact.resolve_release(ring_releases)
    saved, drawn = tmp_path / "saved", tmp_path / "drawn.png"
    options = ["--save", str(saved), "--picture", str(drawn), "--threads", "1"]
    app(["optimize", "check", str(folder), *options], standalone_mode=False)
    assert "they agree (error at most 0.03" in capsys.readouterr().out
    assert drawn.stat().st_size > 10_000
    strict = ["optimize", "check", str(folder), "--reference", str(saved), "--max-error", "1e-9", "--json"]
    assert app(strict, standalone_mode=False) == 3
    assert '"agrees": false' in capsys.readouterr().out


def test_the_command_compares_layers_with_the_float32_model_and_across_machines(
    ring_releases: Path, ring_checkpoint: Path, tmp_path: Path, capsys
) -> None:
    check = ["optimize", "check", str(ring_releases), "--threads", "1", "--layers", "--json"]
    saved, drawn = tmp_path / "saved", tmp_path / "drawn.png"
    options = ["--checkpoint", str(ring_checkpoint), "--save", str(saved), "--picture", str(drawn)]
    app([*check, *options], standalone_mode=False)
    rounded = json.loads(capsys.readouterr().out)
    assert rounded["against"] == "float32 model"
    (row,) = rounded["by_layer"]
    assert all(1e-4 < row[name] < 2e-2 for name in ("keys", "values", "appended_keys", "appended_values"))
    assert drawn.stat().st_size > 10_000
    app([*check, "--reference", str(saved)], standalone_mode=False)
    (row,) = json.loads(capsys.readouterr().out)["by_layer"]
    assert (row["keys"], row["values"]) == (0, 0)  # of this very engine
    app([*check[:-1], "--reference", str(saved)], standalone_mode=False)
    assert "relative error by layer" in capsys.readouterr().out


def test_a_release_that_holds_the_float32_model_is_compared_with_it_without_a_checkpoint(
    ring_features: Path, ring_checkpoint: Path, tmp_path: Path, capsys
) -> None:
    config = OptimizeConfig(gate=GateConfig(min_top10_overlap=0.9), num_comparison_windows=0, reference=True)
    build.run(config, ring_checkpoint, ring_features, tmp_path)
    check = ["optimize", "check", str(tmp_path), "--threads", "1", "--json"]

    def checked(*options: str) -> dict[str, Any]:
        app([*check, *options], standalone_mode=False)
        return json.loads(capsys.readouterr().out)

    by_engine = checked("--engine", "cpu", "--against", "reference", "--layers")
    assert (by_engine["engine"], by_engine["against"]) == ("openvino", "float32 model")
    assert by_engine == checked("--checkpoint", str(ring_checkpoint), "--layers")
    assert 1e-4 < by_engine["max_relative_error"] < 0.03
    itself = checked("--engine", "reference", "--checkpoint", str(ring_checkpoint), "--max-error", "1e-6")
    assert itself["agrees"]
    turned = checked("--engine", "reference", "--against", "cpu", "--layers")["by_layer"][0]
    assert turned["values"] == pytest.approx(by_engine["by_layer"][0]["values"], rel=0.1)  # in each other's units


@pytest.mark.slow
def test_the_torch_engine_is_checked_on_another_device_than_it_was_built_for(
    ring_features: Path, ring_checkpoint: Path, tmp_path: Path, capsys
) -> None:
    config = OptimizeConfig(gate=GateConfig(min_top10_overlap=0.9), num_comparison_windows=0, cuda=CudaConfig())
    build.run(config, ring_checkpoint, ring_features, tmp_path / "releases")
    check = ["optimize", "check", str(tmp_path / "releases"), "--engine", "cuda", "--against", "cpu", "--layers"]
    with pytest.raises(ConfigError, match="needs an NVIDIA GPU"):
        app(check, standalone_mode=False)
    app([*check, "--device", "cpu", "--json"], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert (found["engine"], found["against"]) == ("torch on cpu", "openvino")
    assert [row["layer"] for row in found["by_layer"]] == [1]
    assert 1e-4 < found["by_layer"][0]["keys"] < 2e-2  # bf16 against float32 arithmetic


def test_layers_need_something_that_holds_them(ring_releases: Path, tmp_path: Path) -> None:
    ask = {
        "engine": None,
        "device": None,
        "against": None,
        "checkpoint": None,
        "tolerance": Tolerance(),
        "num_threads": 1,
    }
    with pytest.raises(
        ArtifactError, match=r"reference.safetensors: holds no keys and values, .* --save FILE --layers"
    ):
        pipeline.run(ring_releases, reference=None, save=None, by_layer=True, **ask)
    pipeline.run(ring_releases, reference=None, save=tmp_path / "saved", by_layer=False, **ask)
    with pytest.raises(ArtifactError, match=r"saved: holds no keys and values"):
        pipeline.run(ring_releases, reference=tmp_path / "saved", save=None, by_layer=True, **ask)


def test_only_the_checkpoint_of_the_release_is_compared_with(
    ring_releases: Path, ring_checkpoint: Path, tmp_path: Path
) -> None:
    with artifact.writing(tmp_path / "other", "checkpoint") as writer:
        made = artifact.verify(ring_checkpoint, "checkpoint")
        for name, entry in made.files.items():
            writer.link(ring_checkpoint, name, entry)
        writer.commit(parents=made.parents, config=made.config, metrics={})
    ask = {"engine": None, "device": None, "against": None, "save": None, "by_layer": True, "num_threads": 1}
    with pytest.raises(ArtifactError, match="was made from checkpoint"):
        pipeline.run(ring_releases, checkpoint=tmp_path / "other", reference=None, tolerance=Tolerance(), **ask)
    with pytest.raises(ConfigError, match="give one of --against ENGINE, --checkpoint DIR and --reference FILE"):
        pipeline.run(
            ring_releases, checkpoint=ring_checkpoint, reference=tmp_path / "file", tolerance=Tolerance(), **ask
        )
