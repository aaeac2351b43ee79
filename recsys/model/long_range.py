"""A decoder that reaches back by a band, and the rolling cache that continues it.

A rival that `recsys benchmark histories` holds against windows. It is not served: `docs/model.md` has the figures. It
takes the rows and the place of a `SequenceModel`.
"""

# B batch, L events, C kept events, D width, H heads, K head_dim

import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from recsys.contracts.precision import CacheFormat
from recsys.model.config import ModelConfig
from recsys.model.decoder import SequenceModel
from recsys.model.incremental import AppendEvents, OpenWindow, pack

_BLOCKS_OF_A_BAND = 4
"""Attention is computed by blocks of events; with more of them less is computed that the band then hides."""


class BandedModel(SequenceModel):
    """Every event sees itself and the `band` − 1 events before it, in each layer: a rolling cache serves it."""

    def __init__(self, config: ModelConfig, num_items: int, max_length: int, band: int) -> None:
        super().__init__(config, num_items, max_length)
        self.band = band

    def decode(self, embedded_BLD: Tensor) -> Tensor:
        """What the decoder makes of each event and those of the band before it, shape [B, L, D]."""
        position_L = torch.arange(embedded_BLD.shape[1])
        mask_B1LL = _in_band(position_L, position_L, self.band).expand(len(embedded_BLD), 1, -1, -1)
        states = self.decoder(inputs_embeds=embedded_BLD, attention_mask=mask_B1LL, use_cache=False)
        hidden_BLD: Tensor = states.last_hidden_state
        return hidden_BLD


class OpenBand(nn.Module):
    """embedded_BLD -> (vector_BD, *kept): rows of one length; `kept` as by `OpenWindow`, of the last `band` − 1 events.

    As there, the last layer is computed for the last event alone.
    """

    def __init__(self, model: BandedModel, cache: CacheFormat) -> None:
        super().__init__()
        self.steps = OpenWindow(model, cache).steps
        self.band = model.band
        self.cache = cache

    def forward(self, embedded_BLD: Tensor) -> tuple[Tensor, ...]:
        """The vector after the last event, and what later events need."""
        batch, length = embedded_BLD.shape[:2]
        last_B1 = torch.full((batch, 1), length - 1)
        vector_BD, kept = self.steps(embedded_BLD, torch.arange(length)[None], last_B1, _Banded(self.band))
        first = max(0, length - self.band + 1)
        return vector_BD, *pack([part[:, first:] for part in kept], self.cache)


class RollingCache:
    """Keys and values of a session's last `num_rows` events in each layer, to which events are appended one by one.

    Event n of the session lies in row n mod `num_rows`, where the oldest was: rotated keys know their own place, so
    the order of rows means nothing and none is moved. A band keeps `band` − 1 rows.
    """

    def __init__(self, model: SequenceModel, cache: CacheFormat, num_rows: int) -> None:
        self.rows: list[Tensor] = []
        """As by `OpenWindow`, but of C = `num_rows` events."""
        self._graph = AppendEvents(model, cache).eval()
        self._graph.steps.max_length = sys.maxsize  # angles are relative: a session may outgrow its first pass
        self._num_rows = num_rows

    def fill(self, kept: Sequence[Tensor], num_events: int) -> None:
        """Keep what a first pass over `num_events` events left of the last of them."""
        num_last = min(self._num_rows, kept[0].shape[1])
        places = torch.arange(num_events - num_last, num_events) % self._num_rows
        self.rows = []
        for part in kept:
            rows = part.new_zeros(part.shape[0], self._num_rows, *part.shape[2:])
            rows[:, places] = part[:, -num_last:]
            self.rows.append(rows)

    def append(self, embedded_B1D: Tensor, num_events: int) -> Tensor:
        """The vector after one more event, which follows `num_events` others, shape [B, D]."""
        batch = len(embedded_B1D)
        # more than there are rows: all of them count, and the event's place is its own
        before_B = torch.full((batch,), num_events)
        vector_BD, *fresh = self._graph(embedded_B1D, torch.zeros(batch, dtype=torch.long), before_B, *self.rows)
        for rows, part in zip(self.rows, fresh, strict=True):
            rows[:, num_events % self._num_rows] = part[:, 0]
        return vector_BD  # type: ignore[no-any-return]


class _Banded:
    """Attention in which each event sees the band up to itself."""

    def __init__(self, band: int) -> None:
        self._band = band

    def __call__(self, _: int, queries: Tensor, keys_BLHK: Tensor, values_BLHK: Tensor, only_last: bool) -> Tensor:
        queries, keys_BHLK, values_BHLK = (part.transpose(1, 2) for part in (queries, keys_BLHK, values_BLHK))
        if only_last:  # of all rows alike
            near = slice(-self._band, None)
            return scaled_dot_product_attention(queries, keys_BHLK[:, :, near], values_BHLK[:, :, near]).transpose(1, 2)
        length = keys_BHLK.shape[2]
        position_L, block = torch.arange(length), -(-self._band // _BLOCKS_OF_A_BAND)
        attended = []
        for start in range(0, length, block):
            asking, near = slice(start, start + block), slice(max(0, start - self._band + 1), start + block)
            attended.append(
                scaled_dot_product_attention(
                    queries[:, :, asking],
                    keys_BHLK[:, :, near],
                    values_BHLK[:, :, near],
                    _in_band(position_L[asking], position_L[near], self._band),
                )
            )
        return torch.cat(attended, dim=2).transpose(1, 2)


def _in_band(asking_Q: Tensor, position_L: Tensor, band: int) -> Tensor:
    """Which events those at `asking_Q` see, shape [Q, L]."""
    age_QL = asking_Q[:, None] - position_L
    return (age_QL >= 0) & (age_QL < band)
