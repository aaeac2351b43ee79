"""Long histories: the last window alone against summaries of earlier windows, full attention and a band.

Accuracy is that of models trained here, alike in all but how far back they read and how, on validation events: no test
set is looked at. Costs are in `histories_cost`.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recsys import dataset, transitions
from recsys.contracts.errors import DataError
from recsys.contracts.ids import Tokens
from recsys.dataset import Histories, Protocol, ValidationSet
from recsys.evaluation.metrics import per_user_metrics
from recsys.evaluation.statistics import paired_difference
from recsys.model import spectral
from recsys.model.config import ModelConfig
from recsys.model.decoder import SequenceModel
from recsys.model.long_range import BandedModel, SummaryModel
from recsys.model.reference import encode
from recsys.pipeline import histories_cost
from recsys.pipeline.planted_shop import NUM_ITEMS, PlantedShop
from recsys.runtime.fusion import Fusion, evidence
from recsys.runtime.index import ItemIndex
from recsys.training import fusion
from recsys.training.config import Recipe
from recsys.training.loop import Trainer, WindowStream
from recsys.transitions import TransitionTable
from recsys.windows import WindowConfig, open_window, reachable

REFERENCE = "last window"
SUMMARY_TOKENS = 4
_MODEL = ModelConfig(width=64, head_dim=32, dropout=0.2, init_std=0.04)
_TARGETS_A_BATCH = 1024
_ROW_WINDOWS = 8
"""Windows of a row that summaries are trained on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rival:
    """One way to read a long history."""

    build: Callable[[ModelConfig, int], SequenceModel]
    rows: WindowConfig
    """What it is trained on; each event is predicted once an epoch in all of them."""
    context: Callable[[Tokens], Tokens]
    """The events of a history that it reads for an answer."""


def rivals(window: WindowConfig) -> dict[str, _Rival]:
    """All of them; a window's proportions are those of the default, and full attention reads two windows."""
    reach, size = 2 * window.size, window.size
    row = size + (_ROW_WINDOWS - 1) * window.stride
    double = WindowConfig(size=2 * reach, overlap_share=0.5)

    def plain(config: ModelConfig, num_items: int) -> SequenceModel:
        return SequenceModel(config, num_items, double.size)

    return {
        REFERENCE: _Rival(build=plain, rows=window, context=lambda tokens: open_window(tokens, window)),
        "summaries": _Rival(
            build=lambda config, num_items: SummaryModel(config, num_items, window, SUMMARY_TOKENS),
            rows=WindowConfig(size=row, overlap_share=window.reach / row),
            context=lambda tokens: reachable(tokens, window),
        ),
        "full attention": _Rival(
            build=plain, rows=WindowConfig(size=reach, overlap_share=0.5), context=lambda tokens: tokens[-reach:]
        ),
        "band": _Rival(
            build=lambda config, num_items: BandedModel(config, num_items, double.size, size),
            rows=double,
            context=lambda tokens: tokens[-_MODEL.num_layers * size :],
        ),
    }


def run(
    features: Path | None, *, window_size: int, epochs: float, num_users: int, num_seeds: int, names: list[str] | None
) -> dict[str, Any]:
    """Train each rival on the same users for as many epochs and compare what they rank; then measure costs.

    Without `features`: a simulated shop with taste planted more than a window back.

    Raises:
        DataError: no user has more events than a window, or an unknown name.
    """
    window = WindowConfig(size=window_size)
    chosen = {name: rival for name, rival in rivals(window).items() if not names or name in (*names, REFERENCE)}
    if names and not set(names) <= set(chosen):
        raise DataError(f"--only {', '.join(names)}: expected some of {', '.join(rivals(window))}")
    if features is None:
        split, num_items, masks = PlantedShop(num_users=num_users, window_size=window_size).split(), NUM_ITEMS, False
    else:
        split, num_items, masks = _long_users(features, window_size, num_users)
    torch.set_num_threads(1)
    runs = {
        name: [_accuracy(rival, window, split, num_items, epochs, seed, masks=masks) for seed in range(num_seeds)]
        for name, rival in chosen.items()
    }
    return {
        "data": "simulated shop" if features is None else str(features),
        "num_users": len(split.contexts),
        "num_events": len(split.train.tokens),
        "window": window.model_dump(),
        "epochs": epochs,
        "num_seeds": num_seeds,
        "rivals": {name: _row(found, runs[REFERENCE]) for name, found in runs.items()},
        "costs": histories_cost.run(),
    }


