"""The sequence model: item embeddings, a decoder from `transformers`, the same embeddings as output."""

import difflib
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from recsys.contracts.errors import ConfigError
from recsys.contracts.ids import PAD
from recsys.model.config import ModelConfig
from recsys.model.dropout import Dropout

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# B batch, L window length, D width, V items without padding, N closed windows of W events, M vectors of a summary

_PROBE_LENGTH = 16
_USUAL = ("qwen3", "llama", "mistral")
_INNER_WIDTHS = ("intermediate_size", "n_inner", "ffn_dim")
_NORM_EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
"""What a setting is called, by architecture."""
FAILURES = (AttributeError, ImportError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What a decoder that was not made for this raises."""


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
    before_1LD = torch.randn(1, _PROBE_LENGTH, model.config.width, generator=generator)
    after_1LD = before_1LD.clone()
    after_1LD[:, _PROBE_LENGTH // 2 :] = torch.randn(after_1LD[:, _PROBE_LENGTH // 2 :].shape, generator=generator)
    was_training = model.training
    with torch.inference_mode():
        model.eval()
        try:
            states, others = (model.decode(part)[:, : _PROBE_LENGTH // 2] for part in (before_1LD, after_1LD))
        except FAILURES as error:
            raise ConfigError(_cannot(model.config, f"fails on a window of vectors: {first_line(error)}")) from error
        finally:
            model.train(was_training)
    if not torch.allclose(states, others, rtol=1e-4, atol=1e-5):
        raise ConfigError(_cannot(model.config, "looks at later events, so it cannot learn to predict them"))


def first_line(error: Exception) -> str:
    """What an error says, without what follows its first line."""
    if isinstance(error, KeyError):
        return f"there is no {error}"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _decoder(config: ModelConfig, max_length: int) -> "PreTrainedModel":
    """The bare decoder; its own token embedding is not used and is removed.

    Raises:
        ConfigError: `transformers` knows no such decoder, or cannot build it with these settings.
    """
    from transformers import AutoModel

    settings = _pretrained_config(config, max_length)
    try:
        decoder = AutoModel.from_config(settings)
        decoder.set_input_embeddings(None)
    except FAILURES as error:
        raise ConfigError(_cannot(config, f"cannot be built with these settings: {first_line(error)}")) from error
    return decoder


def _cannot(config: ModelConfig, reason: str) -> str:
    advice = "" if config.architecture in _USUAL else f"; choose a causal decoder such as {', '.join(_USUAL)}"
    return f"architecture = {config.architecture!r} {reason}{advice}"


def _pretrained_config(config: ModelConfig, max_length: int) -> "PretrainedConfig":
    """The settings of `transformers` that build this decoder.

    Raises:
        ConfigError: no such architecture, or one that does not know a setting it is given.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING, AutoConfig

    if config.architecture not in CONFIG_MAPPING:
        near = difflib.get_close_matches(config.architecture, CONFIG_MAPPING, n=3) or _USUAL
        raise ConfigError(
            f"architecture = {config.architecture!r}: transformers knows no such model_type; near it: {', '.join(near)}"
        )
    known = AutoConfig.for_model(config.architecture)
    head_width = config.num_heads * config.head_dim
    if not config.is_latent and not _is_set_by(known, "head_dim") and head_width != config.width:
        raise ConfigError(
            f"architecture = {config.architecture!r} divides the width among its heads: "
            f"num_heads x head_dim is {head_width}, width {config.width}; make them equal"
        )
    unknown = [name for name in config.transformers if not _is_set_by(known, name)]
    if unknown:
        raise ConfigError(f"[model.transformers] {unknown[0]}: {config.architecture!r} has no setting of that name")
    ours = {
        "hidden_size": config.width,
        **_by_their_name(known, _INNER_WIDTHS, config.feedforward_width),
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_heads,
        **({} if config.is_latent else {"head_dim": config.head_dim}),
        "max_position_embeddings": max_length,
        "initializer_range": config.init_std,
        **_by_their_name(known, _NORM_EPSILONS, config.norm_eps),
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "use_cache": False,
        **(_latent_settings(config) if config.is_latent else {}),
    }
    values = {name: value for name, value in ours.items() if _is_set_by(known, name)} | config.transformers
    lacking = [name for name in ("hidden_size", "num_hidden_layers", "num_attention_heads") if name not in values]
    if lacking:
        raise ConfigError(_cannot(config, f"has no {lacking[0]}"))
    no_tokens = {"vocab_size": 1, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    try:
        return AutoConfig.for_model(config.architecture, **values, **no_tokens)
    except (StrictDataclassError, *FAILURES) as error:
        raise ConfigError(_cannot(config, f"cannot be built with these settings: {first_line(error)}")) from error


def _by_their_name(known: "PretrainedConfig", names: tuple[str, ...], value: float) -> dict[str, float]:
    """The value by the name that the architecture's settings have for it."""
    return {name: value for name in names if _is_set_by(known, name)}


def _is_set_by(known: "PretrainedConfig", name: str) -> bool:
    """Whether the architecture has a setting of that name, which it does not work out by itself."""
    return hasattr(known, name) and not isinstance(getattr(type(known), name, None), property)


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
