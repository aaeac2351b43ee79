"""Weights of a decoder from a local folder as the start of training; nothing is downloaded or unpickled."""

import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from recsys.contracts.artifact import sha256_of
from recsys.contracts.errors import ConfigError
from recsys.model.architectures import NORM_EPSILONS
from recsys.model.config import ModelConfig
from recsys.model.decoder import SequenceModel

CONFIG_FILE = "config.json"
_NOT_OURS = ("embed_tokens.weight", "lm_head.weight")
_RENAMED = {
    "hidden_size": "width",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "feedforward_width",
    **dict.fromkeys(NORM_EPSILONS, "norm_eps"),
    "kv_lora_rank": "latent_width",
    "moe_intermediate_size": "expert_width",
    "num_experts_per_tok": "experts_per_event",
    "first_k_dense_replace": "num_dense_layers",
}
"""A setting of `transformers` by what it is called in a recipe."""
_WITHOUT_EFFECT = {
    *("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "max_position_embeddings"),
    *("num_key_value_heads", "initializer_range", "init_std", "use_cache", "dtype", "torch_dtype", "architectures"),
    *("transformers_version", "_name_or_path", "return_dict", "output_attentions", "output_hidden_states"),
    *("rope_parameters", "rope_scaling", "rope_theta", "head_dim", "id2label", "label2id", "problem_type"),
    *("max_window_layers", "pretraining_tp", "chunk_size_feed_forward", "is_encoder_decoder"),
}
"""Settings that weights of a decoder do not depend on, or that are looked at by themselves or by shapes."""


@torch.no_grad()
def load_into(model: SequenceModel, folder: Path) -> str:
    """Put the decoder's weights of a folder into the model; returns a digest of what was read.

    Keys and values that several heads share are repeated for each of them, which computes the same.

    Raises:
        ConfigError: no such folder, another architecture, width or depth, or weights that are not a decoder's.
    """
    theirs = _config(folder)
    _check(model.config, model.decoder.config.to_dict(), theirs, folder)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ConfigError(f"{folder}: no .safetensors file; save the decoder with save_pretrained")
    weights: dict[str, Tensor] = {}
    for file in files:
        try:
            weights |= safetensors.torch.load_file(file)
        except safetensors.SafetensorError as error:
            raise ConfigError(f"{file}: not a safetensors file: {error}") from None
    own = model.decoder.state_dict()
    found = {name.removeprefix("model."): weight for name, weight in weights.items()}
    found = {name: weight for name, weight in found.items() if name not in _NOT_OURS}
    if own.keys() != found.keys():
        name = min(own.keys() ^ found.keys())
        lacks = "is missing" if name in own else "is not part of this architecture"
        raise ConfigError(f"{folder}: weight {name} {lacks}; {model.config.architecture} was expected")
    for name, weight in own.items():
        fitting = _for_all_heads(found[name], weight, name, model.config.head_dim)
        if fitting.shape != weight.shape:
            raise ConfigError(f"{folder}: {name} has shape {list(fitting.shape)}, expected {list(weight.shape)}")
        weight.copy_(fitting)
    return hashlib.sha256("".join(sha256_of(file) for file in files).encode()).hexdigest()


def _config(folder: Path) -> dict[str, Any]:
    try:
        values = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ConfigError(
            f"pretrained = {str(folder)!r}: no {CONFIG_FILE} there; expected a folder with it and safetensors"
        ) from None
    return dict(values)


def _check(config: ModelConfig, ours: dict[str, Any], theirs: dict[str, Any], folder: Path) -> None:
    """The recipe must say what the folder holds: a checkpoint is built from its recipe alone."""
    if theirs.get("model_type") != ours["model_type"]:
        raise ConfigError(
            f"{folder}: model_type is {theirs.get('model_type')!r}, "
            f"the recipe's architecture {config.architecture!r} is {ours['model_type']!r}"
        )
    for name, called in _RENAMED.items():
        expected = ours.get(name)
        found = theirs.get(name)
        if found is not None and found != expected:
            raise ConfigError(f"{folder}: {name} is {found}, the recipe says {expected}; set {called} in [model]")
    rope = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise ConfigError(f"{folder}: a scaled rotary embedding ({rope}) is not built here; choose another decoder")
    theta = rope.get("rope_theta", theirs.get("rope_theta", config.rope_theta))
    if theta != config.rope_theta:
        raise ConfigError(f"{folder}: rope_theta is {theta}, the recipe says {config.rope_theta}; set it in [model]")
    share = "partial_rotary_factor"
    if rope.get(share, theirs.get(share, 1.0)) != (ours.get("rope_parameters") or {}).get(share, ours.get(share, 1.0)):
        raise ConfigError(f"{folder}: {share} is another than is built here; choose another decoder")
    for name in sorted(ours.keys() & theirs.keys() - _WITHOUT_EFFECT - _RENAMED.keys() - {share}):
        if "drop" not in name and theirs[name] != ours[name]:
            here = f"the recipe says {ours[name]!r}; set {name} in [model.transformers]"
            raise ConfigError(f"{folder}: {name} is {theirs[name]!r}, {here}")


def _for_all_heads(found: Tensor, own: Tensor, name: str, head_dim: int) -> Tensor:
    """Rows of shared keys and values, of biases too, repeated until each head has its own; others as they are."""
    if name.split(".")[-2] not in ("k_proj", "v_proj") or own.shape[0] % found.shape[0]:
        return found
    times = own.shape[0] // found.shape[0]
    return found.view(-1, head_dim, *found.shape[1:]).repeat_interleave(times, dim=0).flatten(0, 1)
