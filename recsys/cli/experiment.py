"""`recsys experiment …`: start, look at and stop experiments of the endpoints that share a store."""

from typing import Annotated, Any

import typer

from recsys.cli.options import JsonOption, emit, given

experiment_app = typer.Typer(no_args_is_help=True, help="Experiments on live users.")

NameArgument = Annotated[str, typer.Argument(help="Name of the experiment.")]
StoreOption = Annotated[str, typer.Option(help="URL of the event store that the endpoints use.")]


@experiment_app.command("start")
def experiment_start(
    name: NameArgument,
    store: StoreOption,
    arm: Annotated[
        list[str], typer.Option(help="NAME, NAME=RELEASE or NAME=RELEASE:WEIGHT; the first is the control.")
    ],
    metric: Annotated[str | None, typer.Option(help="conversion, click, hit or revenue.")] = None,
    window_hours: Annotated[
        float | None, typer.Option(help="A user is counted this long after the first answer.")
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="Chance of finding a difference where there is none.")] = None,
    expected_users: Annotated[int | None, typer.Option(help="Of two arms, where the interval is tightest.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Deal users to arms from now on; every endpoint on this store follows within a second."""
    from recsys.store import EventStore
    from serving import experiments
    from serving.arms import ARMS_DOCUMENT

    choices = {"metric": metric, "window_hours": window_hours, "alpha": alpha, "expected_users": expected_users}
    values = {"name": name, "arms": [_arm(text) for text in arm], **given(choices)}
    plan = experiments.ExperimentPlan.from_mapping(values, "experiment start")
    opened = EventStore.open(store)
    started = experiments.start(
        opened, plan, lambda arms: opened.write_document(ARMS_DOCUMENT, lambda _: arms.model_dump())
    )
    opened.close()
    emit(as_json, started.model_dump(), f"experiment {name} started: {', '.join(a.name for a in started.arms)}")


@experiment_app.command("report")
def experiment_report(
    name: NameArgument,
    store: StoreOption,
    as_json: JsonOption = False,
) -> None:
    """Counts, sample ratio, differences with intervals that hold at every look, guardrails."""
    from recsys.pipeline import tables
    from recsys.store import EventStore
    from serving.experiment_report import report

    opened = EventStore.open(store)
    found = report(opened, name)
    opened.close()
    values = found.model_dump(mode="json")
    emit(as_json, values, tables.experiment_report(values))


@experiment_app.command("stop")
def experiment_stop(name: NameArgument, store: StoreOption, as_json: JsonOption = False) -> None:
    """End it; the current release answers everybody again."""
    from recsys.store import EventStore
    from serving import experiments
    from serving.arms import ARMS_DOCUMENT

    opened = EventStore.open(store)
    stopped = experiments.stop(
        opened, name, lambda arms: opened.write_document(ARMS_DOCUMENT, lambda _: arms.model_dump())
    )
    opened.close()
    emit(as_json, stopped.model_dump(), f"experiment {name} stopped")


def _arm(text: str) -> dict[str, Any]:
    """NAME[=RELEASE][:WEIGHT]; without a release, the current one."""
    named, _, weight = text.partition(":")
    name, _, release = named.partition("=")
    return {"name": name, "release": release or None, **({"weight": weight} if weight else {})}
