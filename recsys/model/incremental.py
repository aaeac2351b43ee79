"""The decoder in two passes for engines: open a window, then append events over its kept keys and values.

Both equal the decoder of `transformers` in float32 (a test holds them to it) and leave out what an answer does
not need: in the last layer only the last event asks, so queries and feed-forward are computed for it alone.
"""

# B batch, L events of a window, E appended events, C kept events (padded), D width, N layers, H heads, K head_dim

import itertools
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from recsys.contracts.errors import ConfigError
from recsys.contracts.precision import CacheFormat
from recsys.model.architectures import FAILURES, first_line
from recsys.model.config import ModelConfig
from recsys.model.decoder import SequenceModel
from recsys.model.heads import LatentHeads, PlainHeads, Rotation, feed_forward, joined

INT8_MAX = 127
_FLOATS = {
    CacheFormat.FLOAT32: torch.float32,
    CacheFormat.FLOAT16: torch.float16,
    CacheFormat.BF16: torch.bfloat16,
}
_PROBE_EVENTS = 12
_PROBE_NOISE = 0.1
_PROBE_TOLERANCE = 1e-3


class OpenWindow(nn.Module):
    """(embedded_BLD, last_B) -> (vector_BD, *kept): a whole window, padded at the end.

    `kept` are keys (rotated) and values of each layer, in turns: 2N tensors [B, L, H, K], and for int8, whose
    tensors are codes, 2N more of their scales [B, L, H].
    """

    def __init__(self, model: SequenceModel, cache: CacheFormat, num_blocks: int = 1) -> None:
        """With several blocks, attention computes less of what the causal mask then hides.

        For engines whose fused attention computes all of it.
        """
        super().__init__()
        self.steps = _Decoder(model)
        self.cache = cache
        self.num_blocks = num_blocks

    def forward(self, embedded_BLD: Tensor, last_B: Tensor) -> tuple[Tensor, ...]:
        """The vector after each window's last event, and what later events need."""
        positions_1L = torch.arange(embedded_BLD.shape[1], device=embedded_BLD.device).unsqueeze(0)
        last_B1 = last_B.long().unsqueeze(1)
        attention = _Whole(positions_1L, last_B1, self.num_blocks)
        vector_BD, kept = self.steps(embedded_BLD, positions_1L, last_B1, attention)
        return vector_BD, *pack(kept, self.cache)


class AppendEvents(nn.Module):
    """(embedded_BED, last_B, num_kept_B, *kept) -> (vector_BD, *kept of the new events).

    `num_kept_B` of the C kept events count; the rest is padding and may hold any finite numbers.
    """

    own_HH1: Tensor
    """1 where a query of one head looks at itself."""

    def __init__(self, model: SequenceModel, cache: CacheFormat) -> None:
        super().__init__()
        self.steps = _Decoder(model)
        self.cache = cache
        self.register_buffer("own_HH1", torch.eye(model.config.num_heads).unsqueeze(2), persistent=False)

    def forward(self, embedded_BED: Tensor, last_B: Tensor, num_kept_B: Tensor, *kept: Tensor) -> tuple[Tensor, ...]:
        """The vector after each session's last new event, and what later events need of the new ones."""
        num_new, num_kept = embedded_BED.shape[1], kept[0].shape[1]
        new_E = torch.arange(num_new, device=embedded_BED.device)
        last_B1, num_kept_B1 = last_B.long().unsqueeze(1), num_kept_B.long().unsqueeze(1)
        padding_BC = torch.arange(num_kept, device=embedded_BED.device) >= num_kept_B1
        # clamped: padding after a short row's last event may lie beyond the window, and is not looked at
        positions_BE = (num_kept_B1 + new_E).clamp(max=self.steps.max_length - 1)
        attention = _Continued(kept, self.cache, self.own_HH1, padding_BC, new_E, last_B1)
        vector_BD, fresh = self.steps(embedded_BED, positions_BE, last_B1, attention)
        return vector_BD, *pack(fresh, self.cache)


