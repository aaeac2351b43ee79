"""The picture of `recsys benchmark case`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

STEPS = ("before", "pruning", "window", "engine", "quantization", "cache")


def words(window: Mapping[str, Any]) -> dict[str, str]:
    """What each step switches on, with windows of these settings."""
    size, shared, leaves = window["size"], window["overlap_share"], window["summary_tokens"]
    summaries = f", {leaves} summaries each" if leaves else ""
    return {
        "before": f"all ids, full attention over {2 * size:,}, float32, eager",
        "pruning": "+ rare ids pruned",
        "window": f"+ window of {size:,}, {100 * shared:g} % shared{summaries}",
        "engine": "+ engine: fused attention, last layer for the last event alone",
        "quantization": "+ 8-bit weights and items",
        "cache": "+ kept keys and values, each new event appended",
    }


def picture(values: dict[str, Any], path: Path) -> None:
    """Latency by step as bars on a logarithmic scale."""
    from matplotlib.figure import Figure

    latency = [values["latency_ms"][name] for name in STEPS]
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.add_subplot()
    bars = axes.barh(
        list(words(values["window"]).values()), latency, color=["tab:gray", *["tab:blue"] * (len(STEPS) - 1)]
    )
    axes.bar_label(bars, [f" {value:.1f} ms" for value in latency])
    axes.set_xscale("log")
    axes.set_xlim(right=max(latency) * 3)
    axes.invert_yaxis()
    axes.set_xlabel("one user's answer, median ms")
    figure.savefig(path, dpi=120)
