"""How far an engine's answers are from the float32 reference's."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from optimize.steps import Advance
from recsys.contracts.ids import PAD, Floats, Tokens
from recsys.contracts.protocol import Protocol
from recsys.dataset import Dataset
from recsys.evaluation.metrics import per_user_metrics
from recsys.evaluation.statistics import paired_difference
from recsys.model.checkpoint import Checkpoint
from recsys.model.reference import encode
from recsys.runtime.consistency import APPENDED, sessions_after_appends
from recsys.runtime.engine import Engine
from recsys.runtime.fusion import Evidence, Fusion, evidence, search
from recsys.runtime.index import ItemIndex
from recsys.transitions import TransitionTable
from recsys.windows import WindowConfig, answer_context, num_windows, open_window, reachable

# B users, D width, K results

DEPTH = 100
_NUM_APPENDED = 200
_USERS_AT_ONCE = 500
_SESSIONS_AT_ONCE = 50
"""Bounds the memory of kept keys and values."""


class MetricLoss(BaseModel):
    """A metric by the reference and by the engine on the same held-out users, and what the engine loses."""

    model_config = ConfigDict(frozen=True)
    reference: float
    engine: float
    loss: float
    """1 − engine / reference; negative for a gain."""
    low: float
    high: float
    """95 % interval of `loss`, users resampled in pairs."""
    num_different: int
    """Users whose value differs."""


class FidelityReport(BaseModel):
    """The engine, its rounded items, its index and its lists against float32, for the same users."""

    model_config = ConfigDict(frozen=True)
    num_users: int
    relative_error: float
    """Mean over users of |engine − reference| / |reference| of the user vector (L2)."""
    appended_error: float | None = None
    """The same after last events were appended to kept sessions, as for a user who comes back, of some of the
    users; None where no window has two events."""
    top10_overlap: float
    """Mean share of the reference's top 10 that the engine's top 10 holds, as served: fused with counts."""
    top100_overlap: float
    num_held_out_users: int
    """Users with targets after the cut; 0 for a release fitted on all events."""
    recall10: MetricLoss | None
    ndcg10: MetricLoss | None
    """None without held-out users, or where the reference hits nothing."""
    partial_ndcg10: MetricLoss | None = None
    """Of the held-out users with closed windows that leave summaries: whole answers as the reference, and answers by
    the open window alone, which those users get until their summaries are encoded. The gate does not judge by it."""
    num_partial_users: int = 0
    """How many those are."""


def compare(
    checkpoint: Checkpoint,
    engine: Engine,
    index: ItemIndex,
    transitions: TransitionTable,
    data: Dataset,
    num_users: int,
    seed: int,
    calibrated: Collection[str] = (),
    advance: Advance = lambda *_: None,
) -> FidelityReport:
    """Answer the same users by both and compare vectors and lists.

    `calibrated` are users that the engine's weights were rounded by: they are left out, unless they are all there are.
    Items of the index that the checkpoint does not know are hidden.
    """
    contexts, targets = _users(data, num_users, seed, calibrated)
    windows = [answer_context(context, checkpoint.window) for context in contexts]
    known = [evidence(reachable(context, checkpoint.window), transitions) for context in contexts]
    fusion = Fusion.from_mapping(checkpoint.manifest.config["fusion"], "checkpoint: fusion")
    without = [np.unique(c) if data.protocol.masks_seen else c[:0] for c in contexts]
    new = np.arange(len(checkpoint.vocabulary) + 1, len(index) + 1, dtype=np.int32)
    exact = ItemIndex.build(checkpoint.model.items_VD.detach().numpy(), checkpoint.trend_V)
    found: list[tuple[Floats, Floats, Tokens, Tokens]] = []
    for start in range(0, len(windows), _USERS_AT_ONCE):
        some = slice(start, start + _USERS_AT_ONCE)
        ours_BD, theirs_BD = encode(checkpoint.model, windows[some]), engine.encode(windows[some])
        ours_BK = _lists(exact, ours_BD, known[some], without[some], fusion)
        theirs_BK = _lists(index, theirs_BD, known[some], _hidden(without[some], new), fusion)
        found.append((ours_BD, theirs_BD, ours_BK, theirs_BK))
        advance("compare with float32", min(some.stop, len(windows)), len(windows))
    reference_BD, engine_BD, reference_BK, engine_BK = (np.concatenate(parts) for parts in zip(*found, strict=True))
    losses = _losses(reference_BK, engine_BK, targets, seed) if targets else {}
    long = [i for i, window in enumerate(windows) if num_windows(len(window), checkpoint.window) > 1]
    partial = {}
    if targets and long and checkpoint.window.summary_tokens:
        partial_BD = engine.encode([open_window(contexts[i], checkpoint.window) for i in long])
        partial_BK = _lists(
            index, partial_BD, [known[i] for i in long], _hidden([without[i] for i in long], new), fusion
        )
        partial = _losses(engine_BK[long], partial_BK, [targets[i] for i in long], seed)
    return FidelityReport(
        num_users=len(windows),
        relative_error=relative_error(reference_BD, engine_BD),
        appended_error=appended_error(windows, reference_BD, engine, checkpoint.window),
        top10_overlap=overlap(reference_BK[:, :10], engine_BK[:, :10]),
        top100_overlap=overlap(reference_BK, engine_BK),
        num_held_out_users=len(targets),
        recall10=losses.get("recall@10"),
        ndcg10=losses.get("ndcg@10"),
        partial_ndcg10=partial.get("ndcg@10"),
        num_partial_users=len(long) if partial else 0,
    )


def relative_error(reference_BD: Floats, engine_BD: Floats) -> float:
    """Mean over users of the L2 norm of the difference over the L2 norm of the reference."""
    difference = np.linalg.norm(engine_BD - reference_BD, axis=1)
    return float(np.mean(difference / np.linalg.norm(reference_BD, axis=1)))


def appended_error(windows: Sequence[Tokens], reference_BD: Floats, engine: Engine, cut: WindowConfig) -> float | None:
    """`relative_error` of evenly chosen windows whose last events come as appends; None without any."""
    longer = [
        i
        for i, window in enumerate(windows)
        if len(window) > 1 and num_windows(max(1, len(window) - APPENDED), cut) == num_windows(len(window), cut)
    ]
    chosen = longer[:: max(1, len(longer) // _NUM_APPENDED)]
    found: list[Floats] = []
    for start in range(0, len(chosen), _SESSIONS_AT_ONCE):
        some = [windows[i] for i in chosen[start : start + _SESSIONS_AT_ONCE]]
        found += [session.vector_D for session in sessions_after_appends(some, engine).values()]
    return relative_error(reference_BD[chosen], np.stack(found)) if found else None


def overlap(reference_BK: Tokens, engine_BK: Tokens) -> float:
    """Mean share of the reference's items that the other list holds, in any order."""
    shares = [
        len(np.intersect1d(ours[ours != PAD], theirs)) / max(1, int((ours != PAD).sum()))
        for ours, theirs in zip(reference_BK, engine_BK, strict=True)
    ]
    return float(np.mean(shares))


