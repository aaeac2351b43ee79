"""How an experiment stands: counts by arm, the sample ratio, differences that may be watched, guardrails."""

import math
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final, Literal

from pydantic import ConfigDict

from recsys.contracts.config import Config
from recsys.evaluation.experiment import SPLIT_ALARM, Interval, Sample, always_valid, sample_ratio
from recsys.store import EventStore, Outcome
from recsys.store.counts import Share, wilson
from serving.experiments import METRICS, Experiment, named

GUARDRAILS: Final = ("degraded", "late")
_ALL: Final = (*METRICS, *GUARDRAILS)
_CONTINUOUS: Final = "revenue"
"""All other figures are 0 or 1 for each user."""
_HOUR_MS: Final = 3_600_000
_Z: Final = 1.959964  # 97.5 % point of the normal distribution


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

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "experiment": {
                        "name": "november",
                        "arms": [{"name": "control"}, {"name": "new", "release": "2026-11-25"}],
                        "started_ms": 1_795_564_800_000,
                    },
                    "started_at": "2026-11-25T00:00:00Z",
                    "conclusion": "too early: 60 users of new are counted, 100 are needed",
                    "sample_ratio_p": 0.48,
                    "sample_ratio_ok": True,
                    "users_in_two_arms": 0,
                    "arms": [
                        {
                            "arm": "new",
                            "release": "2026-11-25",
                            "weight": 1.0,
                            "users": 60,
                            "users_open": 35,
                            "answers": 412,
                            "recall": {"mean": 0.19, "low": 0.15, "high": 0.24},
                            "figures": {"conversion": {"mean": 0.1, "low": 0.047, "high": 0.201}},
                        }
                    ],
                    "differences": [
                        {"arm": "new", "metric": "conversion", "role": "primary", "verdict": "too early"},
                    ],
                }
            ]
        }
    )
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


def report(store: EventStore, name: str, clock: Callable[[], float] = time.time) -> ExperimentReport:
    """How it stands, by the users whose time is over.

    Raises:
        UnknownExperimentError: there is no such experiment.
        StoreError: the store cannot be read.
    """
    experiment = named(store, name)
    until_ms = min(int(clock() * 1000), experiment.stopped_ms or math.inf)
    window_ms = round(experiment.window_hours * _HOUR_MS)
    entries = store.outcomes.entries([arm.name for arm in experiment.arms], experiment.started_ms, int(until_ms))
    dealt = [entry for entry in entries if not entry.is_moved]
    closed = [entry for entry in dealt if entry.first_ms + window_ms <= until_ms]
    found: dict[str, list[Outcome]] = {arm.name: [] for arm in experiment.arms}
    for entry, outcome in store.outcomes.of(closed, window_ms):
        found[entry.arm].append(outcome)
    samples = {
        arm: {metric: Sample.of([getattr(outcome, metric) for outcome in outcomes]) for metric in _ALL}
        for arm, outcomes in found.items()
    }
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
                    if (figure := _figure(sample, binary=metric != _CONTINUOUS)) is not None
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
                binary=metric != _CONTINUOUS,
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
