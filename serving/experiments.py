"""Experiments: users dealt to arms, what became of them, and what may be concluded by now."""

import math
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from recsys.contracts.config import Config
from recsys.contracts.errors import ConfigError
from recsys.evaluation.experiment import SPLIT_ALARM, Interval, Sample, always_valid, sample_ratio
from recsys.store import EventStore
from recsys.store.counts import Share, wilson
from serving.arms import ARMS_DOCUMENT, Arm, Arms

EXPERIMENTS_DOCUMENT: Final = "experiments"
ExperimentName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
Metric = Literal["conversion", "click", "hit", "revenue"]
METRICS: Final[tuple[Metric, ...]] = ("conversion", "click", "hit", "revenue")
GUARDRAILS: Final = ("degraded", "late")
_BINARY: Final = {"conversion", "click", "hit", *GUARDRAILS}
_HOUR_MS: Final = 3_600_000
_Z: Final = 1.959964


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

    started_ms: int
    stopped_ms: int | None = None


class Figure(Config):
    """A mean over the users of an arm, with a plain 95 % interval: it is right for one look, not for many."""

    mean: float
    low: float
    high: float


class ArmReport(Config):
    """One arm."""

    arm: str
    release: str | None
    weight: float
    users: int
    """Whose time is over: they are counted."""
    users_open: int
    """Who came less than `window_hours` ago."""
    answers: int
    """In whole hours since the start, users without an id included."""
    recall: Figure | None
    """Of those answers."""
    figures: dict[str, Figure]


class Difference(Config):
    """An arm against the control, with an interval that holds at every look."""

    arm: str
    metric: str
    role: Literal["primary", "exploratory", "guardrail"]
    difference: float | None = None
    """None while an arm has fewer than 100 users, or while no revenue has come."""
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    verdict: Literal["too early", "undecided", "better", "worse", "breached"]


