"""What early stopping looks at: NDCG@10 of the next event for held-out users, over the full catalogue."""

from collections.abc import Sequence

import numpy as np
import torch

from recsys.contracts.ids import Floats, Tokens
from recsys.dataset import ValidationSet
from recsys.model.decoder import SequenceModel, UserEncoder
from recsys.runtime.engine import padded_batches
from recsys.windows import WindowConfig, open_window

# B batch, V items without padding


@torch.inference_mode()
def encode(model: SequenceModel, windows: Sequence[Tokens]) -> Floats:
    """User vectors by the float32 model, shape [B, D]: the reference that engines are compared with."""
    encoder = UserEncoder(model).eval()
    vectors = np.empty((len(windows), model.config.width), dtype=np.float32)
    for rows, tokens_BL, last_B in padded_batches(windows):
        vectors[rows] = encoder(torch.from_numpy(tokens_BL).long(), torch.from_numpy(last_B)).numpy()
    return vectors


@torch.inference_mode()
def ndcg_at_10(model: SequenceModel, validation: ValidationSet, window: WindowConfig, *, mask_seen: bool) -> float:
    """Mean over users of 1 / log2(rank + 1) if the target's rank is at most 10, else 0."""
    was_training = model.training
    vectors_BD = encode(model.eval(), [open_window(context, window) for context in validation.contexts])
    model.train(was_training)
    items_VD = model.items_VD.numpy()
    gains = np.zeros(len(validation.targets))
    for i, (context, target) in enumerate(zip(validation.contexts, validation.targets, strict=True)):
        scores_V = items_VD @ vectors_BD[i]
        target_score = scores_V[target - 1]
        if mask_seen:
            scores_V[np.unique(context) - 1] = -np.inf
        rank = 1 + int((scores_V > target_score).sum())
        gains[i] = 1 / np.log2(rank + 1) if rank <= 10 else 0.0
    return float(gains.mean())