def metric_loss(reference: npt.NDArray[np.float64], engine: npt.NDArray[np.float64], seed: int) -> MetricLoss | None:
    """The relative loss of a mean over users with its interval; None where the reference's mean is 0."""
    difference = paired_difference(engine, reference, seed)
    if not difference.mean_b:
        return None
    return MetricLoss(
        reference=difference.mean_b,
        engine=difference.mean_a,
        loss=-difference.relative,
        low=-difference.relative_high,
        high=-difference.relative_low,
        num_different=difference.num_different,
    )


def _losses(reference_BK: Tokens, engine_BK: Tokens, targets: Sequence[Any], seed: int) -> dict[str, MetricLoss | None]:
    reference = per_user_metrics(reference_BK, targets, [10])
    engine = per_user_metrics(engine_BK, targets, [10])
    return {name: metric_loss(reference[name], engine[name], seed) for name in ("recall@10", "ndcg@10")}


def _hidden(without: Sequence[Tokens], new: Tokens) -> Sequence[Tokens]:
    return [np.union1d(tokens, new) for tokens in without] if len(new) else without


def _lists(
    index: ItemIndex, vectors_BD: Floats, known: Sequence[Evidence], without: Sequence[Tokens], fusion: Fusion
) -> Tokens:
    depth = min(DEPTH, len(index))
    rows = [
        search(index, vectors_BD[i : i + 1], known[i], depth, without[i], fusion)[0] for i in range(len(vectors_BD))
    ]
    return np.stack(rows)


def _users(
    data: Dataset, num_users: int, seed: int, without: Collection[str]
) -> tuple[list[Tokens], list[npt.NDArray[np.int64]]]:
    """A seeded sample of users: their contexts, and their targets where the protocol holds some out."""
    contexts, targets = data.fit, []
    if data.protocol is not Protocol.FINAL:
        test = data.test_set()
        if len(test.targets):
            contexts, targets = test.contexts, test.targets
    hidden = frozenset(without)
    shuffled = np.random.default_rng(seed).permutation(len(contexts))
    left = [user for user in shuffled if contexts.user_ids[user] not in hidden]
    chosen = np.sort((left or shuffled)[:num_users])
    return [contexts[user] for user in chosen], [targets[user] for user in chosen] if targets else []
