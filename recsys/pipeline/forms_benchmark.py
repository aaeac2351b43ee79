"""What the default is made of, all at once: a search over forms of the model and over how they are trained.

A trial trains one form with the same seed on the same users, and is worth its fused NDCG@10 on their validation
events, which is what is served; no test set is looked at. The first trial is the default's form. The best of many
looks is flattered, so it is trained again and held against the default's form: with other seeds and, where enough are
left, on users whom no trial has seen.
"""

import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recsys.contracts.protocol import Protocol
from recsys.model.binary_loss import BinaryLoss
from recsys.pipeline import progress
from recsys.pipeline.forms import BLOCKS, INPUTS, OUTPUTS, SCHEDULES, Forms, event_types, missing_inputs
from recsys.pipeline.kept_runs import KeptRuns
from recsys.pipeline.rivals import LEARNING_RATE, MODEL, Rival, Sample, compare, sample, train_and_rank
from recsys.training import study
from recsys.training.config import METHOD, TrainingConfig
from recsys.training.fusion import MIN_USERS
from recsys.training.loop import DivergedError
from recsys.windows import WindowConfig

METRIC = "fused_ndcg@10"
REFERENCE = "default"
LOSSES = ("softmax", "full softmax", "gbce")
"""Against 512 sampled items, which is the default's; against all; `BinaryLoss`, one sample for all targets."""
RANGES = {"dropout": (0.0, 0.7), "weight_decay": (1e-4, 1.0), "learning_rate": (2e-4, 1e-2)}
GBCE_NEGATIVES, GBCE_CALIBRATION = (64, 256, 1024), (0.0, 1.0)
_BY_FACTORS = frozenset({"weight_decay", "learning_rate"})
"""Drawn evenly by their logarithm."""
_IN_HALVES = frozenset({*RANGES, "gbce_calibration"})
"""Choices whose trials are told apart by the median of what was tried."""
_SEED = 0
"""Of all trials; the comparison has those after it."""


@dataclass(frozen=True, slots=True)
class Space:
    """The forms that a trial may have."""

    inputs: tuple[str, ...]
    """Those that the log has."""
    epochs: float
    """Of the default's form; others may have half or twice as many."""

    @property
    def default(self) -> dict[str, Any]:
        """The default's form as a point; all choices but gBCE's own, in the order of a table's columns."""
        return {
            "loss": LOSSES[0],
            "output": "plain",
            "blocks": "default",
            "inputs": "none",
            "dropout": MODEL.dropout,
            "weight_decay": TrainingConfig().weight_decay,
            "is_averaged": True,
            "learning_rate": LEARNING_RATE,
            "schedule": "parabola",
            "epochs": self.epochs,
        }

    def point(self, trial: Any) -> dict[str, Any]:
        """One form, as the study suggests it."""
        values = {
            "loss": LOSSES,
            "output": list(OUTPUTS),
            "blocks": list(BLOCKS),
            "inputs": self.inputs,
            "is_averaged": [True, False],
            "schedule": list(SCHEDULES),
            "epochs": [self.epochs / 2, self.epochs, self.epochs * 2],
        }
        settings = {name: trial.suggest_categorical(name, some) for name, some in values.items()}
        for name, (low, high) in RANGES.items():
            settings[name] = trial.suggest_float(name, low, high, log=name in _BY_FACTORS)
        if settings["loss"] == "gbce":
            settings["gbce_negatives"] = trial.suggest_categorical("gbce_negatives", GBCE_NEGATIVES)
            settings["gbce_calibration"] = trial.suggest_float("gbce_calibration", *GBCE_CALIBRATION)
        return settings


def rival(forms: Forms, settings: dict[str, Any]) -> Rival:
    """What is trained at a point of the space."""
    training = {name: settings[name] for name in ("learning_rate", "weight_decay")}
    loss = None
    if settings["loss"] == "full softmax":
        training["num_negatives"] = 0
    elif settings["loss"] == "gbce":
        sizes = {"num_negatives": settings["gbce_negatives"], "calibration": settings["gbce_calibration"]}
        loss = BinaryLoss(**sizes, is_shared=True)
    return forms.of(
        **{name: settings[name] for name in ("inputs", "output", "blocks", "dropout", "is_averaged", "epochs")},
        rate=SCHEDULES[settings["schedule"]],
        training=training,
        loss=loss,
    )


