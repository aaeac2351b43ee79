"""Long histories: the last window alone against summaries of earlier windows, full attention and a band.

Accuracy is that of models trained here, alike in all but how far back they read and how, on validation events: no test
set is looked at. What the same models cost is measured by `histories_cost`.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from recsys.contracts.errors import ConfigError
from recsys.model.config import ModelConfig
from recsys.model.decoder import SequenceModel
from recsys.model.long_range import BandedModel
from recsys.model.summaries import SummaryModel
from recsys.pipeline import histories_cost
from recsys.pipeline.kept_runs import KeptRuns
from recsys.pipeline.planted_shop import NUM_ITEMS, PlantedShop
from recsys.pipeline.rivals import MODEL, Rival, Sample, chosen, compare, sample
from recsys.windows import WindowConfig, answer_context, open_window

SUMMARY_TOKENS = 4
ANSWERS = {
    "last window": histories_cost.last_window,
    "summaries": histories_cost.summaries,
    "full attention": histories_cost.full_attention,
    "band": histories_cost.band,
}
"""How each rival answers."""


def summarised(window: WindowConfig) -> WindowConfig:
    """The same windows, which leave summaries."""
    return window.model_copy(update={"summary_tokens": SUMMARY_TOKENS})


def rivals(window: WindowConfig) -> dict[str, Rival]:
    """All of them; a window's proportions are those of the default, and full attention reads two windows."""
    reach, size = 2 * window.size, window.size
    with_summaries = summarised(window)
    double = WindowConfig(size=2 * reach, overlap_share=0.5)

    def plain(config: ModelConfig, num_items: int) -> SequenceModel:
        return SequenceModel(config, num_items, double.size)

    return {
        "last window": Rival(build=plain, rows=window, context=lambda tokens: open_window(tokens, window)),
        "summaries": Rival(
            build=lambda config, num_items: SummaryModel(config, num_items, with_summaries),
            rows=with_summaries.training_rows,
            context=lambda tokens: answer_context(tokens, with_summaries),
        ),
        "full attention": Rival(
            build=plain, rows=WindowConfig(size=reach, overlap_share=0.5), context=lambda tokens: tokens[-reach:]
        ),
        "band": Rival(
            build=lambda config, num_items: BandedModel(config, num_items, double.size, size),
            rows=double,
            context=lambda tokens: tokens[-MODEL.num_layers * size :],
        ),
    }


def run(
    features: Path | None,
    *,
    window_size: int,
    epochs: float,
    num_users: int,
    num_seeds: int,
    names: list[str] | None,
    reference: str = "last window",
    longer_than: int | None = None,
) -> dict[str, Any]:
    """Train each rival on the same users for as many epochs, compare what they rank and measure what they cost.

    Users have more than `longer_than` events, by default those of a window. Without `features`: a simulated shop with
    taste planted more than a window back.

    Raises:
        ConfigError: an unknown name, `reference` included, or `longer_than` for the simulated shop.
        DataError: no user has more events than that.
    """
    window = WindowConfig(size=window_size)
    wanted = chosen(rivals(window), names, reference)
    least = window_size if longer_than is None else longer_than
    if features is None:
        if longer_than is not None:
            raise ConfigError("--longer-than chooses users of a log: give --features, or leave it out")
        split = PlantedShop(num_users=num_users, window_size=window_size).split()
        of = Sample(split=split, num_items=NUM_ITEMS, masks_seen=False)
    else:
        of = sample(features, num_users, longer_than=least)
    num_events, cost = costs(wanted, window, of.num_items)
    nothing = KeptRuns(None, {})
    rows = compare(wanted, of, window, epochs=epochs, num_seeds=num_seeds, reference=reference, kept=nothing)
    return {
        "data": "simulated shop" if features is None else str(features),
        "num_users": len(of.split.contexts),
        "longer_than": least,
        "num_events": len(of.split.train.tokens),
        "window": window.model_dump(),
        "epochs": epochs,
        "num_seeds": num_seeds,
        "reference": reference,
        "history_of_costs": num_events,
        "cache": histories_cost.CACHE.value,
        "rivals": {name: row | cost[name] for name, row in rows.items()},
    }


def costs(wanted: dict[str, Rival], window: WindowConfig, num_items: int) -> tuple[int, dict[str, dict[str, float]]]:
    """The history that costs are of, and those of each rival, with random weights and one thread.

    The history is so long that each reads the most that it ever does: a full open window, all summaries before it.
    """
    torch.set_num_threads(1)
    num_events = summarised(window).longest_context
    history = (1 + np.arange(num_events) % num_items).astype(np.int32)
    found = {}
    for name, rival in wanted.items():
        model = rival.build(MODEL, num_items).eval()
        found[name] = histories_cost.measure(ANSWERS[name](model, rival.context(history)))
    return num_events, found
