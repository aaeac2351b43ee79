import shutil
from pathlib import Path
from typing import Any

import pytest

from features.config import FeaturesConfig
from optimize.config import OptimizeConfig
from recsys.contracts import artifact
from recsys.contracts.artifact import Manifest
from recsys.contracts.errors import DataError
from recsys.contracts.protocol import Protocol
from recsys.evaluation import looks
from recsys.pipeline import accuracy_benchmark, tables
from recsys.pipeline.accuracy_benchmark import _spread
from recsys.training.config import Recipe

NAMES = ("recall@10", "hit_rate@10", "ndcg@10", "map@10", "mrr", "coverage@10")


def figures(value: float) -> dict[str, Any]:
    of_all = dict.fromkeys(NAMES, value)
    return {**of_all, "next": dict.fromkeys(("recall@10", "ndcg@10", "mrr"), value / 2)}


def report(protocol: str, *values: float) -> dict[str, Any]:
    """Of a benchmark whose seeds reached these values."""
    models = [figures(value) for value in values]
    baselines = {"popularity": figures(0.05), "rectools_item_knn": figures(0.15)}
    seeds = {"seeds": _spread(models)}
    return {"protocol": protocol, "num_users": 6040, "model": models[0], "baselines": baselines, **seeds}


def rows(text: str) -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line]
    return {row[0]: row[1:] for row in cells}


def test_the_spread_over_seeds_is_the_sample_standard_deviation() -> None:
    # .1, .2 and .6: mean .3, squares of the differences .04, .01 and .09, so sqrt(.14 / 2)
    spread = _spread([figures(0.1), figures(0.2), figures(0.6)])
    assert spread["num_seeds"] == 3
    for name in NAMES:
        assert spread[name]["mean"] == pytest.approx(0.3)
        assert spread[name]["std"] == pytest.approx(0.07**0.5)
        assert spread[name]["values"] == [0.1, 0.2, 0.6]
    assert spread["next"]["ndcg@10"]["mean"] == pytest.approx(0.15)


def test_one_seed_has_no_spread() -> None:
    assert _spread([figures(0.1)])["ndcg@10"] == {"mean": 0.1, "std": None, "values": [0.1]}


@pytest.mark.parametrize("protocol", ["time", "last-out"])
def test_the_model_has_a_mean_and_a_deviation_over_seeds_and_their_number_is_named(protocol: str) -> None:
    text = tables.accuracy_table(report(protocol, 0.1, 0.2, 0.6))
    table = rows(text)
    assert list(table)[-2:] == ["model", "± over 3 seeds"]
    assert (table["model"][0], table["± over 3 seeds"][0]) == ("0.3000", "0.2646")
    assert table["popularity"][0] == "0.0500"
    assert text.splitlines()[-1].startswith("model: mean ± standard deviation over 3 seeds")
    assert max(map(len, text.splitlines())) <= 100


def test_one_training_is_a_row_without_a_deviation() -> None:
    text = tables.accuracy_table(report("time", 0.1))
    assert rows(text)["model"] == ["0.1000"] * 4 + ["0.0500"] * 2
    assert "±" not in text


def test_columns_are_those_that_say_something_under_the_protocol() -> None:
    of_all = ["recall@10", "ndcg@10", "mrr", "coverage@10"]
    header = {protocol: rows(tables.accuracy_table(report(protocol, 0.1)))[""] for protocol in ("time", "last-out")}
    assert header["time"] == [*of_all, "next: recall@10", "next: ndcg@10"]
    assert header["last-out"] == ["recall@10", "hit_rate@10", *of_all[1:]]


class KilledError(Exception):
    """The process ends here."""


