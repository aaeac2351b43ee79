"""The sequence model: item embeddings, a decoder from `transformers`, the same embeddings as output."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from recsys.contracts.ids import PAD
from recsys.model.config import Architecture, ModelConfig
from recsys.model.dropout import Dropout

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# B batch, L window length, D width, V items without padding


class SequenceModel(nn.Module):
    """Causal decoder over windows. Padding stands at the end, where causality keeps it from the events."""

    def __init__(self, config: ModelConfig, num_items: int, max_length: int) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(num_items + 1, config.width, padding_idx=PAD)
        nn.init.normal_(self.embedding.weight, std=config.init_std)
        with torch.no_grad():
            self.embedding.weight[PAD].zero_()
        self.dropout = Dropout(config.dropout)
        self.decoder = _decoder(config, max_length)

    def forward(self, tokens_BL: Tensor) -> Tensor:
        """Hidden state after each event, shape [B, L, D]: what predicts the next one."""
        embedded_BLD = self.dropout(self.embedding(tokens_BL))
        hidden_BLD: Tensor = self.decoder(inputs_embeds=embedded_BLD, use_cache=False).last_hidden_state
        states_BLD: Tensor = self.dropout(hidden_BLD)
        return states_BLD

    @property
    def items_VD(self) -> Tensor:
        """Output vectors of tokens 1 … V; a user's score for an item is the inner product."""
        return self.embedding.weight[1:]


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


def _decoder(config: ModelConfig, max_length: int) -> "PreTrainedModel":
    """The bare decoder; its own token embedding is not used and is removed."""
    from transformers import AutoModel

    decoder = AutoModel.from_config(_pretrained_config(config, max_length), attn_implementation="sdpa")
    decoder.embed_tokens = None
    return decoder


def _pretrained_config(config: ModelConfig, max_length: int) -> "PretrainedConfig":
    from transformers import LlamaConfig, Qwen3Config

    kind = {Architecture.QWEN3: Qwen3Config, Architecture.LLAMA: LlamaConfig}[config.architecture]
    return kind(
        vocab_size=1,
        hidden_size=config.width,
        intermediate_size=config.feedforward_width,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_heads,
        head_dim=config.head_dim,
        max_position_embeddings=max_length,
        initializer_range=config.init_std,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        use_cache=False,
    )
