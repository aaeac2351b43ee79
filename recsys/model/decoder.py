"""The sequence model: item embeddings, a decoder from `transformers`, the same embeddings as output."""

from typing import TYPE_CHECKING, Any

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
        states_BLD: Tensor = self.dropout(self.decode(self.dropout(self.embed(tokens_BL))))
        return states_BLD

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
    """The settings of `transformers` that build this decoder."""
    from transformers import DeepseekV3Config, LlamaConfig, Qwen3Config

    kinds = {
        Architecture.QWEN3: (Qwen3Config, {"head_dim": config.head_dim}),
        Architecture.LLAMA: (LlamaConfig, {"head_dim": config.head_dim}),
        Architecture.DEEPSEEK_V3: (DeepseekV3Config, _latent_settings(config)),
    }
    kind, own_settings = kinds[config.architecture]
    return kind(
        vocab_size=1,
        hidden_size=config.width,
        intermediate_size=config.feedforward_width,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_heads,
        max_position_embeddings=max_length,
        initializer_range=config.init_std,
        rms_norm_eps=config.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        use_cache=False,
        **own_settings,
    )


def _latent_settings(config: ModelConfig) -> dict[str, Any]:
    """Half of a head's channels are rotated; values are as wide as keys, so that sessions keep both in one array."""
    return {
        "q_lora_rank": None,
        "kv_lora_rank": config.latent_width,
        "qk_rope_head_dim": config.head_dim // 2,
        "qk_nope_head_dim": config.head_dim // 2,
        "v_head_dim": config.head_dim,
        "first_k_dense_replace": config.num_dense_layers if config.num_experts else config.num_layers,
        "n_routed_experts": max(2, config.num_experts),
        "num_experts_per_tok": config.experts_per_event,
        "moe_intermediate_size": config.expert_width,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "routed_scaling_factor": 1.0,
    }
