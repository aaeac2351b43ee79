"""A training that is killed at a step."""

from typing import Any

import pytest

from recsys.training.loop import Trainer


class KilledError(Exception):
    """Stands for kill -9: nothing after it runs."""


class Steps:
    """The steps that trainings have taken since `taken` was set to 0, and the one that kills; 0: none does."""

    def __init__(self) -> None:
        self.taken = 0
        self.dies_at = 0


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    counted, take_step = Steps(), Trainer._step

    def step_or_die(self: Trainer, *arguments: Any) -> tuple[float, int]:
        counted.taken += 1
        if counted.taken == counted.dies_at:
            raise KilledError
        return take_step(self, *arguments)

    monkeypatch.setattr(Trainer, "_step", step_or_die)
    return counted
