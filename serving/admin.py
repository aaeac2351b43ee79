"""What operators call: releases, arms, rules. Needs a token with the scope `admin`."""

from collections.abc import Callable
from typing import Annotated, TypeVar

from fastapi import APIRouter, Path, Query
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from recsys.contracts.errors import ConfigError
from recsys.contracts.events import MAX_ID_LENGTH
from serving import experiments
from serving.arms import Arms, ReleaseName
from serving.changes import UnderWayError
from serving.endpoint import Endpoint
from serving.experiment_report import ExperimentReport, report
from serving.experiments import Experiment, ExperimentName, ExperimentPlan
from serving.problems import BAD_BODY, GUARDED, NOT_FOUND, REFUSED, STORE_TROUBLE, UNDER_WAY
from serving.rules import KeptRules, Rules
from serving.schemas import Availability, AvailabilityChanged, ReleaseList, Unavailable

T = TypeVar("T")
_Experiment = Annotated[ExperimentName, Path(examples=["november"])]


def admin_routes(endpoint: Endpoint) -> APIRouter:
    """Everything an operator may change while requests are answered."""
    responses = {**BAD_BODY, **GUARDED, **REFUSED, **STORE_TROUBLE}
    router = APIRouter(prefix="/v1/admin", tags=["admin"], responses=responses)
    releases = endpoint.releases

    def listed() -> ReleaseList:
        endpoint.metrics.show_release(releases.current.name)
        return ReleaseList(
            current=releases.current.name,
            loaded=releases.loaded,
            releases=releases.names(),
            preparing=endpoint.preparing,
        )

    def made(change: Callable[[], T]) -> T | JSONResponse:
        """What the change returns; where it takes long, the list of releases, with its progress."""
        try:
            return endpoint.changes.make(change)
        except UnderWayError:
            return JSONResponse(listed().model_dump(), status_code=202)

    @router.get("/releases")
    def list_releases() -> ReleaseList:
        """Releases on disk and in memory."""
        return listed()

    @router.post("/releases/{name}/activate", response_model=ReleaseList, responses=UNDER_WAY)
    def activate(name: Annotated[ReleaseName, Path(examples=["2026-11-25"])]) -> ReleaseList | JSONResponse:
        """Load a release beside the current one, warm and check it, encode kept sessions, then switch.

        No recommendation waits. After five seconds the answer is 202, and `preparing` in the list of releases says how
        far it is.
        """

        def activated() -> ReleaseList:
            releases.activate(name)
            return listed()

        return made(activated)

    @router.post("/rollback")
    def roll_back() -> ReleaseList:
        """Switch back to the release before the current one; a switch that is being prepared is given up instead."""
        releases.roll_back()
        return listed()

    @router.get("/arms")
    def arms() -> Arms:
        """Who is answered by which release."""
        return releases.arms

    @router.put("/arms", response_model=Arms, responses=UNDER_WAY)
    def set_arms(body: Arms) -> Arms | JSONResponse:
        """Several releases at once, by weight; and a shadow. Weights may change, but not of a running experiment."""
        trial = experiments.running(endpoint.store)
        if trial is not None and (body.arms, body.salt) != (trial.arms, trial.name):
            raise ConfigError(f"experiment {trial.name} is running, and needs its arms as they are; stop it first")

        def dealt() -> Arms:
            releases.set_arms(body)
            return body

        return made(dealt)

    @router.get("/experiments")
    def list_experiments() -> list[Experiment]:
        """All experiments, the oldest first."""
        return experiments.listed(endpoint.store)

    @router.post("/experiments", response_model=Experiment, responses=UNDER_WAY)
    def start_experiment(body: ExperimentPlan) -> Experiment | JSONResponse:
        """Deal users to arms, once their sessions are encoded. One experiment runs at a time."""
        return made(lambda: experiments.start(endpoint.store, body, releases.set_arms))

    @router.get("/experiments/{name}", responses=NOT_FOUND)
    def experiment_report(name: _Experiment) -> ExperimentReport:
        """How it stands. It may be looked at every day: its intervals hold at all looks together."""
        return report(endpoint.store, name)

    @router.post("/experiments/{name}/stop", response_model=Experiment, responses={**UNDER_WAY, **NOT_FOUND})
    def stop_experiment(name: _Experiment) -> Experiment | JSONResponse:
        """End it; the current release answers everybody again. Activate the winner to keep it."""
        return made(lambda: experiments.stop(endpoint.store, name, releases.set_arms))

    @router.get("/rules")
    def rules() -> Rules:
        """The rule book."""
        return releases.rules

    @router.put("/rules")
    def set_rules(body: Rules) -> KeptRules:
        """Replace the rule book; it holds from the next request on."""
        _check(body)
        releases.set_rules(body)
        return KeptRules.of(body, [live.recommender.release.vocabulary for live in releases.all_live])

    @router.patch("/availability")
    def availability(body: Availability) -> AvailabilityChanged:
        """Change the stock of some items; it holds from the next request on."""
        changed = releases.set_availability(body.items)
        return AvailabilityChanged(items=changed, num_unavailable=releases.book.num_unavailable)

    @router.get("/availability")
    def unavailable(
        after: Annotated[str, Query(max_length=MAX_ID_LENGTH, pattern=r"^[^\x00]*$", examples=["22423"])] = "",
        limit: Annotated[int, Query(ge=1, le=10_000, examples=[1_000])] = 1_000,
    ) -> Unavailable:
        """Items that are out of stock, a page at a time: the next one is `after` the last item of this one."""
        items = endpoint.store.stock.unavailable(after, limit)
        return Unavailable(items=items, num_unavailable=releases.book.num_unavailable)

    return router


def _check(rules: Rules) -> None:
    """Refuse what would do nothing. Not a rule of `Rules` itself: a book that was kept before must stay readable.

    Raises:
        RequestValidationError: a boost of nothing.
    """
    for place, boost in enumerate(rules.boosts):
        if boost.item_id is None and boost.category is None:
            message = "a boost of nothing: give item_id, category or both"
            raise RequestValidationError([{"loc": ("body", "boosts", place), "msg": message, "type": "value_error"}])
