"""Lists for many users by each way to encode their histories that the case switches on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from recsys.contracts.ids import PAD, Floats, Tokens
from recsys.model.checkpoint import Checkpoint
from recsys.model.reference import encode
from recsys.pipeline import case_sessions
from recsys.runtime.recommender import Recommender
from recsys.windows import answer_context

# B users, D width, K results

Way = Literal["full attention", "eager", "engine", "sessions"]
"""Eager float32 over as many last events as the model reads at once; eager over what an answer reads; the release's
engine over the same; its sessions, grown event by event."""


def ranked(way: Way, checkpoint: Path, recommender: Recommender, histories: Sequence[Tokens], k: int) -> Tokens:
    """Ranked tokens of kept histories, none empty, shape [B, k]; the release ranks, whatever encodes."""
    if way == "engine":
        return recommender.rank(histories, k)
    grown = way == "sessions"
    vectors_BD = case_sessions.grown(recommender.release, histories) if grown else _eager(way, checkpoint, histories)
    tokens_BK = np.full((len(histories), k), PAD, dtype=np.int32)
    for row, history in enumerate(histories):
        tokens_BK[row] = recommender.query(vectors_BD[row], history).best(k)[0]
    return tokens_BK


def _eager(way: Way, checkpoint: Path, histories: Sequence[Tokens]) -> Floats:
    opened = Checkpoint.open(checkpoint)
    if way == "full attention":
        return encode(opened.model, [history[-opened.window.size :] for history in histories])
    return encode(opened.model, [answer_context(history, opened.window) for history in histories])
