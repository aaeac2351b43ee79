"""The sequence model: item embeddings, a decoder from `transformers`, the same embeddings as output."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from recsys.contracts.errors import ConfigError
from recsys.contracts.ids import PAD
from recsys.model import architectures
from recsys.model.architectures import FAILURES, cannot, first_line
from recsys.model.config import ModelConfig
from recsys.model.dropout import Dropout

# B batch, L window length, D width, V items without padding, N closed windows of W events, M vectors of a summary

_PROBE_LENGTH = 16


class SequenceModel(nn.Module):
    """Causal decoder over windows. Padding stands at the end, where causality keeps it from the events."""

    def __init__(self, config: ModelConfig, num_items: int, max_length: int) -> None:
        super().__init__()
        self.config = config
        self.max_length = max_length
        self.embedding = nn.Embedding(num_items + 1, config.width, padding_idx=PAD)
        nn.init.normal_(self.embedding.weight, std=config.init_std)
        with torch.no_grad():
            self.embedding.weight[PAD].zero_()
        self.dropout = Dropout(config.dropout)
        self.decoder = architectures.build(config, max_length)

    def forward(self, tokens_BL: Tensor) -> Tensor:
        """Hidden state after each event, shape [B, L, D]: what predicts the next one."""
        states_BLD: Tensor = self.dropout(self.decode(self.dropout(self.embed(tokens_BL))))
        return states_BLD

    def with_summaries(self, tokens_BL: Tensor) -> "tuple[Tensor, ClosedWindows | None]":
        """The states, and what closed windows have left to later ones, where the model makes such."""
        return self(tokens_BL), None

    def num_closed(self, tokens_BL: Tensor) -> int:
        """Windows that leave something to later ones: none."""
        del tokens_BL
        return 0

    def embed(self, tokens_BL: Tensor) -> Tensor:
        """What the decoder reads of each event, shape [B, L, D]."""
        embedded_BLD: Tensor = self.embedding(tokens_BL)
        return embedded_BLD

    def decode(self, embedded_BLD: Tensor) -> Tensor:
        """What the decoder makes of each event and those before it, shape [B, L, D]."""
        hidden_BLD: Tensor = self.decoder(inputs_embeds=embedded_BLD, use_cache=False).last_hidden_state
        return hidden_BLD

    def without_summaries(self) -> "SequenceModel":
        """The model that reads a row as one window: itself."""
        return self

    def num_rows(self, num_events: int) -> int:
        """Vectors that the decoder reads for a row of so many events."""
        return num_events

    @property
    def num_summary_vectors(self) -> int:
        """M: what a closed window leaves."""
        return 0

    @property
    def items_VD(self) -> Tensor:
        """Output vectors of tokens 1 … V; a user's score for an item is the inner product."""
        return self.embedding.weight[1:]


class ClosedWindows(NamedTuple):
    """Full windows and what each leaves to the windows after it."""

    summaries_NMD: Tensor
    tokens_NW: Tensor


class UserEncoder(nn.Module):
    """What an engine is built from: (tokens_BL, position of the last event) -> user vector."""

    def __init__(self, model: SequenceModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens_BL: Tensor, last_B: Tensor) -> Tensor:
        """The hidden state after each window's last event, shape [B, D]."""
        hidden_BLD = self.model(tokens_BL)
        index_B1D = last_B.long()[:, None, None].expand(-1, 1, hidden_BLD.shape[2])
        vectors_BD: Tensor = hidden_BLD.gather(1, index_B1D).squeeze(1)
        return vectors_BD


def check_causal(model: SequenceModel) -> None:
    """See that the decoder runs, and that no state depends on later events.

    Raises:
        ConfigError: it does neither, as an encoder or a model that wants more than vectors of events.
    """
    generator = torch.Generator().manual_seed(0)
    length = min(_PROBE_LENGTH, model.max_length)
    half = length // 2
    before_1LD = torch.randn(1, length, model.config.width, generator=generator)
    after_1LD = before_1LD.clone()
    after_1LD[:, half:] = torch.randn(after_1LD[:, half:].shape, generator=generator)
    was_training = model.training
    with torch.inference_mode():
        model.eval()
        try:
            states, others = (model.decode(part)[:, :half] for part in (before_1LD, after_1LD))
        except FAILURES as error:
            raise ConfigError(cannot(model.config, f"fails on a window of vectors: {first_line(error)}")) from error
        finally:
            model.train(was_training)
    if not torch.allclose(states, others, rtol=1e-4, atol=1e-5):
        raise ConfigError(cannot(model.config, "looks at later events, so it cannot learn to predict them"))
