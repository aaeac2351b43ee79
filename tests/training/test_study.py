import time
from pathlib import Path
from typing import Any

import pytest

from recsys.contracts.errors import DataError
from recsys.training import study
from tests.training.conftest import KilledError

FIRST = {"x": 0.25}


def objective(trial: Any) -> float:
    x: float = trial.suggest_float("x", 0.0, 1.0)
    return -abs(x - 0.5)


def tried(found: Any) -> list[float]:
    return [trial.params["x"] for trial in study.finished(found)]


def opened(out: Path, **of: Any) -> Any:
    return study.opened(out, of or {"log": "a"}, FIRST, seed=0)


def test_a_first_trial_that_was_killed_is_begun_again(tmp_path: Path) -> None:
    def killed(trial: Any) -> float:
        objective(trial)
        raise KilledError

    with pytest.raises(KilledError):
        study.go_on(opened(tmp_path), killed, 1)
    found = opened(tmp_path)
    study.go_on(found, objective, 2)
    assert tried(found)[0] == 0.25
    assert len(tried(found)) == 2


def test_a_trial_left_running_is_given_up_and_made_up_for(tmp_path: Path) -> None:
    found = opened(tmp_path)
    study.go_on(found, objective, 1)
    found.ask()
    found = opened(tmp_path)
    study.go_on(found, objective, 3)
    assert [trial.state.name for trial in found.trials] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]


def test_a_study_that_goes_on_tries_other_points_than_before(tmp_path: Path) -> None:
    for num_trials in (2, 3, 4):
        found = opened(tmp_path)
        study.go_on(found, objective, num_trials)
    assert len(set(tried(found))) == 4


def test_a_study_of_something_else_is_refused(tmp_path: Path) -> None:
    opened(tmp_path, log="a", users=3)
    with pytest.raises(
        DataError,
        match=r"study\.db: a study of another users, or of an older version; give the same one, or another --out",
    ):
        opened(tmp_path, log="a", users=4)


def test_after_the_deadline_only_a_first_trial_begins(tmp_path: Path) -> None:
    found, numbers = opened(tmp_path), []
    for _ in range(2):
        study.go_on(found, objective, 5, deadline=time.monotonic() - 1, advance=numbers.append)
    assert tried(found) == [0.25]
    assert numbers == [1]
