"""Decoders that reach further back than one window: rivals that `recsys benchmark histories` holds against it.

Neither is served: `docs/model.md` has the figures. Each takes the rows and the place of a `SequenceModel`.
"""

# B batch, L events, D width, K windows of a row, W window size, S stride, M numbers of a summary, C = 3 M

import torch
from torch import Tensor, nn

from recsys.contracts.ids import PAD
from recsys.model.config import ModelConfig
from recsys.model.decoder import SequenceModel
from recsys.windows import WindowConfig, num_windows


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


class SummaryModel(SequenceModel):
    """A row is cut into windows; each reads the summaries of the windows before it, as tokens ahead of its events.

    A summary is what the decoder makes of a closed window's own events: the states of `num_tokens` learned queries
    after its last event. Gradients flow into it.
    """

    def __init__(self, config: ModelConfig, num_items: int, window: WindowConfig, num_tokens: int) -> None:
        super().__init__(config, num_items, window.size + (1 + window.num_summaries) * num_tokens)
        self.window = window
        self.num_tokens = num_tokens
        self.query_MD = nn.Parameter(config.init_std * torch.randn(num_tokens, config.width))
        self.absent_MD = nn.Parameter(config.init_std * torch.randn(num_tokens, config.width))
        self.project = nn.Linear(config.width, config.width, bias=False)
        nn.init.normal_(self.project.weight, std=config.init_std)

    def forward(self, tokens_BL: Tensor) -> Tensor:
        """Hidden state after each event, shape [B, L, D], by the first window that holds the event."""
        length, size, stride = tokens_BL.shape[1], self.window.size, self.window.stride
        count = num_windows(length, self.window)
        filled = min(length, size) if count == 1 else size + (count - 1) * stride
        tokens_BL = nn.functional.pad(tokens_BL, (0, filled - length), value=PAD)
        embedded_BLD = self.dropout(self.embedding(tokens_BL))
        windows_BKWD = embedded_BLD.unfold(1, min(size, filled), stride).transpose(2, 3)
        prefix_BKCD = self._prefixes(self._summaries(windows_BKWD[:, :-1]))
        rows = torch.cat([prefix_BKCD, windows_BKWD], dim=2).flatten(0, 1)
        states = self.decoder(inputs_embeds=rows, use_cache=False).last_hidden_state
        states_BKWD = states.view(len(tokens_BL), count, -1, states.shape[-1])[:, :, prefix_BKCD.shape[2] :]
        fresh = states_BKWD[:, 1:, size - stride :].flatten(1, 2)
        states_BLD: Tensor = self.dropout(torch.cat([states_BKWD[:, 0], fresh], dim=1)[:, :length])
        return states_BLD

    def _summaries(self, closed_BKWD: Tensor) -> Tensor:
        """Of each closed window, from its own events alone, shape [B, K, M, D]."""
        batch, count, _, width = closed_BKWD.shape
        if not count:
            return closed_BKWD.new_empty(batch, 0, self.num_tokens, width)
        queries = self.query_MD.expand(batch * count, -1, -1)
        rows = torch.cat([closed_BKWD.flatten(0, 1), queries], dim=1)
        states = self.decoder(inputs_embeds=rows, use_cache=False).last_hidden_state[:, -self.num_tokens :]
        summaries: Tensor = self.project(states)
        return summaries.view(batch, count, self.num_tokens, width)

    def _prefixes(self, summaries_BKMD: Tensor) -> Tensor:
        """What each window reads: the summaries of the windows before it, `absent_MD` where there is none."""
        batch, reach = len(summaries_BKMD), self.window.num_summaries
        absent = self.absent_MD.expand(batch, reach, -1, -1)
        before = torch.cat([absent, summaries_BKMD], dim=1).unfold(1, reach, 1)
        return before.permute(0, 1, 4, 2, 3).flatten(2, 3)
