"""Experiments: started, reported, stopped, and refused where their figures would be worth nothing."""

from pathlib import Path

import numpy as np
import pytest

from recsys.contracts.errors import ConfigError
from recsys.contracts.events import Event
from recsys.store import EventStore, Impression
from serving.arms import ARMS_DOCUMENT, Arms
from serving.experiment_report import report
from serving.experiments import Experiment, ExperimentPlan, listed, running, start, stop
from tests.serving.test_live import client, site  # noqa: F401  # fixtures

ARMS = [{"name": "control"}, {"name": "new", "release": "b"}]
HOUR_MS = 3_600_000


class Clock:
    """Seconds since 1970, moved by hand."""

    hours = 100.0

    def __call__(self) -> float:
        return self.hours * 3600


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock):
    opened = EventStore.open(f"sqlite:///{tmp_path / 'trial.db'}", clock)
    yield opened
    opened.close()


def begin(store: EventStore, clock: Clock, **settings) -> Experiment:
    plan = ExperimentPlan.from_mapping({"name": "trial", "arms": ARMS, **settings}, "plan")
    return start(store, plan, lambda arms: None, clock)


def visit(store: EventStore, clock: Clock, users: dict[str, float], buyers: np.random.Generator, **shown) -> None:
    """600 users of each arm: one answer each, and a purchase of 10 an hour later by a share of them."""
    at_ms = int(clock() * 1000)
    for arm, share in users.items():
        made = {"arm": arm, "release": "r", "source": "model", "items": ["x"], **shown}
        names = [f"{arm}-{clock.hours}-{n}" for n in range(600)]
        store.record_impressions([Impression(request_id=f"q-{u}", user_id=u, **made) for u in names])
        bought = {"item_id": "y", "event_type": "purchase", "value": 10.0, "timestamp_ms": at_ms + HOUR_MS}
        store.append([Event(user_id=u, **bought) for u in names if buyers.random() < share])


def verdicts(store: EventStore, clock: Clock) -> dict[str, str]:
    return {row.metric: row.verdict for row in report(store, "trial", clock).differences}


def test_a_difference_is_found_and_the_report_names_it(store: EventStore, clock: Clock) -> None:
    begin(store, clock, expected_users=1_200)
    visit(store, clock, {"control": 0.1, "new": 0.3}, np.random.default_rng(0))
    assert verdicts(store, clock)["conversion"] == "too early"  # nobody's 24 hours are over
    clock.hours += 24
    found = report(store, "trial", clock)
    assert found.conclusion == "new is better than control on conversion"
    assert [(arm.arm, arm.users, arm.users_open) for arm in found.arms] == [("control", 600, 0), ("new", 600, 0)]
    assert found.sample_ratio_ok
    primary, *others = found.differences
    assert (primary.metric, primary.role, primary.verdict) == ("conversion", "primary", "better")
    means = {arm.arm: arm.figures["conversion"].mean for arm in found.arms}
    assert primary.difference == pytest.approx(means["new"] - means["control"])
    assert {row.metric: row.verdict for row in others} == {
        "click": "undecided",
        "hit": "undecided",
        "revenue": "better",
        "degraded": "undecided",
        "late": "undecided",
    }


def test_users_whose_time_is_not_over_are_not_counted(store: EventStore, clock: Clock) -> None:
    begin(store, clock)
    visit(store, clock, {"control": 0.1, "new": 0.1}, np.random.default_rng(0))
    clock.hours += 12
    visit(store, clock, {"control": 0.1, "new": 0.1}, np.random.default_rng(1))
    clock.hours += 12
    assert [(arm.users, arm.users_open) for arm in report(store, "trial", clock).arms] == [(600, 600)] * 2
    stop(store, "trial", lambda arms: None, clock)
    clock.hours += 100  # what came after the end is not part of it
    assert [(arm.users, arm.users_open) for arm in report(store, "trial", clock).arms] == [(600, 600)] * 2


def test_a_wrong_sample_ratio_comes_before_everything_else(store: EventStore, clock: Clock) -> None:
    begin(store, clock, arms=[{"name": "control", "weight": 9}, {"name": "new", "weight": 8}])
    visit(store, clock, {"control": 0.1, "new": 0.9}, np.random.default_rng(0))
    assert report(store, "trial", clock).sample_ratio_ok  # 600 and 600 of 9 to 8: p = .04
    clock.hours += 1
    visit(store, clock, {"new": 0.9}, np.random.default_rng(0))
    clock.hours += 24
    found = report(store, "trial", clock)
    assert not found.sample_ratio_ok
    assert "believe nothing" in found.conclusion


