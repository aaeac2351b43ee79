"""Models trained alike but for what is compared, on a sample of users, and judged on **validation** events.

No test set is looked at. What differs is a benchmark's own: see `histories_benchmark`, `choices_benchmark` and
`forms_benchmark`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from recsys import dataset, transitions, trend
from recsys.contracts.errors import ConfigError, DataError
from recsys.contracts.ids import Tokens
from recsys.contracts.protocol import Protocol
from recsys.dataset import Dataset, Histories, ValidationSet
from recsys.evaluation.metrics import per_user_metrics
from recsys.evaluation.statistics import paired_difference
from recsys.model import spectral
from recsys.model.config import ModelConfig
from recsys.model.decoder import SequenceModel
from recsys.model.loss import Loss
from recsys.model.reference import encode
from recsys.pipeline import progress
from recsys.pipeline.kept_runs import KeptRuns, Run
from recsys.runtime.fusion import Evidence, Fusion, evidence, search
from recsys.runtime.index import ItemIndex
from recsys.training import fusion
from recsys.training.batches import training_windows
from recsys.training.config import Recipe
from recsys.training.loop import Trainer, WindowStream
from recsys.transitions import TransitionTable
from recsys.windows import WindowConfig, reachable

# U users, D width

MODEL = ModelConfig(width=64, head_dim=32, dropout=0.2, init_std=0.04)
METRICS = ("ndcg@10", "recall@10", "next_ndcg@10", "fused_ndcg@10", "fused_recall@10")
"""By the decoder alone against all later events and the next one; fused, `ndcg` is the mean of those two, which is
what choices are made by everywhere else (`recsys.training.validation`)."""
LEARNING_RATE = 2e-3
_WARMUP_STEPS = 50
_TARGETS_A_BATCH = 512
"""About as many in all of them, so that an epoch has as many steps; rows differ in how much of them is context."""


def parabola(taken: float) -> float:
    """Factor on the learning rate after this share of the steps: 1 at first, 0 at the end, most of the fall late."""
    return 1 - taken**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Users to train on and to rank for."""

    split: ValidationSet
    num_items: int
    masks_seen: bool
    data: Dataset | None = None
    """Where they are from; None: simulated."""
    num_left: int = 0
    """Validation users that are not in it, nor in those it skipped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """One form of the model."""

    build: Callable[[ModelConfig, int], SequenceModel]
    rows: WindowConfig
    """What it is trained on; each event is predicted once an epoch in all of them."""
    context: Callable[[Tokens], Tokens]
    """The events of a history that it reads for an answer."""
    beside: tuple[Callable[[Histories], Tokens], ...] = ()
    """What it reads of each event beside its token."""
    loss: Loss | None = None
    """In place of the softmax."""
    dropout: float = MODEL.dropout
    training: Mapping[str, Any] = field(default_factory=dict)
    """Settings of training that are not the usual ones."""
    rate: Callable[[float], float] = parabola
    """Factor on the learning rate for the share of the steps already taken."""
    is_averaged: bool = True
    """Whether the weights are an average over the last epoch or so; else those of the last step."""
    epochs: float | None = None
    """In place of those of the comparison."""

    def events(self, train: Histories) -> Tokens:
        """What it reads of all events, shape [n] or [n, F]."""
        columns = [train.tokens, *(numbers(train) for numbers in self.beside)]
        return np.stack(columns, axis=1) if self.beside else train.tokens


def chosen(rivals: dict[str, Rival], only: Sequence[str] | None, reference: str) -> dict[str, Rival]:
    """Those named, and the reference; all without names.

    Raises:
        ConfigError: an unknown name.
    """
    unknown = [name for name in (*(only or ()), reference) if name not in rivals]
    if unknown:
        raise ConfigError(f"no rival of that name: {', '.join(unknown)}; expected some of {', '.join(rivals)}")
    return {name: rival for name, rival in rivals.items() if not only or name in (*only, reference)}


def sample(
    features: Path, num_users: int, *, longer_than: int = 0, protocol: Protocol | None = None, skip: int = 0
) -> Sample:
    """A seeded sample of the validation users with more events than that, trained on alone.

    Without a protocol: by time where the log has times, else the last event of each user. Long histories are few, so
    with `longer_than` all are looked at that the protocol allows. With `skip` it has none of the users of the sample of
    that size.

    Raises:
        DataError: there is no such user.
    """
    if protocol is None:
        has_times = dataset.load(features, Protocol.FINAL).split_ms is not None
        protocol = Protocol.TIME if has_times else Protocol.LAST_OUT
    data = dataset.load(features, protocol)
    found = data.validation(len(data.fit), seed=0, everyone=longer_than > 0)
    long = np.flatnonzero([len(context) > longer_than for context in found.contexts])
    if len(long) <= skip:
        raise DataError(f"{features}: no user has more than {longer_than} events and one to predict after them")
    shuffled = np.random.default_rng(0).permutation(long)[skip:]
    rows = np.sort(shuffled[:num_users])
    place = {user_id: n for n, user_id in enumerate(found.train.user_ids)}
    train = _of_users(found.train, [place[found.user_ids[row]] for row in rows])
    return Sample(
        split=replace(
            found,
            train=train,
            contexts=list(train),
            targets=[found.targets[row] for row in rows],
            user_ids=train.user_ids,
        ),
        num_items=len(data.vocabulary),
        masks_seen=protocol.masks_seen,
        data=data,
        num_left=len(shuffled) - len(rows),
    )


def _of_users(histories: Histories, users: list[int]) -> Histories:
    spans = [slice(histories.offsets[user], histories.offsets[user + 1]) for user in users]
    events = np.concatenate([np.arange(span.start, span.stop) for span in spans])
    offsets = np.concatenate([[0], np.cumsum(histories.lengths[users])])
    return replace(
        histories,
        user_ids=[histories.user_ids[user] for user in users],
        offsets=offsets,
        tokens=histories.tokens[events],
        timestamps_ms=histories.timestamps_ms[events],
        event_types=None if histories.event_types is None else histories.event_types[events],
    )


def compare(
    rivals: dict[str, Rival],
    of: Sample,
    window: WindowConfig,
    *,
    epochs: float,
    num_seeds: int,
    reference: str,
    kept: KeptRuns,
    first_seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Train each rival with each of so many seeds in a row, and hold it against the reference, user by user.

    What users with more events than a window get stands beside it: how far back a model reads shows with them.
    """
    torch.set_num_threads(1)
    is_longer_U = np.array([len(context) > window.size for context in of.split.contexts])
    runs: dict[str, list[Run]] = {name: [] for name in rivals}
    with progress.bar("train") as advance:
        for name, rival in rivals.items():
            for seed in range(first_seed, first_seed + num_seeds):
                found = kept.read(name, seed)
                if found is None:
                    found = train_and_rank(rival, window, of, epochs, seed)
                    kept.write(name, seed, found)
                runs[name].append(found)
                advance(name, len(runs[name]), num_seeds)
    return {
        name: _row(found, None if name == reference else runs[reference], is_longer_U) for name, found in runs.items()
    }


