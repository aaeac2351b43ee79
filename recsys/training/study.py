"""A study of Optuna in a folder: bound to what it is of, and going on where a killed one was."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recsys.contracts.errors import ConfigError, DataError

STUDY_FILE = "study.db"
_MIN_TRIALS_BEFORE_PRUNING = 4
_FINISHED = ("COMPLETE", "PRUNED")


def opened(out: Path, of: dict[str, Any], first: dict[str, Any], seed: int) -> Any:
    """The study in `out`, an `optuna.Study` to maximize, its first trial the point `first` of the space.

    `of` is what it is of, as plain values. One process at a time: trials that a killed one left unfinished are given
    up, the first one is begun again. Points drawn after going on are others than those drawn before.

    Raises:
        ConfigError: optuna is not installed.
        DataError: the study is of something else.
    """
    try:
        import optuna
    except ImportError:
        raise ConfigError("a search needs optuna; pip install 'recsys[search]'") from None
    out.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        storage=f"sqlite:///{out / STUDY_FILE}",
        study_name="recsys",
        direction="maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=_MIN_TRIALS_BEFORE_PRUNING, n_warmup_steps=1),
        load_if_exists=True,
    )
    _bind(study, of, out)
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials))
    for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    if not finished(study) and not study.get_trials(states=[optuna.trial.TrialState.WAITING]):
        study.enqueue_trial(first)
    return study


def _bind(study: Any, of: dict[str, Any], out: Path) -> None:
    """Write down what a new study is of, or refuse to mix two."""
    if not study.user_attrs:
        for name, value in of.items():
            study.set_user_attr(name, value)
        return
    changed = [name for name, value in of.items() if study.user_attrs.get(name) != value]
    if changed:
        raise DataError(
            f"{out / STUDY_FILE}: a study of another {changed[0]}, or of an older version; "
            "give the same one, or another --out"
        )


def go_on(
    study: Any,
    objective: Callable[[Any], float],
    num_trials: int,
    *,
    deadline: float = math.inf,
    advance: Callable[[int], None] = lambda _: None,
) -> None:
    """Try until `num_trials` are finished; all but the first begin before `time.monotonic()` passes `deadline`.

    `advance` is called after each trial with the number of finished ones.
    """
    while (num_finished := len(finished(study))) < num_trials and (not num_finished or time.monotonic() < deadline):
        study.optimize(objective, n_trials=1)
        advance(len(finished(study)))


def finished(study: Any) -> list[Any]:
    """Trials that reached an end or were stopped for being behind, in the order in which they began."""
    return [trial for trial in study.trials if trial.state.name in _FINISHED]
