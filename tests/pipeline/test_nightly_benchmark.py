import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.config import FeaturesConfig
from features.simulate import SimulateConfig
from features.simulate import run as simulate
from recsys.contracts.errors import DataError
from recsys.dataset import Histories, TestSet
from recsys.evaluation import looks
from recsys.pipeline import benchmark_tables, nightly_benchmark
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
    rows = [json.loads(line) for line in (folder / "nights.jsonl").read_text().splitlines()]
    assert [len(row["user_ids"]) for row in rows] == [night["num_users"] for night in whole["nights"]]
    of_nights = [user_id for row in rows[1:] for user_id in row["user_ids"]]
    assert whole["num_user_nights"] == len(of_nights)
    assert whole["difference"]["num_users"] == len(set(of_nights))
    assert sorted(place.name for place in folder.iterdir()) == [
        "evaluations.jsonl",
        "features",
        "nights.jsonl",
        "started-2",
    ]
    ranked = [
        night["ndcg@10"][way] for night in whole["nights"] for way in (SCRATCH, STARTED) if way in night["epochs"]
    ]
    assert [look.value for look in looks.read(folder / "evaluations.jsonl")] == ranked
    assert whole["num_looks"] == 5
    assert f"looks at the test set in the log: 5, in {folder}" in benchmark_tables.nights_table(whole)
    again = nightly_benchmark.run(FeaturesConfig(), recipe, [log], folder, 2, max_nights=0)
    assert json.dumps(again) == json.dumps(whole)  # as text, since nothing is hit and nan is not itself
    nightly_benchmark.picture(whole, tmp_path / "nights.png")
    assert (tmp_path / "nights.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DataError, match="nights of another log, recipe or number of days, or of an older version"):
        nightly_benchmark.run(FeaturesConfig(), Recipe(), [log], folder, 2, max_nights=None)


def test_a_user_who_returns_on_many_nights_does_not_narrow_the_interval() -> None:
    """Ten users come on each of twelve nights, and the two ways differ by user alone: ten values, not a hundred."""
    gaps = np.linspace(-0.2, 0.3, 10)

    def summary(user_ids: Callable[[int], list[str]]) -> dict[str, Any]:
        rows = [
            {
                "day": 15_000 + night,
                "num_users": 10,
                "user_ids": user_ids(night),
                "seconds": {SCRATCH: 20.0, STARTED: 5.0 + night},
                "epochs": {SCRATCH: 1, STARTED: 1},
                "values": {
                    way: {"ndcg@10": list(0.5 + share * gaps), "recall@10": [0.5] * 10}
                    for way, share in ((SCRATCH, 0), (STARTED, 1))
                },
            }
            for night in range(12)
        ]
        return nightly_benchmark._summary(rows, 12)

    returning = summary(lambda _: [f"u{number}" for number in range(10)])
    others = summary(lambda night: [f"n{night}u{number}" for number in range(10)])
    widths = [found["difference"]["high"] - found["difference"]["low"] for found in (returning, others)]
    assert widths[0] > 3 * widths[1]  # the square root of 12 is 3.5
    assert [found["difference"]["num_users"] for found in (returning, others)] == [10, 120]
    for found in (returning, others):
        assert found["num_user_nights"] == 120
        assert found["difference"]["difference"] == pytest.approx(0.05)
    assert returning["seconds_per_night"] == {STARTED: 10.5, SCRATCH: 20.0}
    text = benchmark_tables.nights_table({**returning, "evaluation_logs": None})
    assert "120 users of a day, resampled by user: 10 different ones" in text
    assert "processor seconds of training a night: from scratch 20 (240 in all), started 10 (126 in all)" in text


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