def train_and_rank(rival: Rival, window: WindowConfig, of: Sample, epochs: float, seed: int) -> Run:
    """One training, and what its ten best items are worth to each user."""
    train = of.split.train
    events = rival.events(train)
    recipe = _recipe(rival, train, seed)
    torch.manual_seed(seed)
    model = rival.build(recipe.model, of.num_items)
    counts = transitions.count(train, of.num_items)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        model.embedding.weight[1:] = spectral.item_vectors(counts, MODEL.width, MODEL.init_std, generator)[1:]
    stream = WindowStream(train, recipe, np.random.default_rng(seed), events)
    num_events_V = torch.from_numpy(np.bincount(train.tokens, minlength=of.num_items + 1)[1:])
    horizon = stream.epoch_steps if rival.is_averaged else 1
    trainer = Trainer(model, recipe, num_events_V, horizon=horizon, loss=rival.loss)
    num_steps = max(1, round((rival.epochs or epochs) * stream.epoch_steps))
    stretch = trainer.train(stream, num_steps, rate=rival.rate)
    with trainer.averaged_in_place() as averaged:
        rows = [rival.context(events[start:stop]) for start, stop in pairwise(train.offsets)]
        vectors_UD = encode(averaged.eval(), rows)
        with torch.no_grad():
            index = ItemIndex.build(averaged.items_VD.numpy().copy())
    cost = {"loss": stretch.loss, "steps": stretch.steps, "training_s": stretch.seconds}
    return _ranked(vectors_UD, index, of, window) | cost


