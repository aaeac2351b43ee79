"""A decoder that reaches back by a band: a rival that `recsys benchmark histories` holds against windows.

It is not served: `docs/model.md` has the figures. It takes the rows and the place of a `SequenceModel`.
"""

# B batch, L events, D width

import torch
from torch import Tensor

from recsys.model.config import ModelConfig
from recsys.model.decoder import SequenceModel


class BandedModel(SequenceModel):
    """Every event sees itself and the `band` − 1 events before it, in each layer: a rolling cache serves it."""

    def __init__(self, config: ModelConfig, num_items: int, max_length: int, band: int) -> None:
        super().__init__(config, num_items, max_length)
        self.band = band

    def decode(self, embedded_BLD: Tensor) -> Tensor:
        """What the decoder makes of each event and those of the band before it, shape [B, L, D]."""
        position_L = torch.arange(embedded_BLD.shape[1])
        age_LL = position_L[:, None] - position_L
        mask_B1LL = ((age_LL >= 0) & (age_LL < self.band)).expand(len(embedded_BLD), 1, -1, -1)
        states = self.decoder(inputs_embeds=embedded_BLD, attention_mask=mask_B1LL, use_cache=False)
        hidden_BLD: Tensor = states.last_hidden_state
        return hidden_BLD
