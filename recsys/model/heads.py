"""Queries, keys, values and feed-forward blocks of the decoders that `transformers` builds, as operations to export.

Each equals what `transformers` computes (tests hold them to it) with rotated keys of all heads to be kept. OpenVINO
reads their operations as they are, which it does not of `chunk` or `flatten`.
"""

# B batch, L events, D width, H heads, K head_dim, R latent width, E experts, F inner width of an expert, X = E x F

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines of the rotary embedding."""


@dataclass(frozen=True, slots=True)
class PlainHeads:
    """Llama's family: three projections; Qwen3 norms queries and keys, Llama does not."""

    num_heads: int
    head_dim: int

    def queries(self, attention: Any, normed_BLD: Tensor, rotation: Rotation) -> Tensor:
        """Rotated queries, shape [B, L, H, K]."""
        return rotated(self._projected(attention, "q", normed_BLD), rotation)

    def keys_and_values(self, attention: Any, normed_BLD: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """Rotated keys, and values, shape [B, L, H, K] each."""
        keys_BLHK = rotated(self._projected(attention, "k", normed_BLD), rotation)
        return keys_BLHK, self._projected(attention, "v", normed_BLD)

    def _projected(self, attention: Any, name: str, normed_BLD: Tensor) -> Tensor:
        projected = getattr(attention, f"{name}_proj")(normed_BLD)
        heads_BLHK: Tensor = projected.view(*projected.shape[:2], self.num_heads, self.head_dim)
        norm = getattr(attention, f"{name}_norm", None)
        return heads_BLHK if norm is None else norm(heads_BLHK)


@dataclass(frozen=True, slots=True)
class LatentHeads:
    """DeepSeek-V3: keys and values of all heads are made of R numbers; half of a head's channels are rotated.

    Source: DeepSeek-AI, DeepSeek-V2, 2024 (multi-head latent attention).
    """

    num_heads: int
    head_dim: int

    def queries(self, attention: Any, normed_BLD: Tensor, rotation: Rotation) -> Tensor:
        """Queries with their second half rotated, shape [B, L, H, K]."""
        projected = attention.q_proj(normed_BLD)
        half = self.head_dim // 2
        heads_BLHK = projected.view(*projected.shape[:2], self.num_heads, self.head_dim)
        plain, turned = heads_BLHK.split_with_sizes([half, half], dim=3)
        return torch.cat([plain, rotated(_pairs_to_halves(turned), rotation)], dim=-1)

    def keys_and_values(self, attention: Any, normed_BLD: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """Keys, whose second half is rotated and the same in all heads, and values, shape [B, L, H, K] each."""
        half = self.head_dim // 2
        latent_BLR, turned = attention.kv_a_proj_with_mqa(normed_BLD).split([attention.kv_lora_rank, half], dim=-1)
        made = attention.kv_b_proj(attention.kv_a_layernorm(latent_BLR))
        plain, values_BLHK = made.view(*made.shape[:2], self.num_heads, -1).split([half, self.head_dim], dim=-1)
        turned = rotated(_pairs_to_halves(turned.unsqueeze(2)), rotation).expand(-1, -1, self.num_heads, -1)
        return torch.cat([plain, turned], dim=-1), values_BLHK


def feed_forward(block: Any, normed_BLD: Tensor) -> Tensor:
    """What the block adds to each event. All experts are computed and those not chosen weigh 0.

    `transformers` computes the chosen ones alone, by a loop over what the data chose: that cannot be exported.
    """
    if not hasattr(block, "experts"):
        return block(normed_BLD)  # type: ignore[no-any-return]
    router, experts = block.gate, block.experts
    scores_BLE = linear(normed_BLD.float(), router.weight.float()).sigmoid()
    chosen = (scores_BLE + router.e_score_correction_bias).topk(router.top_k, dim=-1)[1]
    weights_BLE = torch.zeros_like(scores_BLE).scatter(-1, chosen, scores_BLE.gather(-1, chosen))
    weights_BLE = weights_BLE / (weights_BLE.sum(dim=-1, keepdim=True) + 1e-20)
    num_experts, width, inner = experts.down_proj.shape
    inner_BLX = linear(normed_BLD, experts.gate_up_proj.reshape(num_experts * 2 * inner, width))
    inner_BLEF = inner_BLX.view(*normed_BLD.shape[:2], num_experts, 2 * inner)
    gate_BLEF, up_BLEF = inner_BLEF.split_with_sizes([inner, inner], dim=3)
    weighted_BLX = joined(silu(gate_BLEF) * up_BLEF * weights_BLE.unsqueeze(3))
    mixed_BLD = linear(weighted_BLX, experts.down_proj.transpose(0, 1).reshape(width, num_experts * inner))
    return mixed_BLD + block.shared_experts(normed_BLD)  # type: ignore[no-any-return]


def joined(heads_BLHK: Tensor) -> Tensor:
    """All parts of an event side by side, shape [B, L, X]."""
    return heads_BLHK.reshape(*heads_BLHK.shape[:2], -1)


def rotated(heads_BLHK: Tensor, rotation: Rotation) -> Tensor:
    """Rotary position embedding, channel i of a head turned with channel i + K/2.

    Source: Su et al., RoFormer, 2021; halves instead of neighbours as in Llama.
    """
    cos, sin = rotation
    half = heads_BLHK.shape[3] // 2
    first, second = heads_BLHK.split_with_sizes([half, half], dim=3)
    return heads_BLHK * cos + torch.cat([-second, first], dim=-1) * sin


def _pairs_to_halves(heads_BLHK: Tensor) -> Tensor:
    """Channels 0, 2, 4 …, then 1, 3, 5 …: DeepSeek turns neighbours, `rotated` turns halves."""
    return torch.cat([heads_BLHK[..., 0::2], heads_BLHK[..., 1::2]], dim=-1)