def why_not(config: ModelConfig, window_size: int) -> str | None:
    """Why these two passes cannot stand for the decoder that `transformers` builds; None: they compute the same.

    Seen on a decoder of random weights and a few random events.
    """
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(0)
        model = SequenceModel(config, 1, window_size).eval()
        for weight in model.decoder.parameters():
            weight.add_(_PROBE_NOISE * torch.randn_like(weight))
        num_events = min(_PROBE_EVENTS, window_size)
        embedded_1LD = torch.randn(1, num_events, config.width)
        expected_D = model.decode(embedded_1LD)[0, -1]
        try:
            vectors = _both_passes(model, embedded_1LD)
        except FAILURES as error:
            return f"its layers are not built like Llama's ({first_line(error)})"
    furthest = max(float((vector_D - expected_D).norm() / expected_D.norm()) for vector_D in vectors)
    if not furthest < _PROBE_TOLERANCE:
        return (
            f"its layers are named as Llama's and compute something else (a vector {furthest:.0%} of its length away)"
        )
    return _narrower_attention(model, window_size)


def check(config: ModelConfig, window_size: int) -> None:
    """See that engines can be built of such a decoder.

    Raises:
        ConfigError: they cannot, and why.
    """
    reason = why_not(config, window_size)
    if reason is not None:
        raise ConfigError(
            f"architecture = {config.architecture!r}: no engine can be built, {reason}; "
            "train with one of Llama's family: qwen3, llama, mistral, qwen2, gemma …"
        )


def _both_passes(model: SequenceModel, embedded_1LD: Tensor) -> list[Tensor]:
    """The vector after the last event, encoded at once and appended to a window without its second half."""
    num_events = embedded_1LD.shape[1]
    half = (num_events + 1) // 2
    opened = OpenWindow(model, CacheFormat.FLOAT32)
    encoded_1D = opened(embedded_1LD, torch.tensor([num_events - 1]))[0]
    _, *kept = opened(embedded_1LD[:, :half], torch.tensor([half - 1]))
    append, rest_1ED = AppendEvents(model, CacheFormat.FLOAT32), embedded_1LD[:, half:]
    if not rest_1ED.shape[1]:
        return [encoded_1D[0]]
    appended_1D = append(rest_1ED, torch.tensor([num_events - half - 1]), torch.tensor([half]), *kept)[0]
    return [encoded_1D[0], appended_1D[0]]


def _narrower_attention(model: SequenceModel, window_size: int) -> str | None:
    """A sliding window of attention that a window of ours is larger than: too few events were tried to see it."""
    config: Any = model.decoder.config
    sliding = getattr(config, "sliding_window", None)
    if sliding is None or sliding >= window_size or not getattr(config, "use_sliding_window", True):
        return None
    return f"its attention reaches {sliding} events back, fewer than a window's {window_size}"


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
        self.max_length = model.max_length
        heads = LatentHeads if model.config.is_latent else PlainHeads
        self._heads = heads(model.config.num_heads, model.config.head_dim)
        self.layers, self.norm = decoder.layers, decoder.norm
        self.register_buffer("frequency_K", decoder.rotary_emb.inv_freq.clone(), persistent=False)

    def forward(
        self, hidden_BLD: Tensor, positions_BL: Tensor, last_B1: Tensor, attention: "_Attention"
    ) -> tuple[Tensor, list[Tensor]]:
        """Vector after the last event and the new keys and values, in turns."""
        rotation = self._rotation(positions_BL, hidden_BLD.dtype)
        kept: list[Tensor] = []
        for n, layer in enumerate(self.layers):
            normed_BLD = layer.input_layernorm(hidden_BLD)
            keys_BLHK, values_BLHK = self._heads.keys_and_values(layer.self_attn, normed_BLD, rotation)
            kept += [keys_BLHK, values_BLHK]
            only_last = n == len(self.layers) - 1
            if only_last:
                row_B1D = last_B1.unsqueeze(2).expand(-1, 1, hidden_BLD.shape[2])
                hidden_BLD, normed_BLD = hidden_BLD.gather(1, row_B1D), normed_BLD.gather(1, row_B1D)
                position_B1 = positions_BL.expand(last_B1.shape[0], -1).gather(1, last_B1)
                rotation = self._rotation(position_B1, hidden_BLD.dtype)
            queries = self._heads.queries(layer.self_attn, normed_BLD, rotation)
            attended = attention(n, queries, keys_BLHK, values_BLHK, only_last)
            hidden_BLD = hidden_BLD + layer.self_attn.o_proj(joined(attended))
            hidden_BLD = hidden_BLD + feed_forward(layer.mlp, layer.post_attention_layernorm(hidden_BLD))
        return self.norm(hidden_BLD).squeeze(1), kept

    def _rotation(self, positions_BL: Tensor, dtype: torch.dtype) -> Rotation:
        """Cosines and sines of each event's angles, shape [B, L, 1, K]."""
        angles_BLK = positions_BL.unsqueeze(2).float() * self.frequency_K  # type: ignore[operator]
        angles_BL1K = torch.cat([angles_BLK, angles_BLK], dim=2).unsqueeze(2)
        return angles_BL1K.cos().to(dtype), angles_BL1K.sin().to(dtype)