def test_more_degraded_answers_breach_a_guardrail(store: EventStore, clock: Clock) -> None:
    begin(store, clock)
    visit(store, clock, {"control": 0.1}, np.random.default_rng(0))
    visit(store, clock, {"new": 0.9}, np.random.default_rng(0), degraded="deadline")
    clock.hours += 24
    assert report(store, "trial", clock).conclusion == "guardrail breached: more users with degraded answers in new"


def test_a_session_that_became_a_user_of_the_other_arm_is_left_out(store: EventStore, clock: Clock) -> None:
    begin(store, clock)
    for arm, user in (("control", "session"), ("new", "ann"), ("new", "bob")):
        made = {"release": "r", "source": "model", "items": ["x"]}
        store.record_impressions([Impression(request_id=f"q-{user}", user_id=user, arm=arm, **made)])
    store.join("session", "ann")
    clock.hours += 1
    found = report(store, "trial", clock)
    assert (found.users_in_two_arms, [arm.users_open for arm in found.arms]) == (1, [0, 1])


def test_one_runs_at_a_time_under_a_name_of_its_own(store: EventStore, clock: Clock) -> None:
    begin(store, clock)
    with pytest.raises(ConfigError, match="experiment trial is running; stop it first"):
        begin(store, clock, name="other")
    stop(store, "trial", lambda arms: None, clock)
    assert running(store) is None
    with pytest.raises(ConfigError, match="there was an experiment trial before"):
        begin(store, clock)
    with pytest.raises(ConfigError, match="no experiment trial is running"):
        stop(store, "trial", lambda arms: None, clock)
    with pytest.raises(ConfigError, match="no experiment none; known: trial"):
        report(store, "none", clock)


def test_a_start_that_fails_leaves_nothing_behind(store: EventStore, clock: Clock) -> None:
    def refuse(arms: Arms) -> None:
        raise ConfigError("no release b here")

    with pytest.raises(ConfigError, match="no release b here"):
        start(store, ExperimentPlan(name="trial", arms=ARMS), refuse, clock)
    assert listed(store) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"arms": ARMS[:1]}, "at least 2"),
        ({"arms": [ARMS[0], {"name": "new", "weight": 0}]}, "needs a weight above 0"),
        ({"arms": [ARMS[0], ARMS[0]]}, "arms need names of their own"),
        ({"arms": [{"name": "all"}, ARMS[1]]}, "`all` is the label of users in no arm"),
        ({"alpha": 1}, "less than 1"),
        ({"metric": "smiles"}, "metric"),
        ({"name": "a b"}, "name"),
    ],
)
def test_plans_that_make_no_sense_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ExperimentPlan.from_mapping({"name": "trial", "arms": ARMS, **settings}, "plan")


def test_over_http_users_are_dealt_by_the_name_and_the_arms_stay_as_they_are(client, site) -> None:  # noqa: F811
    client.put("/v1/admin/arms", json={"arms": [{"name": "all"}], "shadow": "c"})
    refused = client.post("/v1/admin/experiments", json={"name": "t", "arms": [ARMS[0], {"name": "n", "release": "z"}]})
    assert (refused.status_code, client.get("/v1/admin/experiments").json()) == (409, [])
    assert client.post("/v1/admin/experiments", json={"name": "t", "arms": ARMS}).status_code == 200
    stored = Arms(**site.store.document(ARMS_DOCUMENT))
    assert (stored.salt, stored.shadow, [arm.name for arm in stored.arms]) == ("t", "c", ["control", "new"])
    answers = [client.post("/v1/recommendations", json={"user_id": f"u{n}"}).json() for n in range(40)]
    assert {(a["arm"], a["release"]) for a in answers} == {("control", "a"), ("new", "b")}
    moved = {**stored.model_dump(), "salt": "another"}
    assert "is running" in client.put("/v1/admin/arms", json=moved).text
    assert client.put("/v1/admin/arms", json={**stored.model_dump(), "shadow": None}).status_code == 200
    assert client.get("/v1/admin/experiments/t").json()["conclusion"] == "too early to say anything"
    assert client.get("/v1/admin/experiments/none").status_code == 404
    assert client.post("/v1/admin/experiments/none/stop").status_code == 404
    assert client.post("/v1/admin/experiments/t/stop").json()["stopped_ms"]
    assert client.post("/v1/admin/experiments/t/stop").status_code == 409
    assert client.post("/v1/recommendations", json={"user_id": "u1"}).json()["arm"] == "all"
