from pathlib import Path

import numpy as np
import pytest

from features.config import FeaturesConfig
from features.simulate import SimulateConfig
from features.simulate import run as simulate
from recsys.contracts.errors import DataError
from recsys.dataset import Histories, TestSet
from recsys.pipeline import nightly_benchmark
from recsys.pipeline.nightly_benchmark import SCRATCH, STARTED
from recsys.training.config import Recipe


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    model = {"width": 16, "head_dim": 8, "feedforward_width": 16, "num_layers": 1}
    training = {"max_epochs": 1, "num_threads": 1}
    return Recipe.from_mapping({"model": model, "training": training}, "tiny")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("log") / "log.csv.gz"
    return simulate(SimulateConfig(num_users=60, num_items=80, num_events=2500, seed=1), place)


def test_a_killed_comparison_goes_on_with_the_next_night(log: Path, recipe: Recipe, tmp_path: Path) -> None:
    folder = tmp_path / "nights"
    first = nightly_benchmark.run(FeaturesConfig(), recipe, [log], folder, 2, max_nights=1)
    assert (first["num_nights_compared"], len(first["nights"])) == (0, 1)
    (folder / "from scratch-1").mkdir()  # what a night that was killed leaves behind
    whole = nightly_benchmark.run(FeaturesConfig(), recipe, [log], folder, 2, max_nights=None)
    assert whole["nights"][0] == first["nights"][0]
    assert [set(night["seconds"]) for night in whole["nights"]] == [{SCRATCH}, {SCRATCH, STARTED}, {SCRATCH, STARTED}]
    assert whole["difference"]["num_users"] == sum(night["num_users"] for night in whole["nights"][1:])
    assert sorted(place.name for place in folder.iterdir()) == ["features", "nights.jsonl", "started-2"]
    nightly_benchmark.picture(whole, tmp_path / "nights.png")
    assert (tmp_path / "nights.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DataError, match="nights of another log, recipe or number of days"):
        nightly_benchmark.run(FeaturesConfig(), Recipe(), [log], folder, 2, max_nights=None)


def test_only_targets_of_the_day_and_their_users_are_ranked_for() -> None:
    contexts = Histories(["a", "b"], np.array([0, 2, 3]), np.array([1, 2, 3], dtype=np.int32), np.arange(3))
    times = [np.array([10, 20]), np.array([20])]
    test = TestSet(contexts, [np.array([4, 5]), np.array([6])], 0, target_times_ms=times)
    day = nightly_benchmark.of_one_day(test, end_ms=20)
    assert day.contexts.user_ids == ["a"]
    assert [row.tolist() for row in day.contexts] == [[1, 2]]
    assert [row.tolist() for row in day.targets] == [[4]]


def test_a_log_of_fewer_days_is_refused(log: Path, recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="days with events, expected more than"):
        nightly_benchmark.run(FeaturesConfig(), recipe, [log], tmp_path / "n", 999, max_nights=1)
