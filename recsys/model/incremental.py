"""The decoder in two passes for engines: open a window, then append events over its kept keys and values.

Both equal the decoder of `transformers` in float32 (a test holds them to it) and leave out what an answer does
not need: in the last layer only the last event asks, so queries and feed-forward are computed for it alone.
"""

# B batch, L events of a window, E appended events, C kept events (padded), D width, N layers, H heads, K head_dim

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from recsys.contracts.precision import CacheFormat
from recsys.model.config import Architecture
from recsys.model.decoder import SequenceModel
from recsys.model.heads import LatentHeads, PlainHeads, feed_forward

INT8_MAX = 127


class OpenWindow(nn.Module):
    """(embedded_BLD, last_B) -> (vector_BD, *kept): a whole window, padded at the end.

    `kept` are keys (rotated) and values of each event and layer: one tensor [B, L, 2N, H, K], or for int8
    codes of that shape and scales [B, L, 2N, H].
    """

    def __init__(self, model: SequenceModel, cache: CacheFormat) -> None:
        super().__init__()
        self.steps = _Decoder(model)
        self.cache = cache

    def forward(self, embedded_BLD: Tensor, last_B: Tensor) -> tuple[Tensor, ...]:
        """The vector after each window's last event, and what later events need."""
        positions_L = torch.arange(embedded_BLD.shape[1], device=embedded_BLD.device)
        known_B11L = (positions_L <= last_B.long()[:, None])[:, None, None]
        vector_BD, kept = self.steps(embedded_BLD, positions_L[None], last_B, None, None, known_B11L)
        return vector_BD, *_pack(kept, self.cache)


class AppendEvents(nn.Module):
    """(embedded_BED, last_B, num_kept_B, *kept) -> (vector_BD, *kept of the new events).

    `num_kept_B` of the C kept events count; the rest is padding and may hold any finite numbers.
    """

    def __init__(self, model: SequenceModel, cache: CacheFormat) -> None:
        super().__init__()
        self.steps = _Decoder(model)
        self.cache = cache

    def forward(self, embedded_BED: Tensor, last_B: Tensor, num_kept_B: Tensor, *kept: Tensor) -> tuple[Tensor, ...]:
        """The vector after each session's last new event, and what later events need of the new ones."""
        num_new, num_kept = embedded_BED.shape[1], kept[0].shape[1]
        new_E = torch.arange(num_new, device=embedded_BED.device)
        counts_BC = torch.arange(num_kept, device=embedded_BED.device) < num_kept_B.long()[:, None]
        seen_BEC = counts_BC[:, None].expand(-1, num_new, -1)
        causal_BEE = (new_E <= new_E[:, None]).expand(embedded_BED.shape[0], -1, -1)
        mask_B1EX = torch.cat([seen_BEC, causal_BEE], dim=2)[:, None]
        # clamped: padding after a short row's last event may lie beyond the window, and is not looked at
        positions_BE = (num_kept_B.long()[:, None] + new_E).clamp(max=self.steps.max_length - 1)
        last_mask_B11X = mask_B1EX.gather(2, _rows(last_B, mask_B1EX.shape[3])[:, None])
        past = _unpack(kept, self.cache, embedded_BED.dtype)
        vector_BD, fresh = self.steps(embedded_BED, positions_BE, last_B, past, mask_B1EX, last_mask_B11X)
        return vector_BD, *_pack(fresh, self.cache)


def in_precision(graph: OpenWindow | AppendEvents, dtype: torch.dtype, device: str = "cpu") -> nn.Module:
    """The graph itself with weights and arithmetic in `dtype`, angles of rotation in float32.

    Rounded to bf16, a frequency would put event 1,000 radians away from where it is.
    """
    frequency_K: Any = graph.steps.frequency_K
    exact_K = frequency_K.float().clone()
    graph.to(device, dtype)
    graph.steps.frequency_K = exact_K.to(device)
    return graph.eval()


