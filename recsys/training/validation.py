"""What early stopping looks at: NDCG@10 of the next event for held-out users, over the full catalogue."""

import numpy as np
import torch

from recsys.dataset import ValidationSet
from recsys.model.decoder import SequenceModel
from recsys.model.reference import encode
from recsys.windows import WindowConfig, open_window

# B batch, V items without padding


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
