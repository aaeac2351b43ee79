"""Long histories: the last window alone against summaries of earlier windows, full attention and a band.

Accuracy is that of models trained here, alike in all but how far back they read and how, on validation events: no test
set is looked at. Costs are in `histories_cost`.
"""

from pathlib import Path
from typing import Any

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


def rivals(window: WindowConfig) -> dict[str, Rival]:
    """All of them; a window's proportions are those of the default, and full attention reads two windows."""
    reach, size = 2 * window.size, window.size
    summarised = window.model_copy(update={"summary_tokens": SUMMARY_TOKENS})
    double = WindowConfig(size=2 * reach, overlap_share=0.5)

    def plain(config: ModelConfig, num_items: int) -> SequenceModel:
        return SequenceModel(config, num_items, double.size)

    return {
        "last window": Rival(build=plain, rows=window, context=lambda tokens: open_window(tokens, window)),
        "summaries": Rival(
            build=lambda config, num_items: SummaryModel(config, num_items, summarised),
            rows=summarised.training_rows,
            context=lambda tokens: answer_context(tokens, summarised),
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
) -> dict[str, Any]:
    """Train each rival on the same users for as many epochs and compare what they rank; then measure costs.

    Without `features`: a simulated shop with taste planted more than a window back.

    Raises:
        ConfigError: an unknown name, `reference` included.
        DataError: no user has more events than a window.
    """
    window = WindowConfig(size=window_size)
    wanted = chosen(rivals(window), names, reference)
    if features is None:
        split = PlantedShop(num_users=num_users, window_size=window_size).split()
        of = Sample(split=split, num_items=NUM_ITEMS, masks_seen=False)
    else:
        of = sample(features, num_users, longer_than=window_size)
    nothing = KeptRuns(None, {})
    rows = compare(wanted, of, window, epochs=epochs, num_seeds=num_seeds, reference=reference, kept=nothing)
    return {
        "data": "simulated shop" if features is None else str(features),
        "num_users": len(of.split.contexts),
        "num_events": len(of.split.train.tokens),
        "window": window.model_dump(),
        "epochs": epochs,
        "num_seeds": num_seeds,
        "reference": reference,
        "rivals": rows,
        "costs": histories_cost.run(),
    }