class _Decoder(nn.Module):
    """The layers of a `transformers` decoder, run one by one."""

    def __init__(self, model: SequenceModel) -> None:
        super().__init__()
        decoder: Any = model.decoder
        self.max_length = int(decoder.config.max_position_embeddings)
        latent = model.config.architecture is Architecture.DEEPSEEK_V3
        self._heads = (LatentHeads if latent else PlainHeads)(model.config.num_heads, model.config.head_dim)
        self.layers, self.norm = decoder.layers, decoder.norm
        assert decoder.rotary_emb.attention_scaling == 1, "a scaled rotary embedding is not built here"
        self.register_buffer("frequency_K", decoder.rotary_emb.inv_freq.clone(), persistent=False)

    def forward(
        self,
        hidden_BLD: Tensor,
        positions_BL: Tensor,
        last_B: Tensor,
        past: Tensor | None,
        mask: Tensor | None,
        last_mask: Tensor,
    ) -> tuple[Tensor, list[Tensor]]:
        """Vector after the last event and the new keys and values, in turns; causal where `mask` is None."""
        angles_BL1K = positions_BL[:, :, None, None].float() * self.frequency_K  # type: ignore[operator]
        rotation = _twice(angles_BL1K.cos()).to(hidden_BLD.dtype), _twice(angles_BL1K.sin()).to(hidden_BLD.dtype)
        kept: list[Tensor] = []
        for n, layer in enumerate(self.layers):
            normed_BLD = layer.input_layernorm(hidden_BLD)
            keys_BLHK, values_BLHK = self._heads.keys_and_values(layer.self_attn, normed_BLD, rotation)
            kept += [keys_BLHK, values_BLHK]
            if n == len(self.layers) - 1:
                hidden_BLD, normed_BLD = _last(hidden_BLD, last_B), _last(normed_BLD, last_B)
                rotation = tuple(_last_rotation(part, last_B) for part in rotation)  # type: ignore[assignment]
                mask = last_mask
            if past is not None:
                keys_BLHK = torch.cat([past[:, :, 2 * n], keys_BLHK], dim=1)
                values_BLHK = torch.cat([past[:, :, 2 * n + 1], values_BLHK], dim=1)
            attended_BHLK = scaled_dot_product_attention(
                self._heads.queries(layer.self_attn, normed_BLD, rotation).transpose(1, 2),
                keys_BLHK.transpose(1, 2),
                values_BLHK.transpose(1, 2),
                attn_mask=mask,
                is_causal=mask is None,
            )
            hidden_BLD = hidden_BLD + layer.self_attn.o_proj(attended_BHLK.transpose(1, 2).flatten(2))
            hidden_BLD = hidden_BLD + feed_forward(layer.mlp, layer.post_attention_layernorm(hidden_BLD))
        return self.norm(hidden_BLD)[:, 0], kept


def _twice(part: Tensor) -> Tensor:
    return torch.cat([part, part], dim=-1)


def _rows(last_B: Tensor, width: int) -> Tensor:
    """Row `last_B` of [B, L, width] as an index of `gather`."""
    return last_B.long()[:, None, None].expand(-1, 1, width)


def _last(hidden_BLD: Tensor, last_B: Tensor) -> Tensor:
    """Each window's last event, shape [B, 1, D]."""
    return hidden_BLD.gather(1, _rows(last_B, hidden_BLD.shape[2]))


def _last_rotation(part_BL1K: Tensor, last_B: Tensor) -> Tensor:
    part_BLK = part_BL1K[:, :, 0].expand(last_B.shape[0], -1, -1)
    return _last(part_BLK, last_B)[:, :, None]


def _pack(kept: Sequence[Tensor], cache: CacheFormat) -> tuple[Tensor, ...]:
    """Keys and values as they are kept: int8 with one scale a head, event and layer, or floats."""
    kept_BLNHK = torch.stack(list(kept), dim=2)
    if cache is not CacheFormat.INT8:
        return (kept_BLNHK.to(torch.float16 if cache is CacheFormat.FLOAT16 else torch.float32),)
    scale_BLNH1 = kept_BLNHK.abs().amax(dim=-1, keepdim=True).clamp_min(1e-12) / INT8_MAX
    return (kept_BLNHK / scale_BLNH1).round().to(torch.int8), scale_BLNH1[..., 0]


def _unpack(kept: Sequence[Tensor], cache: CacheFormat, dtype: torch.dtype) -> Tensor:
    if cache is not CacheFormat.INT8:
        return kept[0].to(dtype)
    return kept[0].to(dtype) * kept[1][..., None].to(dtype)