def _long_users(features: Path, window_size: int, num_users: int) -> tuple[ValidationSet, int, bool]:
    """A seeded sample of the validation users whose history does not fit into a window, trained on alone."""
    has_times = dataset.load(features, Protocol.FINAL).split_ms is not None
    data = dataset.load(features, Protocol.TIME if has_times else Protocol.LAST_OUT)
    found = data.validation(len(data.fit), seed=0)
    long = np.flatnonzero([len(context) > window_size for context in found.contexts])
    if not len(long):
        raise DataError(f"{features}: no user has more than {window_size} events and one after them; lower --window")
    chosen = np.sort(np.random.default_rng(0).permutation(long)[:num_users])
    contexts = [found.contexts[user] for user in chosen]
    offsets = np.concatenate([[0], np.cumsum([len(context) for context in contexts])])
    tokens = np.concatenate(contexts)
    train = Histories([str(user) for user in chosen], offsets, tokens, np.arange(len(tokens)))
    split = ValidationSet(train, contexts, [found.targets[user] for user in chosen])
    return split, len(data.vocabulary), data.protocol.masks_seen


def _accuracy(
    rival: _Rival, window: WindowConfig, split: ValidationSet, num_items: int, epochs: float, seed: int, *, masks: bool
) -> dict[str, Any]:
    """One training, and what it ranks: NDCG@10 and recall@10 of each user by the decoder, and the fused NDCG@10."""
    size, share = rival.rows.size, rival.rows.stride / rival.rows.size
    training = {"batch_tokens": max(2 * size, round(_TARGETS_A_BATCH / share)), "seed": seed, "warmup_steps": 50}
    recipe = Recipe.from_mapping({"model": _MODEL, "window": rival.rows, "training": training}, "histories")
    torch.manual_seed(seed)
    model = rival.build(_MODEL, num_items)
    counts = transitions.count(split.train, num_items)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        model.embedding.weight[1:] = spectral.item_vectors(counts, _MODEL.width, _MODEL.init_std, generator)[1:]
    stream = WindowStream(split.train, recipe, np.random.default_rng(seed))
    num_events_V = torch.from_numpy(np.bincount(split.train.tokens, minlength=num_items + 1)[1:])
    trainer = Trainer(model, recipe, num_events_V, horizon=stream.epoch_steps)
    stretch = trainer.train(stream, max(1, round(epochs * stream.epoch_steps)), rate=lambda taken: 1 - taken**2)
    started = time.monotonic()
    with trainer.averaged_in_place() as averaged:
        vectors_UD = encode(averaged.eval(), [rival.context(context) for context in split.contexts])
        index = ItemIndex.build(averaged.items_VD.detach().numpy().copy())
    without = [np.unique(context) for context in split.contexts] if masks else None
    ranked, _ = index.search(vectors_UD, 10, without)
    targets = [wanted.astype(np.int64) for wanted in split.targets]
    table = TransitionTable.fit(split.train, num_items)
    known = [evidence(reachable(context, window), table) for context in split.contexts]
    _, fused = fusion.fit(vectors_UD, index, known, split.targets, without, Fusion())
    return {
        **{name: values for name, values in per_user_metrics(ranked, targets, [10]).items() if "@10" in name},
        "fused": fused,
        "loss": stretch.loss,
        "training_s": stretch.seconds,
        "encoding_s": time.monotonic() - started,
    }


def _row(found: list[dict[str, Any]], reference: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, their spread, and the difference to the reference, paired by user."""
    ndcg, against = (np.mean([one["ndcg@10"] for one in runs], axis=0) for runs in (found, reference))
    by_seed = [float(one["ndcg@10"].mean()) for one in found]
    return {
        "ndcg@10": float(ndcg.mean()),
        "ndcg@10_spread": float(np.std(by_seed)),
        "recall@10": float(np.mean([one["recall@10"].mean() for one in found])),
        "fused_ndcg@10": float(np.mean([one["fused"] for one in found])),
        "difference": None if found is reference else asdict(paired_difference(ndcg, against, seed=0)),
        "loss": float(np.mean([one["loss"] for one in found])),
        "training_s": float(np.mean([one["training_s"] for one in found])),
    }
