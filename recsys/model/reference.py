"""The float32 reference: the trained model itself, which every engine is compared with."""

from collections.abc import Sequence

import numpy as np
import torch

from recsys.contracts.ids import Floats, Tokens
from recsys.model.decoder import SequenceModel, UserEncoder
from recsys.windows import padded_batches

# B batch, D width


@torch.inference_mode()
def encode(model: SequenceModel, windows: Sequence[Tokens]) -> Floats:
    """One user vector per window, shape [B, D]. No window is empty."""
    encoder, device = UserEncoder(model).eval(), model.items_VD.device
    vectors = np.empty((len(windows), model.config.width), dtype=np.float32)
    for rows, tokens_BL, last_B in padded_batches(windows):
        tokens, last = torch.from_numpy(tokens_BL).long().to(device), torch.from_numpy(last_B).to(device)
        vectors[rows] = encoder(tokens, last).float().cpu().numpy()
    return vectors