class _Attention(Protocol):
    def __call__(
        self, layer: int, queries: Tensor, keys_BLHK: Tensor, values_BLHK: Tensor, only_last: bool, /
    ) -> Tensor:
        """What each event finds at those up to itself, shape of the queries; with `only_last`, these are of one."""
        ...


class _Whole:
    """Of a whole window."""

    def __init__(self, positions_1L: Tensor, last_B1: Tensor, num_blocks: int) -> None:
        self._positions_1L = positions_1L
        self._last_B1 = last_B1
        self._blocks = _blocks(positions_1L, num_blocks) if num_blocks > 1 else []

    def __call__(self, _: int, queries: Tensor, keys_BLHK: Tensor, values_BLHK: Tensor, only_last: bool) -> Tensor:
        queries, keys_BHLK, values_BHLK = (part.transpose(1, 2) for part in (queries, keys_BLHK, values_BLHK))
        if only_last:
            known_BL = self._positions_1L <= self._last_B1
            known_B11L = known_BL.unsqueeze(1).unsqueeze(2)
            attended = scaled_dot_product_attention(queries, keys_BHLK, values_BHLK, known_B11L)
        elif self._blocks:
            attended = self._by_blocks(queries, keys_BHLK, values_BHLK)
        else:
            attended = scaled_dot_product_attention(queries, keys_BHLK, values_BHLK, is_causal=True)
        return attended.transpose(1, 2)

    def _by_blocks(self, queries_BHLK: Tensor, keys_BHLK: Tensor, values_BHLK: Tensor) -> Tensor:
        """Each block of events looks at the keys up to its own last event.

        Written out, as fused attention turns and scales what a block looks at anew for each block (Z = B x H).
        """
        batch, heads, length, head_dim = queries_BHLK.shape
        queries_ZLK = (queries_BHLK * head_dim**-0.5).reshape(batch * heads, length, head_dim)
        keys_ZKL = keys_BHLK.transpose(2, 3).reshape(batch * heads, head_dim, length)
        values_ZLK = values_BHLK.reshape(batch * heads, length, values_BHLK.shape[3])
        attended = []
        for asking, seen, is_later in self._blocks:
            scores = torch.bmm(queries_ZLK[:, asking], keys_ZKL[:, :, seen]).masked_fill(is_later, -torch.inf)
            attended.append(torch.bmm(scores.softmax(dim=2), values_ZLK[:, seen]))
        return torch.cat(attended, dim=1).view(batch, heads, length, values_BHLK.shape[3])


