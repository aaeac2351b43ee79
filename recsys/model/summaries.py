"""A decoder that reaches back by summaries: each window reads vectors that the closed ones before it have left.

A summary is what the decoder makes of a closed window's own events: the states of some learned queries after its last
event, projected. So it depends on that window alone, is encoded once and kept. A window reads the summaries before it
as if they were events ahead of its own; one that has none is read as by a `SequenceModel`.
"""

# B batch, L events, D width, K windows of a row, W window size, M vectors of a summary

import torch
from torch import Tensor, nn

from recsys.contracts.ids import PAD, Floats
from recsys.model.config import ModelConfig
from recsys.model.decoder import ClosedWindows, SequenceModel, check_causal
from recsys.windows import WindowConfig, num_windows

_WITHOUT_SHARE = 0.2
"""Of training steps, in which windows are read alone: answers are made so while summaries are not at hand."""


class SummaryModel(SequenceModel):
    """A row is cut into windows; each reads the summaries of up to `num_summaries` before it.

    Gradients flow into the summaries: from the events that are predicted with them, and from their own window, whose
    items they are to tell (`recsys.model.loss.summary_loss`). By the first alone nothing was learned of a taste that
    the open window does not show: who reads a summary learns only once it says something, and the other way round.
    """

    def __init__(self, config: ModelConfig, num_items: int, window: WindowConfig) -> None:
        super().__init__(config, num_items, window.most_rows)
        self.window = window
        self.query_MD = nn.Parameter(config.init_std * torch.randn(window.summary_tokens, config.width))
        self.project = nn.Linear(config.width, config.width, bias=False)
        with torch.no_grad():  # at first a summary is what the window would recommend, as long as an item's vector
            self.project.weight.copy_(config.init_std * torch.eye(config.width))

    def forward(self, tokens_BL: Tensor) -> Tensor:
        """Hidden state after each event, shape [B, L, D], by the first window that holds the event."""
        return self.with_summaries(tokens_BL)[0]

    def with_summaries(self, tokens_BL: Tensor) -> tuple[Tensor, ClosedWindows | None]:
        """The states, and the summaries that were read; None where there were none."""
        length, size, stride = tokens_BL.shape[1], self.window.size, self.window.stride
        if num_windows(length, self.window) == 1:
            return super().forward(tokens_BL), None
        filled_BL = self._filled(tokens_BL)
        windows_BKWD = self.dropout(self.embed(filled_BL)).unfold(1, size, stride).transpose(2, 3)
        ahead, summaries_BKMD = self._summaries_ahead(windows_BKWD)
        states_BKWD = self._read(windows_BKWD, ahead)
        fresh = states_BKWD[:, 1:, size - stride :].flatten(1, 2)
        states_BLD: Tensor = self.dropout(torch.cat([states_BKWD[:, 0], fresh], dim=1)[:, :length])
        if summaries_BKMD is None:
            return states_BLD, None
        closed_BKW = filled_BL.unfold(1, size, stride)[:, :-1]
        return states_BLD, ClosedWindows(summaries_BKMD.flatten(0, 1), closed_BKW.flatten(0, 1))

    def num_closed(self, tokens_BL: Tensor) -> int:
        """Windows before the last of their rows that are full of events."""
        if num_windows(tokens_BL.shape[1], self.window) == 1:
            return 0
        closed_BKW = self._filled(tokens_BL).unfold(1, self.window.size, self.window.stride)[:, :-1]
        return int((closed_BKW != PAD).all(dim=2).sum())

    def _filled(self, tokens_BL: Tensor) -> Tensor:
        """Rows padded at the end until their last window is full."""
        count = num_windows(tokens_BL.shape[1], self.window)
        filled = self.window.size + (count - 1) * self.window.stride
        return nn.functional.pad(tokens_BL, (0, filled - tokens_BL.shape[1]), value=PAD)

    def without_summaries(self) -> SequenceModel:
        """The same weights as a model that reads a row as one window, of any length."""
        plain = SequenceModel(self.config, self.embedding.num_embeddings - 1, self.window.most_rows)
        plain.embedding, plain.decoder, plain.dropout = self.embedding, self.decoder, self.dropout
        return plain.train(self.training)

    def num_rows(self, num_events: int) -> int:
        """Vectors that the decoder reads for a row of so many events, summaries encoded and read."""
        size, tokens = self.window.size, self.window.summary_tokens
        closed = num_windows(num_events, self.window) - 1
        if not closed:
            return num_events
        return closed * (size + tokens) + (closed + 1) * (size + min(closed, self.window.num_summaries) * tokens)

    @property
    def num_summary_vectors(self) -> int:
        """M: what a closed window leaves."""
        return len(self.query_MD)

    def summaries(self, closed_BWD: Tensor) -> Tensor:
        """Of closed windows, from their own events alone, shape [B, M, D]."""
        queries = self.query_MD.expand(len(closed_BWD), -1, -1)
        states_BMD = self.decode(torch.cat([closed_BWD, queries], dim=1))[:, -len(self.query_MD) :]
        summaries_BMD: Tensor = self.project(states_BMD)
        return summaries_BMD

    def weights(self) -> tuple[Floats, Floats]:
        """What summaries are made with beside the decoder: queries [M, D] and projection [D, D]."""
        query_MD, project_DD = (part.detach().cpu().numpy().copy() for part in (self.query_MD, self.project.weight))
        return query_MD, project_DD

    def _summaries_ahead(self, windows_BKWD: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """For each window what it reads ahead of its events, shape [B, M x number of summaries, D]; all summaries."""
        batch, count, _, width = windows_BKWD.shape
        nothing = windows_BKWD.new_empty(batch, 0, width)
        if self.training and torch.rand(()).item() < _WITHOUT_SHARE:
            return [nothing] * count, None
        closed = windows_BKWD[:, :-1].flatten(0, 1)
        summaries_BKMD = self.summaries(closed).view(batch, count - 1, -1, width)
        first = [max(0, k - self.window.num_summaries) for k in range(count)]
        ahead = [summaries_BKMD[:, first[k] : k].flatten(1, 2) if k else nothing for k in range(count)]
        return ahead, summaries_BKMD

    def _read(self, windows_BKWD: Tensor, ahead: list[Tensor]) -> Tensor:
        """States of the windows' events, shape [B, K, W, D]; shorter rows are padded at the end."""
        batch, count, size, width = windows_BKWD.shape
        longest = max(part.shape[1] for part in ahead)
        rows = [torch.cat([part, windows_BKWD[:, k]], dim=1) for k, part in enumerate(ahead)]
        padded = [nn.functional.pad(row, (0, 0, 0, longest + size - row.shape[1])) for row in rows]
        states_BKRD = self.decode(torch.stack(padded, dim=1).flatten(0, 1)).view(batch, count, -1, width)
        return torch.stack([states_BKRD[:, k, part.shape[1] :][:, :size] for k, part in enumerate(ahead)], dim=1)


def build_model(config: ModelConfig, num_items: int, window: WindowConfig) -> SequenceModel:
    """The model of a recipe or of a checkpoint, with random weights.

    Raises:
        ConfigError: the recipe's architecture is no causal decoder, or cannot be built with its settings.
    """
    summarised = window.summary_tokens > 0
    model = SummaryModel(config, num_items, window) if summarised else SequenceModel(config, num_items, window.size)
    check_causal(model)
    return model
