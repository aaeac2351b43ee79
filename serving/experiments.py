"""Experiments: users dealt to the arms of a plan that is fixed before the first of them."""

import time
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from recsys.contracts.config import Config
from recsys.contracts.errors import ConfigError
from recsys.store import EventStore
from serving.arms import ARMS_DOCUMENT, Arm, Arms

EXPERIMENTS_DOCUMENT: Final = "experiments"
ExperimentName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
Metric = Literal["conversion", "click", "hit", "revenue"]
METRICS: Final[tuple[Metric, ...]] = ("conversion", "click", "hit", "revenue")


class UnknownExperimentError(ConfigError):
    """No experiment has this name."""


class ExperimentPlan(Config):
    """What is tried. All of it is fixed before the first user, so that nothing can be chosen by the outcome."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"name": "november", "arms": [{"name": "control"}, {"name": "new", "release": "2026-11-25"}]},
            ]
        }
    )
    name: ExperimentName
    """Also the salt: each experiment deals its users anew."""
    arms: list[Arm] = Field(min_length=2, max_length=20)
    """The first one is the control."""
    metric: Metric = "conversion"
    """What the verdict is about, a user: `conversion` (bought anything), `click` (echoed an answer on an item that it
    recommended), `hit` (did anything with a recommended item), `revenue`."""
    window_hours: float = Field(default=24.0, gt=0, le=24 * 90)
    """A user is counted once this long has passed since their first answer, by what they did until then."""
    alpha: float = Field(default=0.05, gt=0, lt=1)
    """Chance of a difference being found, at any look and in any arm, where there is none."""
    expected_users: int = Field(default=10_000, ge=1)
    """Of two arms together: where the interval is to be tightest. It holds whatever is chosen."""

    @model_validator(mode="after")
    def _everybody_may_be_dealt(self) -> Self:
        Arms(arms=self.arms, salt=self.name)  # names are checked there
        if any(arm.weight <= 0 for arm in self.arms):
            raise ValueError("each arm of an experiment needs a weight above 0")
        return self


class Experiment(ExperimentPlan):
    """A plan that was started."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "november",
                    "arms": [{"name": "control"}, {"name": "new", "release": "2026-11-25"}],
                    "started_ms": 1_795_564_800_000,
                    "stopped_ms": None,
                },
            ]
        }
    )
    started_ms: int
    stopped_ms: int | None = None


def running(store: EventStore) -> Experiment | None:
    """The experiment that has not been stopped, if there is one.

    Raises:
        StoreError: the store cannot be read.
    """
    return next((each for each in listed(store) if each.stopped_ms is None), None)


def listed(store: EventStore) -> list[Experiment]:
    """All experiments, the oldest first.

    Raises:
        StoreError: the store cannot be read.
    """
    return _parsed(store.document(EXPERIMENTS_DOCUMENT))


def named(store: EventStore, name: str) -> Experiment:
    """One experiment.

    Raises:
        UnknownExperimentError: there is none of this name.
        StoreError: the store cannot be read.
    """
    return _named(listed(store), name)


def start(
    store: EventStore,
    plan: ExperimentPlan,
    set_arms: Callable[[Arms], object],
    clock: Callable[[], float] = time.time,
) -> Experiment:
    """Deal users to the plan's arms from now on.

    Raises:
        ConfigError: one is running, or the name was used before.
        RecsysError: a release of the plan cannot be loaded; nothing has changed.
    """
    experiment = Experiment(**plan.model_dump(), started_ms=int(clock() * 1000))

    def added(stored: Any) -> list[dict[str, Any]]:
        for other in _parsed(stored):
            if other.stopped_ms is None:
                raise ConfigError(f"experiment {other.name} is running; stop it first")
            if other.name == plan.name:
                raise ConfigError(f"there was an experiment {plan.name} before; choose another name")
        return [*(stored or []), experiment.model_dump()]

    store.write_document(EXPERIMENTS_DOCUMENT, added)
    try:
        set_arms(Arms(arms=plan.arms, salt=plan.name, shadow=_shadow(store)))
    except BaseException:
        store.write_document(EXPERIMENTS_DOCUMENT, lambda stored: stored[:-1])
        raise
    return experiment


def stop(
    store: EventStore, name: str, set_arms: Callable[[Arms], object], clock: Callable[[], float] = time.time
) -> Experiment:
    """End it; the current release answers everybody again.

    Raises:
        ConfigError: no experiment of this name is running; `UnknownExperimentError` if there never was one.
    """
    stopped_ms = int(clock() * 1000)

    def ended(stored: Any) -> list[dict[str, Any]]:
        experiments = _parsed(stored)
        _named(experiments, name)
        if not any(each.name == name and each.stopped_ms is None for each in experiments):
            raise ConfigError(f"no experiment {name} is running")
        return [
            {**each.model_dump(), "stopped_ms": stopped_ms} if each.name == name else each.model_dump()
            for each in experiments
        ]

    after = store.write_document(EXPERIMENTS_DOCUMENT, ended)
    set_arms(Arms(shadow=_shadow(store)))
    return next(each for each in _parsed(after) if each.name == name)


def _named(experiments: list[Experiment], name: str) -> Experiment:
    found = next((each for each in experiments if each.name == name), None)
    if found is None:
        known = ", ".join(each.name for each in experiments) or "none"
        raise UnknownExperimentError(f"no experiment {name}; known: {known}")
    return found


def _shadow(store: EventStore) -> str | None:
    return Arms.from_mapping(store.document(ARMS_DOCUMENT) or {}, "stored arms").shadow


def _parsed(stored: Any) -> list[Experiment]:
    return [Experiment.from_mapping(each, "stored experiments") for each in stored or []]