def _recipe(rival: Rival, train: Histories, seed: int) -> Recipe:
    rows = training_windows(train, rival.rows)
    events_a_target = sum(row.stop - row.start for row in rows) / sum(row.stop - row.first_target for row in rows)
    usual = {"learning_rate": LEARNING_RATE, "warmup_steps": _WARMUP_STEPS, "seed": seed}
    training = {**usual, "batch_tokens": round(_TARGETS_A_BATCH * events_a_target), **rival.training}
    model = {**MODEL.model_dump(), "dropout": rival.dropout}
    return Recipe.from_mapping({"model": model, "window": rival.rows, "training": training}, "rivals")


def _ranked(vectors_UD: npt.NDArray[np.float32], index: ItemIndex, of: Sample, window: WindowConfig) -> Run:
    """Each metric's value of every user, by the decoder alone and fused with what counts know."""
    split = of.split
    later = [wanted.astype(np.int64) for wanted in split.targets]
    without = [np.union1d(context, split.pruned) if of.masks_seen else split.pruned for context in split.contexts]
    table = TransitionTable.fit(split.train, of.num_items)
    known = [evidence(reachable(context, window), table) for context in split.contexts]
    num_recent_V = split.num_recent(of.num_items)
    judges = fusion.Judges(vectors_UD, index, known, split.targets, without, num_recent_V)
    weights = fusion.bagged(fusion.candidates_of(judges))
    alone, _ = index.search(vectors_UD, 10, without if any(map(len, without)) else None)
    shifted = ItemIndex.build(
        index.vectors(np.arange(1, len(index) + 1, dtype=np.int32)), trend.shifts(weights.trend, num_recent_V)
    )
    fused = _fused(vectors_UD, shifted, known, without, weights)
    by_decoder, by_both = (per_user_metrics(ranked, later, [10]) for ranked in (alone, fused))
    following = [wanted[:1] for wanted in later]
    next_alone, next_fused = (per_user_metrics(ranked, following, [10])["ndcg@10"] for ranked in (alone, fused))
    return {
        "ndcg@10": by_decoder["ndcg@10"],
        "recall@10": by_decoder["recall@10"],
        "next_ndcg@10": next_alone,
        "fused_ndcg@10": (by_both["ndcg@10"] + next_fused) / 2,
        "fused_recall@10": by_both["recall@10"],
    }


def _fused(
    vectors_UD: npt.NDArray[np.float32],
    index: ItemIndex,
    known: list[Evidence],
    without: list[Tokens],
    weights: Fusion,
) -> Tokens:
    """The ten best items of each user, shape [U, 10]."""
    return np.stack(
        [search(index, vectors_UD[u : u + 1], row, 10, without[u], weights)[0] for u, row in enumerate(known)]
    )


def _row(found: list[Run], against: list[Run] | None, is_longer_U: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Means over seeds, their spread, and the differences to the reference, paired by user."""
    values = {metric: np.mean([one[metric] for one in found], axis=0) for metric in METRICS}
    by_seed = [float(np.mean(one["ndcg@10"])) for one in found]
    ndcg_of_longer_U = values["ndcg@10"][is_longer_U]
    differences = of_longer = None
    if against is not None:
        of_reference = {metric: np.mean([one[metric] for one in against], axis=0) for metric in METRICS}
        differences = {name: paired_difference(values[name], of_reference[name], seed=0).to_json() for name in METRICS}
        if is_longer_U.any():
            of_longer = paired_difference(ndcg_of_longer_U, of_reference["ndcg@10"][is_longer_U], seed=0).to_json()
    return {
        "num_users": len(is_longer_U),
        **{metric: float(of_users.mean()) for metric, of_users in values.items()},
        "ndcg@10_spread": float(np.std(by_seed)),
        "fused_ndcg@10_spread": float(np.std([np.mean(one["fused_ndcg@10"]) for one in found])),
        "differences": differences,
        "longer_than_a_window": {
            "num_users": len(ndcg_of_longer_U),
            "ndcg@10": float(ndcg_of_longer_U.mean()) if len(ndcg_of_longer_U) else None,
            "difference": of_longer,
        },
        "loss": float(np.mean([one["loss"] for one in found])),
        "steps": found[0]["steps"],
        "training_s": float(np.mean([one["training_s"] for one in found])),
    }
