"""The picture of `recsys benchmark case`."""

from pathlib import Path
from typing import Any

STEPS = {
    "before": "all ids, full attention over 2,048, float32, eager",
    "pruning": "+ rare ids pruned",
    "window": "+ window of 1,024, 30 % shared",
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
    bars = axes.barh(list(STEPS.values()), latency, color=["tab:gray", *["tab:blue"] * (len(STEPS) - 1)])
    axes.bar_label(bars, [f" {value:.1f} ms" for value in latency])
    axes.set_xscale("log")
    axes.set_xlim(right=max(latency) * 3)
    axes.invert_yaxis()
    axes.set_xlabel("one user's answer, median ms")
    figure.savefig(path, dpi=120)