class Stages:
    """Features, training and optimizing that are done already: each is copied, noted, and can be killed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, features: Path, checkpoint: Path, releases: Path) -> None:
        self.made: list[str] = []
        self.killed_at = ""
        self._evaluate = accuracy_benchmark.evaluation.run
        release = artifact.resolve_release(releases)
        built = artifact.read_manifest(features)
        manifest = built.model_copy(update={"metrics": {**built.metrics, "steps": [{"step": "read", "seconds": 2.0}]}})

        def build(_config: Any, _sources: Any, place: Path) -> Manifest:
            if not place.exists():
                shutil.copytree(features, place)
            return manifest

        def train(_recipe: Any, _features: Any, place: Path, **_: Any) -> Manifest:
            self._note(f"train {place.name}")
            return artifact.read_manifest(Path(shutil.copytree(checkpoint, place)))

        def optimize(_config: Any, _checkpoint: Any, _features: Any, out: Path, **_: Any) -> tuple[str, None]:
            self._note("optimize")
            return shutil.copytree(release, out / release.name).name, None

        def evaluate(*given: Any, **settings: Any) -> Any:
            self._note("evaluate")
            return self._evaluate(*given, **settings)

        monkeypatch.setattr(accuracy_benchmark.nightly_features, "run", build)
        monkeypatch.setattr(accuracy_benchmark.train, "run", train)
        monkeypatch.setattr(accuracy_benchmark.optimize_build, "run", optimize)
        monkeypatch.setattr(accuracy_benchmark.evaluation, "run", evaluate)

    def _note(self, stage: str) -> None:
        if stage == self.killed_at:
            raise KilledError
        self.made.append(stage)

    def run(self, out: Path | None, num_seeds: int = 1, *, recipe: Recipe | None = None, killed_at: str = "") -> Any:
        """The figures, or None if it was killed; `made` is what was done in this call."""
        self.made.clear()
        self.killed_at = killed_at
        settings = FeaturesConfig(), recipe or Recipe(), OptimizeConfig(num_threads=1), [Path("log.csv")]
        try:
            return accuracy_benchmark.run(*settings, Protocol.TIME, num_seeds=num_seeds, out=out)
        except KilledError:
            return None


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch, ring_features: Path, ring_checkpoint: Path, ring_releases: Path) -> Stages:
    return Stages(monkeypatch, ring_features, ring_checkpoint, ring_releases)


def test_a_killed_run_goes_on_after_its_last_finished_stage(stages: Stages, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert stages.run(out, killed_at="optimize") is None
    assert stages.made == ["train checkpoint-0"]
    assert stages.run(out, killed_at="evaluate") is None
    assert stages.made == ["optimize"]
    first = stages.run(out)
    assert stages.made == ["evaluate"]
    assert first["seconds"]["features"] == 2
    assert stages.run(out) == first
    assert stages.made == []


def test_seeds_can_be_added_and_finished_ones_are_kept(stages: Stages, tmp_path: Path) -> None:
    first = stages.run(tmp_path)
    assert stages.run(tmp_path, num_seeds=3, killed_at="train checkpoint-2") is None
    whole = stages.run(tmp_path, num_seeds=3)
    assert stages.made == ["train checkpoint-2", "evaluate"]  # the copied checkpoints share one release
    assert whole["seeds"]["num_seeds"] == 3
    assert whole["seeds"]["ndcg@10"]["values"] == [first["model"]["ndcg@10"]] * 3
    assert "± over 3 seeds" in tables.accuracy_table(whole)


def test_other_settings_in_the_same_folder_are_refused_before_anything_is_done(stages: Stages, tmp_path: Path) -> None:
    stages.run(tmp_path, killed_at="optimize")
    with pytest.raises(
        DataError, match=r"accuracy.json: a run with another recipe, or of an older version; give another --out"
    ):
        stages.run(tmp_path, recipe=Recipe.load("demo"))
    assert stages.made == []


def test_every_look_at_the_test_set_is_in_the_log_of_the_folder(stages: Stages, tmp_path: Path) -> None:
    values = stages.run(tmp_path, num_seeds=2)
    log = tmp_path / "releases" / looks.LOG_FILE
    assert [look.value for look in looks.read(log)] == values["seeds"]["ndcg@10"]["values"]
    assert tables.accuracy_summary(values).endswith(f"looks at the test set in the log: 2, in {log}")


def test_without_a_folder_nothing_is_kept_and_the_look_is_said(stages: Stages) -> None:
    for _ in range(2):
        values = stages.run(None)
        assert stages.made == ["train checkpoint-0", "optimize", "evaluate"]
    last = tables.accuracy_summary(values).splitlines()[-1]
    assert last.startswith("this was a look at the test set, and no log stays without --out")
    assert last.endswith("write it into the log in docs/evaluate.md")