def run(
    features: Path,
    out: Path,
    *,
    num_trials: int,
    minutes: float | None,
    window_size: int,
    epochs: float,
    num_users: int,
    num_seeds: int,
    protocol: Protocol | None,
) -> dict[str, Any]:
    """Go on until the study in `out` has `num_trials` trials, or `minutes` are over; then compare the best one.

    One process at a time. A trial that has begun is finished, and the comparison is made, however late.

    Raises:
        ConfigError: optuna is not installed.
        DataError: nobody to validate on, or `out` is of other features or settings.
    """
    deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
    torch.set_num_threads(1)
    of = sample(features, num_users, protocol=protocol)
    assert of.data is not None
    missing, window = missing_inputs(of), WindowConfig(size=window_size)
    space = Space(tuple(name for name in INPUTS if name not in missing), epochs)
    forms = Forms(window, len(event_types(of)))
    settings = {
        "space": "forms",
        "features": of.data.manifest.digest,
        "protocol": of.data.protocol.value,
        "window": window.model_dump(mode="json"),
        "epochs": epochs,
        "num_users": len(of.split.contexts),
        "method": METHOD,
    }
    found = study.opened(out, settings, space.default, _SEED)
    with progress.bar("search") as advance:
        study.go_on(
            found,
            lambda trial: _value(trial, space, forms, of),
            num_trials,
            deadline=deadline,
            advance=lambda done: advance("trials", done, num_trials),
        )
    trials = _rows(found, space)
    comparison = None
    if trials[0]["trial"] != study.finished(found)[0].number:
        began = {"study": str(found.trials[0].datetime_start)}
        comparison = _comparison(features, out, of, num_users, forms, space, trials[0], num_seeds, settings | began)
    return {
        **settings,
        "data": str(features),
        "num_events": len(of.split.train.tokens),
        "left_out": missing,
        "trials": trials,
        "choices": by_choice(trials),
        "comparison": comparison,
    }


def _value(trial: Any, space: Space, forms: Forms, of: Sample) -> float:
    """Fused NDCG@10 of a trial; 0 where its loss became no number."""
    settings = space.point(trial)
    assert of.data is not None
    try:
        found = train_and_rank(rival(forms, settings), forms.window, of, settings["epochs"], _SEED)
    except DivergedError as error:
        trial.set_user_attr("problem", str(error.named(of.data.vocabulary)))
        return 0.0
    trial.set_user_attr("ndcg@10", float(found["ndcg@10"].mean()))
    return float(found[METRIC].mean())


def _rows(found: Any, space: Space) -> list[dict[str, Any]]:
    """A row a trial, the best first, the earlier one where two are alike."""
    names = [*space.default, "gbce_negatives", "gbce_calibration"]
    rows = [
        {
            "trial": trial.number,
            METRIC: trial.value,
            "ndcg@10": trial.user_attrs.get("ndcg@10"),
            "seconds": round(trial.duration.total_seconds(), 1),
            **{name: trial.params.get(name) for name in names},
            "problem": trial.user_attrs.get("problem"),
        }
        for trial in study.finished(found)
    ]
    return sorted(rows, key=lambda row: -row[METRIC])


def by_choice(trials: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Best and median of the trials that made each choice; of a range, of those below the median tried and the others.

    A search tries more of what did well, beside other choices that did well, so medians are no effects.
    """
    choices: dict[str, dict[str, dict[str, Any]]] = {}
    for name in (name for name in trials[0] if name not in ("trial", METRIC, "ndcg@10", "seconds", "problem")):
        made = [row for row in trials if row[name] is not None]
        groups: dict[str, list[float]] = {}
        middle = statistics.median([row[name] for row in made]) if made and name in _IN_HALVES else None
        for row in made:
            half = "" if middle is None else f"{'<' if row[name] < middle else '≥'} {middle:.2g}"
            groups.setdefault(half or str(row[name]), []).append(row[METRIC])
        choices[name] = {
            value: {"num_trials": len(worth), "best": max(worth), "median": statistics.median(worth)}
            for value, worth in groups.items()
        }
    return choices


def _comparison(
    features: Path,
    out: Path,
    of: Sample,
    num_users: int,
    forms: Forms,
    space: Space,
    best: dict[str, Any],
    num_seeds: int,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """The best form against the default's, by user, after other trainings than those it was chosen by."""
    assert of.data is not None
    has_others = of.num_left >= MIN_USERS
    if has_others:
        of = sample(features, num_users, protocol=of.data.protocol, skip=num_users)
    name = f"trial {best['trial']}"
    rows = compare(
        {REFERENCE: rival(forms, space.default), name: rival(forms, best)},
        of,
        forms.window,
        epochs=space.epochs,
        num_seeds=num_seeds,
        reference=REFERENCE,
        kept=KeptRuns(out, settings | {"num_users": len(of.split.contexts)}),
        first_seed=_SEED + 1,
    )
    return {
        "data": str(features),
        "window": settings["window"],
        "num_users": len(of.split.contexts),
        "num_events": len(of.split.train.tokens),
        "on_other_users": has_others,
        "num_seeds": num_seeds,
        "reference": REFERENCE,
        "rivals": rows,
    }