def _blocks(positions_1L: Tensor, num_blocks: int) -> list[tuple[slice, slice, Tensor]]:
    """Events that ask, events up to the last of them, and which of these come after whom."""
    length, positions_L1 = positions_1L.shape[1], positions_1L.transpose(0, 1)
    ends = [length * n // num_blocks for n in range(num_blocks + 1)]
    blocks = [(slice(start, stop), slice(stop)) for start, stop in itertools.pairwise(ends)]
    return [(asking, seen, positions_1L[:, seen] > positions_L1[asking]) for asking, seen in blocks]


class _Continued:
    """Of new events over kept ones, which are read where and as they lie.

    With few queries nearly all the work is to read them once, so they are neither joined with the new ones nor
    sorted by head. A row of C holds all heads side by side; a query is zero at the heads that are not its own
    (Y = E x H rows of X = H x K), and what it finds there is left out.
    """

    def __init__(
        self,
        kept: Sequence[Tensor],
        cache: CacheFormat,
        own_HH1: Tensor,
        padding_BC: Tensor,
        new_E: Tensor,
        last_B1: Tensor,
    ) -> None:
        half = len(kept) // 2 if cache is CacheFormat.INT8 else len(kept)
        self._rows, self._scales = kept[:half], kept[half:]
        self._own_HH1 = own_HH1
        self._padding_B11C = padding_BC.unsqueeze(1).unsqueeze(2)
        self._new_E, self._last_B1 = new_E, last_B1

    def __call__(self, layer: int, queries: Tensor, keys_BLHK: Tensor, values_BLHK: Tensor, only_last: bool) -> Tensor:
        batch, asking, heads, head_dim = queries.shape
        spread_BEHHK = (queries * head_dim**-0.5).unsqueeze(3) * self._own_HH1
        queries_BYX = spread_BEHHK.view(batch, asking * heads, heads * head_dim)
        past_BEHC = self._scaled(_products(self._rows[2 * layer], queries_BYX, asking), 2 * layer)
        new_BEHL = _products(keys_BLHK, queries_BYX, asking)
        asking_BE1 = (self._last_B1 if only_last else self._new_E.unsqueeze(0)).unsqueeze(2)
        later_BE1L = (self._new_E > asking_BE1).unsqueeze(2)
        scores = torch.cat(
            [
                past_BEHC.float().masked_fill(self._padding_B11C, -torch.inf),
                new_BEHL.float().masked_fill(later_BE1L, -torch.inf),
            ],
            dim=3,
        )
        weights = scores.softmax(dim=3).to(queries.dtype)
        of_past, of_new = weights.split_with_sizes([past_BEHC.shape[3], new_BEHL.shape[3]], dim=3)
        of_past = self._scaled(of_past, 2 * layer + 1).reshape(batch, asking * heads, -1)
        past_BCX, of_past_BYC = _alike(self._rows[2 * layer + 1], of_past)
        found_BYX = torch.bmm(of_past_BYC, past_BCX).to(queries.dtype)
        found_BYX = found_BYX + torch.bmm(of_new.reshape(batch, asking * heads, -1), joined(values_BLHK))
        return (found_BYX.view(batch, asking, heads, heads, head_dim) * self._own_HH1).sum(dim=3)

    def _scaled(self, numbers_BEHC: Tensor, place: int) -> Tensor:
        """Products with codes of int8, or weights for them, times the codes' scales."""
        if not self._scales:
            return numbers_BEHC
        return numbers_BEHC * self._scales[place].to(numbers_BEHC.dtype).transpose(1, 2).unsqueeze(1)


def _products(rows_BCHK: Tensor, queries_BYX: Tensor, asking: int) -> Tensor:
    """Each query times each row, shape [B, E, H, C]."""
    batch, num_rows, heads = rows_BCHK.shape[:3]
    rows_BCX, queries_BYX = _alike(rows_BCHK, queries_BYX)
    # not `@`, of which an exporter makes copies for each batch: appending takes 1.4 times as long
    return torch.bmm(queries_BYX, rows_BCX.transpose(1, 2)).view(batch, asking, heads, num_rows)


def _alike(rows_BCHK: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Rows with heads side by side, and what they are multiplied with, in one type.

    Of float16 and bf16 that of the rows, which are many and stay as they lie; TensorRT-RTX 1.7 builds no plan that
    converts them. Otherwise that of the others.
    """
    if rows_BCHK.dtype is torch.float16 and others.dtype is torch.bfloat16:
        return joined(rows_BCHK), others.to(torch.float16)
    return joined(rows_BCHK).to(others.dtype), others


def pack(kept: Sequence[Tensor], cache: CacheFormat) -> tuple[Tensor, ...]:
    """Keys and values as they are kept: int8 with one float32 scale a head, event and layer, or floats."""
    if cache is not CacheFormat.INT8:
        return tuple(part.to(_FLOATS[cache]) for part in kept)
    scales = [part.abs().amax(dim=-1).float().clamp_min(1e-12) / INT8_MAX for part in kept]
    codes = [
        (part.float() / scale.unsqueeze(-1)).round().to(torch.int8) for part, scale in zip(kept, scales, strict=True)
    ]
    return *codes, *scales
