"""Decoders that `transformers` builds from a config, and what a recipe's settings are called by each of them."""

import difflib
from typing import TYPE_CHECKING, Any

from recsys.contracts.errors import ConfigError
from recsys.model.config import ModelConfig

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_USUAL = ("qwen3", "llama", "mistral")
_INNER_WIDTHS = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")
NORM_EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
_INIT_STDS = ("initializer_range", "init_std")
"""What a setting is called, by architecture."""
_NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads")
_NO_TOKENS = {"vocab_size": 1, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
"""Item vectors are ours."""
FAILURES = (AttributeError, ImportError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What a decoder that was not made for this raises."""


def first_line(error: Exception) -> str:
    """What an error says, without what follows its first line."""
    if isinstance(error, KeyError):
        return f"there is no {error}"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def build(config: ModelConfig, max_length: int) -> "PreTrainedModel":
    """The bare decoder; its own token embedding is not used and is removed.

    Raises:
        ConfigError: `transformers` knows no such decoder, or cannot build it with these settings.
    """
    from transformers import AutoModel

    settings = _settings(config, max_length)
    try:
        decoder = AutoModel.from_config(settings)
        decoder.set_input_embeddings(None)
    except FAILURES as error:
        raise ConfigError(cannot(config, f"cannot be built with these settings: {first_line(error)}")) from error
    return decoder


def cannot(config: ModelConfig, reason: str) -> str:
    """The line about a decoder that is of no use here."""
    advice = "" if config.architecture in _USUAL else f"; choose a causal decoder such as {', '.join(_USUAL)}"
    return f"architecture = {config.architecture!r} {reason}{advice}"


def _settings(config: ModelConfig, max_length: int) -> "PretrainedConfig":
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
    try:
        known = AutoConfig.for_model(config.architecture)
        values = _values(config, known, max_length)
        return AutoConfig.for_model(config.architecture, **values)
    except (StrictDataclassError, *FAILURES) as error:
        raise ConfigError(cannot(config, f"cannot be built with these settings: {first_line(error)}")) from error


def _values(config: ModelConfig, known: "PretrainedConfig", max_length: int) -> dict[str, Any]:
    """The recipe's settings by the architecture's names, those of `[model.transformers]` among them.

    Raises:
        ConfigError: the architecture has no place for one.
    """
    head_width = config.num_heads * config.head_dim
    if not config.is_latent and not _is_set_by(known, "head_dim") and head_width != config.width:
        raise ConfigError(
            f"architecture = {config.architecture!r} divides the width among its heads: "
            f"num_heads x head_dim is {head_width}, width {config.width}; make them equal"
        )
    ours = _ours(config, known, max_length)
    lacking = [name for name in _NEEDED if name not in ours]
    lacking += [names[0] for names in (_INNER_WIDTHS, _INIT_STDS) if not any(name in ours for name in names)]
    if lacking:
        raise ConfigError(cannot(config, f"has no {lacking[0]}"))
    aliases = getattr(known, "attribute_map", {})
    taken = {*ours, *_NO_TOKENS, *(aliases.get(name, name) for name in (*ours, *_NO_TOKENS))}
    for name in config.transformers:
        if name in taken:
            raise ConfigError(f"[model.transformers] {name}: is set by [model] or not used; leave it out")
        if not _is_set_by(known, name):
            raise ConfigError(f"[model.transformers] {name}: {config.architecture!r} has no setting of that name")
    return {**_no_dropout(known), **ours, **config.transformers, **_NO_TOKENS}


def _no_dropout(known: "PretrainedConfig") -> dict[str, float]:
    """Dropout of the decoder's own, off where the recipe does not ask for it: ours is drawn alike by all processes."""
    return {name: 0.0 for name, value in known.to_dict().items() if "drop" in name and type(value) is float}


def _ours(config: ModelConfig, known: "PretrainedConfig", max_length: int) -> dict[str, Any]:
    """What the recipe sets, by the architecture's names; without what it does not have."""
    ours = {
        "hidden_size": config.width,
        **_by_their_name(known, _INNER_WIDTHS, config.feedforward_width),
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_heads,
        **({} if config.is_latent else {"head_dim": config.head_dim}),
        "max_position_embeddings": max_length,
        **_by_their_name(known, _INIT_STDS, config.init_std),
        **_by_their_name(known, NORM_EPSILONS, config.norm_eps),
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "use_cache": False,
        **(_latent_settings(config) if config.is_latent else {}),
    }
    return {name: value for name, value in ours.items() if _is_set_by(known, name)}


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
