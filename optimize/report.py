"""How far an engine's answers are from the float32 reference's."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from recsys.contracts.ids import PAD, Floats, Tokens
from recsys.dataset import Dataset, Protocol
from recsys.evaluation.metrics import recall_at_k
from recsys.model.decoder import SequenceModel
from recsys.model.reference import encode
from recsys.runtime.engine import Engine
from recsys.runtime.index import ItemIndex
from recsys.windows import WindowConfig, open_window

# B users, D width, K results


class FidelityReport(BaseModel):
    """Engine against reference, on the same windows and the same index."""

    model_config = ConfigDict(frozen=True)
    num_users: int
    relative_error: float
    """Mean over users of |engine − reference| / |reference| of the user vector (L2)."""
    top10_overlap: float
    """Mean share of the reference's top 10 that the engine's top 10 holds."""
    top100_overlap: float
    num_held_out_users: int
    """Users with targets after the cut; 0 for a release fitted on all events."""
    recall10_reference: float | None
    recall10_engine: float | None

    @property
    def recall_loss(self) -> float | None:
        """Relative loss of recall@10, negative for a gain; None without held-out users or hits."""
        if not self.recall10_reference or self.recall10_engine is None:
            return None
        return 1 - self.recall10_engine / self.recall10_reference


def compare(
    model: SequenceModel,
    engine: Engine,
    index: ItemIndex,
    data: Dataset,
    window: WindowConfig,
    num_users: int,
    seed: int,
) -> FidelityReport:
    """Encode the same users by both and compare vectors and lists."""
    contexts, targets = _users(data, num_users, seed)
    windows = [open_window(context, window) for context in contexts]
    reference_BD, engine_BD = encode(model, windows), engine.encode(windows)
    depth = min(100, len(index))
    exclude = [np.unique(c) for c in contexts] if data.protocol.masks_seen else None
    reference_BK, _ = index.search(reference_BD, depth, exclude)
    engine_BK, _ = index.search(engine_BD, depth, exclude)
    return FidelityReport(
        num_users=len(windows),
        relative_error=relative_error(reference_BD, engine_BD),
        top10_overlap=overlap(reference_BK[:, :10], engine_BK[:, :10]),
        top100_overlap=overlap(reference_BK, engine_BK),
        num_held_out_users=len(targets),
        recall10_reference=_recall(reference_BK, targets),
        recall10_engine=_recall(engine_BK, targets),
    )


def relative_error(reference_BD: Floats, engine_BD: Floats) -> float:
    """Mean over users of the L2 norm of the difference over the L2 norm of the reference."""
    difference = np.linalg.norm(engine_BD - reference_BD, axis=1)
    return float(np.mean(difference / np.linalg.norm(reference_BD, axis=1)))


def overlap(reference_BK: Tokens, engine_BK: Tokens) -> float:
    """Mean share of the reference's items that the other list holds, in any order."""
    shares = [
        len(np.intersect1d(ours[ours != PAD], theirs)) / max(1, int((ours != PAD).sum()))
        for ours, theirs in zip(reference_BK, engine_BK, strict=True)
    ]
    return float(np.mean(shares))


def _users(data: Dataset, num_users: int, seed: int) -> tuple[list[Tokens], list[Any]]:
    """A seeded sample of users: their contexts, and their targets where the protocol holds some out."""
    generator = np.random.default_rng(seed)
    if data.protocol is not Protocol.FINAL:
        test = data.test_set()
        if len(test.targets):
            chosen = np.sort(generator.permutation(len(test.contexts))[:num_users])
            return [test.contexts[u] for u in chosen], [test.targets[u] for u in chosen]
    chosen = np.sort(generator.permutation(len(data.fit))[:num_users])
    return [data.fit[u] for u in chosen], []


def _recall(ranked_BK: Tokens, targets: Sequence[Any]) -> float | None:
    if not targets:
        return None
    return float(
        np.mean(
            [
                recall_at_k([t for t in row if t != PAD], set(wanted.tolist()), 10)
                for row, wanted in zip(ranked_BK.tolist(), targets, strict=True)
            ]
        )
    )
