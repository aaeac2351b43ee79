"""The speed benchmark of training: our side, on a small log; peers have environments of their own."""

from pathlib import Path

import pytest

from features.build import FeaturesConfig
from recsys.pipeline import demo, train_benchmark
from recsys.training import speed


def test_absent_peers_give_null_and_ours_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # no peers' environments here
    log = demo.sample_log(tmp_path)
    values = train_benchmark.run(FeaturesConfig(), [log], seconds=0.5, rounds=1, num_threads=1)
    assert values["tokens_per_second"] > 0
    assert values["peak_mb"]["recsys"] > 0
    assert [values[f"{peer}_ratio"] for peer in ("replay", "rectools", "esasrec")] == [None] * 3
    assert values["memory_ratio"] is None


def test_windows_are_as_long_as_the_peers_sequences() -> None:
    assert speed.recipe().window.size == speed.LENGTH + 1
