"""Search for a better recipe: trials on validation only, bad ones stopped early, kept in a file so that it goes on.

The test set is not touched. The first trial is the recipe given, so the best one is no worse on validation; it was
chosen there, so its figure is a little better than what it will reach elsewhere.
"""

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recsys import dataset
from recsys.contracts.errors import DataError
from recsys.contracts.files import write_text
from recsys.contracts.protocol import Protocol
from recsys.dataset import Dataset
from recsys.model.summaries import build_model
from recsys.training import study
from recsys.training.config import METHOD, Recipe
from recsys.training.fit import fit
from recsys.training.fitted import RoundResult
from recsys.training.processes import Processes
from recsys.training.resume import SavedRun

RECIPE_FILE = "recipe.toml"
_HEADS = 2
_WIDTHS = (64, 96, 128, 192)
_NEGATIVES = (256, 512, 1024)
_MOST_DROPOUT, _LEAST_DECAY = 0.7, 1e-4


@dataclass(frozen=True, slots=True)
class Found:
    """All trials of a study and the best recipe."""

    trials: list[dict[str, Any]]
    """Best first: number, state, validation NDCG@10, epochs, seconds, settings."""
    recipe: Recipe
    place: Path
    """The recipe as TOML."""


def run(recipe: Recipe, features: Path, out: Path, *, protocol: Protocol, num_trials: int, minutes: float) -> Found:
    """Go on until the study in `out` has `num_trials` finished trials, each of at most minutes / num_trials.

    One process at a time: trials that a killed one left unfinished are given up and made up for.

    Raises:
        ConfigError: optuna is not installed.
        DataError: the study is of other features, another protocol, recipe or budget; or nobody to validate with.
    """
    data = dataset.load(features, protocol)
    if not data.validation(recipe.training.num_validation_users, recipe.training.seed).targets:
        raise DataError(f"{features}: no user has events to validate on, so there is nothing to search by")
    recipe = recipe.for_log(data)
    trial_minutes = minutes / num_trials
    of = {
        "features": data.manifest.digest,
        "protocol": data.protocol.value,
        "recipe": recipe.model_dump(mode="json"),
        "minutes of a trial": trial_minutes,
        "method": METHOD,
    }
    found = study.opened(out, of, _settings_of(recipe), recipe.training.seed)
    study.go_on(found, lambda trial: _objective(trial, data, recipe, trial_minutes), num_trials)
    best = _with(recipe, found.best_trial.params)
    place = out / RECIPE_FILE
    write_text(place, _toml(best, found.best_trial.number, found.best_value))
    return Found(_rows(found), best, place)


def _settings_of(recipe: Recipe) -> dict[str, Any]:
    """The given recipe as a point of the space."""
    model, training = recipe.model, recipe.training
    return {
        "width": model.width,
        "num_layers": model.num_layers,
        "dropout": min(_MOST_DROPOUT, model.dropout),
        "learning_rate": training.learning_rate,
        "weight_decay": max(_LEAST_DECAY, training.weight_decay),
        "num_negatives": training.num_negatives,
    }


def _suggested(trial: Any, base: Recipe) -> dict[str, Any]:
    """A point of the space: usual values and the given recipe's."""
    rate = base.training.learning_rate
    return {
        "width": trial.suggest_categorical("width", sorted({*_WIDTHS, base.model.width})),
        "num_layers": trial.suggest_int("num_layers", 1, max(3, base.model.num_layers)),
        "dropout": trial.suggest_float("dropout", 0.0, _MOST_DROPOUT),
        "learning_rate": trial.suggest_float("learning_rate", min(1e-4, rate), max(1e-2, rate), log=True),
        "weight_decay": trial.suggest_float("weight_decay", _LEAST_DECAY, 1.0, log=True),
        "num_negatives": trial.suggest_categorical("num_negatives", sorted({*_NEGATIVES, base.training.num_negatives})),
    }


def _with(recipe: Recipe, settings: dict[str, Any]) -> Recipe:
    """The recipe with a trial's settings."""
    values = recipe.model_dump()
    width = settings["width"]
    if width != recipe.model.width:
        values["model"] |= {"num_heads": _HEADS, "head_dim": width // _HEADS, "feedforward_width": 2 * width}
    values["model"] |= {name: settings[name] for name in ("width", "num_layers", "dropout")}
    values["training"] |= {name: settings[name] for name in ("learning_rate", "weight_decay", "num_negatives")}
    return Recipe.from_mapping(values, "search")


def _objective(trial: Any, data: Dataset, base: Recipe, trial_minutes: float) -> float:
    """Validation NDCG@10 of the best round with the trial's settings."""
    recipe = _with(base, _suggested(trial, base))
    # absorbing comes after the last look at validation, so a trial goes without
    training = recipe.training.model_copy(update={"absorb_share": 0.0, "max_minutes": trial_minutes})
    recipe = recipe.model_copy(update={"training": training})
    torch.set_num_threads(training.num_threads or 1)
    torch.manual_seed(training.seed)
    model = build_model(recipe.model, len(data.vocabulary), recipe.window)
    with tempfile.TemporaryDirectory(prefix="recsys-") as folder:
        saved = SavedRun(Path(folder) / "trial", recipe, data.protocol.value, {})
        fitted = fit(model, data, recipe, None, saved, _Reports(trial), Processes(), resume=False)
    assert fitted.ndcg is not None
    trial.set_user_attr("epochs", fitted.epochs)
    return fitted.ndcg


class _Reports:
    """Tells the study of each round, and ends a trial that is behind the others."""

    def __init__(self, trial: Any) -> None:
        self._trial = trial

    def add(self, row: RoundResult) -> None:
        """Raises optuna.TrialPruned where the median of the other trials at this round is better."""
        import optuna

        assert row.validation_ndcg is not None
        self._trial.report(row.validation_ndcg, step=row.round)
        if self._trial.should_prune():
            raise optuna.TrialPruned


def _rows(found: Any) -> list[dict[str, Any]]:
    rows = [
        {
            "trial": trial.number,
            "state": trial.state.name.lower(),
            "ndcg@10": max(trial.intermediate_values.values(), default=None),
            "rounds": len(trial.intermediate_values),
            "epochs": trial.user_attrs.get("epochs"),
            "seconds": round(trial.duration.total_seconds(), 1),
            **trial.params,
        }
        for trial in study.finished(found)
    ]
    return sorted(rows, key=lambda row: -(row["ndcg@10"] or 0.0))


def _toml(recipe: Recipe, number: int, ndcg: float) -> str:
    """A recipe file; settings that are not set are left out."""
    lines = [f"# Found by `recsys search` on {time.strftime('%Y-%m-%d', time.gmtime())}: trial {number},"]
    lines.append(f"# validation NDCG@10 {ndcg:.4f}.")
    for section, values in recipe.model_dump(mode="json", exclude_none=True).items():
        lines += _table(section, {name: value for name, value in values.items() if not isinstance(value, dict)})
        for name, value in values.items():
            if isinstance(value, dict) and value:
                lines += _table(f"{section}.{name}", value)
    return "\n".join(lines) + "\n"


def _table(name: str, values: dict[str, Any]) -> list[str]:
    return ["", f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items() if value is not None)]
