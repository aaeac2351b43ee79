"""Other forms of the decoder that `recsys benchmark choices` holds against the default's: blocks and output.

None is served: `docs/model.md` has the figures. Each takes the place of a `SequenceModel`. An event's state depends on
events up to it only, and what a later event reads of it does not change, so all of them could be served by a cache.
"""

# B batch, L events, D width, H heads, K head_dim, V items without padding

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, silu

from recsys.model.config import ModelConfig
from recsys.model.decoder import SequenceModel

FIRST_SCALE = 20.0
"""Of cosines, at the start of training."""
HSTU_LAYERS = 2
"""In place of each layer of the default: a unit has no feed-forward block, and about half as many weights."""


class CosineModel(SequenceModel):
    """A score is a cosine times a learned scale: lengths of vectors, and so much of popularity, play no part."""

    def __init__(self, config: ModelConfig, num_items: int, max_length: int) -> None:
        super().__init__(config, num_items, max_length)
        self.log_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))

    def forward(self, tokens_BL: Tensor) -> Tensor:
        """Direction of the state after each event, as long as the scale, shape [B, L, D]."""
        return normalize(super().forward(tokens_BL), dim=2) * self.log_scale.exp()

    @property
    def items_VD(self) -> Tensor:
        """Directions of the vectors of tokens 1 … V."""
        return normalize(self.embedding.weight[1:], dim=1)


class GatedModel(SequenceModel):
    """The default's layers with a learned gate on what each block adds.

    Source: LiGR, Borisyuk et al., arXiv:2502.03417, 2025 (gated residual). Norms, rotation and feed-forward block
    are the default's, so that the gates are all that differs.
    """

    def __init__(self, config: ModelConfig, num_items: int, max_length: int) -> None:
        super().__init__(config, num_items, max_length)
        self.decoder.layers = nn.ModuleList(_GatedLayer(layer, config) for layer in self.decoder.layers)


class _GatedLayer(nn.Module):
    """x + σ(W x) · attention(norm x), then the same with the feed-forward block."""

    def __init__(self, layer: Any, config: ModelConfig) -> None:
        super().__init__()
        self.layer = layer
        self.of_attention = _linear(config.width, config.width, config)
        self.of_feed_forward = _linear(config.width, config.width, config)

    def forward(self, hidden_BLD: Tensor, **settings: Any) -> Tensor:
        """As a layer of `transformers` is called."""
        layer = self.layer
        attended_BLD, _ = layer.self_attn(hidden_states=layer.input_layernorm(hidden_BLD), **settings)
        hidden_BLD = hidden_BLD + self.of_attention(hidden_BLD).sigmoid() * attended_BLD
        fed_BLD = layer.mlp(layer.post_attention_layernorm(hidden_BLD))
        gated_BLD: Tensor = self.of_feed_forward(hidden_BLD).sigmoid() * fed_BLD
        return hidden_BLD + gated_BLD


class HstuModel(SequenceModel):
    """Sequential transduction units in place of the decoder's layers; as many weights, about.

    Source: HSTU, Zhai et al., ICML 2024. Positions are biases by distance, as there; times are not read, and a sum over
    events is divided by how many they are, not by the longest row.
    """

    def __init__(self, config: ModelConfig, num_items: int, max_length: int) -> None:
        super().__init__(config, num_items, max_length)
        units = [_TransductionUnit(config, max_length) for _ in range(HSTU_LAYERS * config.num_layers)]
        self.decoder = nn.Sequential(*units, nn.LayerNorm(config.width, eps=config.norm_eps))

    def decode(self, embedded_BLD: Tensor) -> Tensor:
        """What the units make of each event and those before it, shape [B, L, D]."""
        hidden_BLD: Tensor = self.decoder(embedded_BLD)
        return hidden_BLD


class _TransductionUnit(nn.Module):
    """x + W₂(norm(A V) · U) with U, V, Q, K = silu(W₁ norm x) and A = silu(Q Kᵀ + bias of distance) / events so far."""

    def __init__(self, config: ModelConfig, max_length: int) -> None:
        super().__init__()
        inner = config.num_heads * config.head_dim
        self.num_heads = config.num_heads
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.spread = _linear(config.width, 4 * inner, config)
        self.distance_HL = nn.Parameter(torch.zeros(config.num_heads, max_length))
        self.attended_norm = nn.LayerNorm(inner, eps=config.norm_eps)
        self.project = _linear(inner, config.width, config)

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        """Shape [B, L, D]; padding stands at the end, where causality keeps it from the events."""
        gate_BLI, *parts_BLI = silu(self.spread(self.norm(hidden_BLD))).chunk(4, dim=2)
        value_BHLK, query_BHLK, key_BHLK = (
            part.view(*part.shape[:2], self.num_heads, -1).transpose(1, 2) for part in parts_BLI
        )
        position_L = torch.arange(hidden_BLD.shape[1])
        distance_LL = position_L[:, None] - position_L
        bias_HLL = self.distance_HL[:, distance_LL.clamp(min=0)]
        weights_BHLL = silu(query_BHLK @ key_BHLK.transpose(2, 3) + bias_HLL) / (position_L[:, None] + 1)
        attended_BHLK = weights_BHLL.masked_fill(distance_LL < 0, 0) @ value_BHLK
        attended_BLI = attended_BHLK.transpose(1, 2).flatten(2)
        added_BLD: Tensor = self.project(self.attended_norm(attended_BLI) * gate_BLI)
        return hidden_BLD + added_BLD


def _linear(num_inputs: int, num_outputs: int, config: ModelConfig) -> nn.Linear:
    """Started as the default's linear layers are."""
    linear = nn.Linear(num_inputs, num_outputs)
    nn.init.normal_(linear.weight, std=config.init_std)
    nn.init.zeros_(linear.bias)
    return linear