class ExperimentReport(Config):
    """How an experiment stands."""

    experiment: Experiment
    started_at: datetime
    conclusion: str
    """One line."""
    sample_ratio_p: float
    sample_ratio_ok: bool
    users_in_two_arms: int
    """Sessions that became users of another arm; they are counted nowhere."""
    arms: list[ArmReport]
    differences: list[Difference]


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
        ConfigError: no experiment of this name is running.
    """
    stopped_ms = int(clock() * 1000)

    def ended(stored: Any) -> list[dict[str, Any]]:
        experiments = _parsed(stored)
        if not any(each.name == name and each.stopped_ms is None for each in experiments):
            raise ConfigError(f"no experiment {name} is running")
        return [
            {**each.model_dump(), "stopped_ms": stopped_ms} if each.name == name else each.model_dump()
            for each in experiments
        ]

    after = store.write_document(EXPERIMENTS_DOCUMENT, ended)
    set_arms(Arms(shadow=_shadow(store)))
    return next(each for each in _parsed(after) if each.name == name)


def report(store: EventStore, name: str, clock: Callable[[], float] = time.time) -> ExperimentReport:
    """How it stands, by the users whose time is over.

    Raises:
        ConfigError: there is no such experiment.
        StoreError: the store cannot be read.
    """
    experiment = next((each for each in listed(store) if each.name == name), None)
    if experiment is None:
        raise ConfigError(f"no experiment {name}; known: {', '.join(e.name for e in listed(store)) or 'none'}")
    until_ms = min(int(clock() * 1000), experiment.stopped_ms or math.inf)
    window_ms = round(experiment.window_hours * _HOUR_MS)
    entries = store.outcomes.entries([arm.name for arm in experiment.arms], experiment.started_ms, int(until_ms))
    dealt = [entry for entry in entries if not entry.is_moved]
    closed = [entry for entry in dealt if entry.first_ms + window_ms <= until_ms]
    samples = {arm.name: dict.fromkeys([*METRICS, *GUARDRAILS], Sample()) for arm in experiment.arms}
    for entry, outcome in store.outcomes.of(closed, window_ms):
        of_arm = samples[entry.arm]
        for metric in of_arm:
            of_arm[metric] += Sample.of([getattr(outcome, metric)])
    num_dealt = [sum(entry.arm == arm.name for entry in dealt) for arm in experiment.arms]
    split_p = sample_ratio(num_dealt, [arm.weight for arm in experiment.arms])
    differences = _differences(experiment, samples)
    return ExperimentReport(
        experiment=experiment,
        started_at=datetime.fromtimestamp(experiment.started_ms / 1000, UTC),
        conclusion=_conclusion(experiment, split_p, differences),
        sample_ratio_p=split_p,
        sample_ratio_ok=split_p >= SPLIT_ALARM,
        users_in_two_arms=len(entries) - len(dealt),
        arms=_arm_reports(store, experiment, samples, num_dealt),
        differences=differences,
    )


def _arm_reports(
    store: EventStore, experiment: Experiment, samples: dict[str, dict[str, Sample]], num_dealt: Sequence[int]
) -> list[ArmReport]:
    totals = store.attribution.totals(experiment.started_ms)
    rows = []
    for arm, dealt in zip(experiment.arms, num_dealt, strict=True):
        users = samples[arm.name]["hit"].num_users
        counted = [counts for (_, name), counts in totals.items() if name == arm.name]
        for other in counted[1:]:
            counted[0] += other
        rows.append(
            ArmReport(
                arm=arm.name,
                release=arm.release,
                weight=arm.weight,
                users=users,
                users_open=dealt - users,
                answers=counted[0].answers if counted else 0,
                recall=_plain(counted[0].recall()) if counted else None,
                figures={
                    metric: figure
                    for metric, sample in samples[arm.name].items()
                    if (figure := _figure(sample, binary=metric in _BINARY)) is not None
                },
            )
        )
    return rows


def _figure(sample: Sample, *, binary: bool) -> Figure | None:
    if binary:
        return _plain(wilson(round(sample.total), sample.num_users))
    if sample.num_users < 2:
        return None
    margin = _Z * math.sqrt(sample.variance(binary=False) / sample.num_users)
    return Figure(mean=sample.mean, low=sample.mean - margin, high=sample.mean + margin)


def _plain(share: Share) -> Figure | None:
    return None if math.isnan(share.value) else Figure(mean=share.value, low=share.low, high=share.high)


def _differences(experiment: Experiment, samples: dict[str, dict[str, Sample]]) -> list[Difference]:
    control, *others = experiment.arms
    alpha = experiment.alpha / len(others)  # Bonferroni: any of the arms may be the one that looks better
    rows = []
    for arm in others:
        for metric in (experiment.metric, *(m for m in METRICS if m != experiment.metric), *GUARDRAILS):
            interval = always_valid(
                samples[arm.name][metric],
                samples[control.name][metric],
                alpha=alpha,
                expected_users=experiment.expected_users,
                binary=metric in _BINARY,
            )
            rows.append(_difference(arm.name, metric, interval, is_primary=metric == experiment.metric))
    return rows


def _difference(arm: str, metric: str, interval: Interval | None, *, is_primary: bool) -> Difference:
    is_guardrail = metric in GUARDRAILS
    role = "guardrail" if is_guardrail else "primary" if is_primary else "exploratory"
    if interval is None:
        return Difference(arm=arm, metric=metric, role=role, verdict="too early")
    verdict: Literal["undecided", "better", "worse", "breached"] = "undecided"
    if interval.low > 0:
        verdict = "breached" if is_guardrail else "better"
    elif interval.high < 0:
        verdict = "better" if is_guardrail else "worse"
    return Difference(
        arm=arm,
        metric=metric,
        role=role,
        difference=interval.difference,
        low=interval.low,
        high=interval.high,
        p_value=interval.p_value,
        verdict=verdict,
    )


def _conclusion(experiment: Experiment, split_p: float, differences: Sequence[Difference]) -> str:
    if split_p < SPLIT_ALARM:
        return f"sample ratio is off (p = {split_p:.2g}): believe nothing below, find out why users are missing"
    breached = [row for row in differences if row.verdict == "breached"]
    if breached:
        return "guardrail breached: " + ", ".join(
            f"more users with {row.metric} answers in {row.arm}" for row in breached
        )
    found = [row for row in differences if row.role == "primary" and row.verdict in {"better", "worse"}]
    if found:
        control = experiment.arms[0].name
        return "; ".join(f"{row.arm} is {row.verdict} than {control} on {row.metric}" for row in found)
    if all(row.verdict == "too early" for row in differences if row.role == "primary"):
        return "too early to say anything"
    return f"undecided on {experiment.metric}"


def _shadow(store: EventStore) -> str | None:
    return Arms.from_mapping(store.document(ARMS_DOCUMENT) or {}, "stored arms").shadow


def _parsed(stored: Any) -> list[Experiment]:
    return [Experiment.from_mapping(each, "stored experiments") for each in stored or []]
