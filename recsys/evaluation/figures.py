"""The figures of the report page: SVG text drawn from the plain values of `Evaluation.to_json`."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from recsys.contracts.errors import ConfigError
from recsys.evaluation.protocols import AGAINST, MODEL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {MODEL: "#0b5fa5", AGAINST: "#c2571a"}
"""Every other ranker is grey."""
GREY = "#8a8f98"
_ROW_INCHES = 0.34


def accuracy(values: dict[str, Any]) -> str:
    """A bar a ranker: the primary metric with the 95 % interval of its mean."""
    rankers = rankers_of(values)
    names = sorted(rankers, key=lambda name: float(rankers[name][values["metric"]]))
    figure, axes = _figure(len(names))
    for row, name in enumerate(names):
        mean = rankers[name][values["metric"]]
        axes.barh(row, mean, height=0.62, color=COLORS.get(name, GREY))
        span = values["intervals"][name]
        if span is not None:
            axes.plot(span, [row, row], color="black", linewidth=1.2, marker="|", markersize=7)
        axes.annotate(f"{mean:.4f}", (span[1] if span else mean, row), (6, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel(values["metric"])
    axes.margins(x=0.14)
    axes.set_xlim(left=0)
    return _svg(figure)


def differences(comparison: dict[str, Any]) -> str:
    """A row a metric: the relative difference with its 95 % interval, beside the margin."""
    rows = [row for row in [comparison["primary"], *comparison["exploratory"]] if row["relative_low"] is not None]
    figure, axes = _figure(max(2, len(rows)))
    axes.axvline(0, color="black", linewidth=0.8)
    axes.axvline(-100 * comparison["margin"], color="#b3261e", linewidth=1.2, linestyle="--", label="margin")
    for place, row in enumerate(rows):
        color = COLORS[MODEL] if row is comparison["primary"] else GREY
        axes.plot([100 * row["relative_low"], 100 * row["relative_high"]], [place, place], color=color, linewidth=2.4)
        axes.plot(100 * row["relative"], place, "o", color=color)
    axes.set_yticks(range(len(rows)), [row["metric"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("relative difference, %")
    axes.legend(loc="best", frameon=False)
    return _svg(figure)


def segments(rows: Sequence[dict[str, Any]], metric: str, rankers: Sequence[str]) -> str:
    """A row a segment, a dot a ranker; segments without users are left out."""
    shown = [row for row in rows if row["num_users"]]
    figure, axes = _figure(max(2, len(shown)))
    for number, name in enumerate(rankers):
        dots = [row["values"][name][metric] for row in shown]
        places = [place + 0.16 * (number - (len(rankers) - 1) / 2) for place in range(len(shown))]
        axes.plot(dots, places, "o", color=COLORS.get(name, GREY), label=name, markersize=6)
    axes.set_yticks(range(len(shown)), [f"{row['segment']}  ({row['num_users']:,})" for row in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.grid(axis="y", color="#e3e5e8")
    axes.set_axisbelow(True)
    axes.set_xlabel(metric)
    axes.margins(x=0.08)
    axes.set_xlim(left=min(-0.005, axes.get_xlim()[0]))
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return _svg(figure)


def rankers_of(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The figures of every ranker, the model first."""
    ours = {name: values[name] for name in (MODEL, AGAINST) if name in values}
    return {**ours, **values["baselines"]}


def check_installed() -> None:
    """See that what draws is there.

    Raises:
        ConfigError: it is not; says how to get it.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise ConfigError("the report page needs matplotlib; install recsys[train], or leave --report out") from None


def _figure(num_rows: int) -> "tuple[Figure, Axes]":
    check_installed()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.2, 0.9 + _ROW_INCHES * num_rows), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: "Figure") -> str:
    """The drawing, glyphs as paths, so that it looks the same wherever it is opened."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "path", "svg.hashsalt": "recsys"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
