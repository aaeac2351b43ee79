"""The loss curve, as numbers and as a picture."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recsys.training.fitted import RoundResult

LOG_FILE = "training.jsonl"
CURVE_FILE = "curve.png"


def save(log: "Sequence[RoundResult]", folder: Path) -> None:
    """Write `training.jsonl`, a line a round, and `curve.png`."""
    with (folder / LOG_FILE).open("w") as file:
        for row in log:
            file.write(json.dumps(asdict(row)) + "\n")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    loss_axes = figure.add_subplot()
    epochs = [row.epochs for row in log]
    loss_axes.plot(epochs, [row.loss for row in log], color="tab:blue", marker=".", label="training loss")
    loss_axes.set_xlabel("epochs")
    loss_axes.set_ylabel("cross-entropy, nats per event", color="tab:blue")
    validated = [(row.epochs, row.validation_ndcg) for row in log if row.validation_ndcg is not None]
    if validated:
        ndcg_axes = loss_axes.twinx()
        ndcg_axes.plot(*zip(*validated, strict=True), color="tab:orange", marker=".", label="validation NDCG@10")
        ndcg_axes.set_ylabel("validation NDCG@10", color="tab:orange")
    figure.savefig(folder / CURVE_FILE, dpi=120)
