"""What operators call: releases, arms, rules. Needs a token with the scope `admin`."""

from typing import Annotated

from fastapi import APIRouter, Path

from recsys.contracts.errors import ConfigError
from serving import experiments
from serving.arms import Arms, ReleaseName
from serving.endpoint import Endpoint
from serving.experiment_report import ExperimentReport, report
from serving.experiments import Experiment, ExperimentName, ExperimentPlan
from serving.problems import BAD_BODY, GUARDED, NOT_FOUND, REFUSED, STORE_TROUBLE
from serving.rules import Rules
from serving.schemas import Availability, ReleaseList

_Experiment = Annotated[ExperimentName, Path(examples=["november"])]


def admin_routes(endpoint: Endpoint) -> APIRouter:
    """Everything an operator may change while requests are answered."""
    responses = {**BAD_BODY, **GUARDED, **REFUSED, **STORE_TROUBLE}
    router = APIRouter(prefix="/v1/admin", tags=["admin"], responses=responses)
    releases = endpoint.releases

    def listed() -> ReleaseList:
        endpoint.metrics.show_release(releases.current.name)
        return ReleaseList(current=releases.current.name, loaded=releases.loaded, releases=releases.names())

    @router.get("/releases")
    def list_releases() -> ReleaseList:
        """Releases on disk and in memory."""
        return listed()

    @router.post("/releases/{name}/activate")
    def activate(name: Annotated[ReleaseName, Path(examples=["2026-11-25"])]) -> ReleaseList:
        """Load a release beside the current one, warm and check it, then switch; no request waits."""
        releases.activate(name)
        return listed()

    @router.post("/rollback")
    def roll_back() -> ReleaseList:
        """Switch back to the release before the current one."""
        releases.roll_back()
        return listed()

    @router.get("/arms")
    def arms() -> Arms:
        """Who is answered by which release."""
        return releases.arms

    @router.put("/arms")
    def set_arms(body: Arms) -> Arms:
        """Several releases at once, by weight; and a shadow. Weights may change, but not of a running experiment."""
        trial = experiments.running(endpoint.store)
        if trial is not None and (body.arms, body.salt) != (trial.arms, trial.name):
            raise ConfigError(f"experiment {trial.name} is running, and needs its arms as they are; stop it first")
        releases.set_arms(body)
        return body

    @router.get("/experiments")
    def list_experiments() -> list[Experiment]:
        """All experiments, the oldest first."""
        return experiments.listed(endpoint.store)

    @router.post("/experiments")
    def start_experiment(body: ExperimentPlan) -> Experiment:
        """Deal users to arms from now on. One experiment runs at a time."""
        return experiments.start(endpoint.store, body, releases.set_arms)

    @router.get("/experiments/{name}", responses=NOT_FOUND)
    def experiment_report(name: _Experiment) -> ExperimentReport:
        """How it stands. It may be looked at every day: its intervals hold at all looks together."""
        return report(endpoint.store, name)

    @router.post("/experiments/{name}/stop", responses=NOT_FOUND)
    def stop_experiment(name: _Experiment) -> Experiment:
        """End it; the current release answers everybody again. Activate the winner to keep it."""
        return experiments.stop(endpoint.store, name, releases.set_arms)

    @router.get("/rules")
    def rules() -> Rules:
        """The rule book."""
        return releases.rules

    @router.put("/rules")
    def set_rules(body: Rules) -> Rules:
        """Replace the rule book; it holds from the next request on."""
        releases.set_rules(body)
        return body

    @router.patch("/availability")
    def availability(body: Availability) -> Rules:
        """Change the stock of some items; it holds from the next request on."""
        releases.set_availability(dict(body.items))
        return releases.rules

    return router
