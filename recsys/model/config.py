"""The decoder's settings."""

from enum import StrEnum

from pydantic import Field

from recsys.contracts.config import Config


class Architecture(StrEnum):
    """Decoders that `transformers` builds from a config."""

    QWEN3 = "qwen3"
    LLAMA = "llama"


class ModelConfig(Config):
    """A causal decoder over item tokens, item embeddings tied to the output."""

    architecture: Architecture = Architecture.QWEN3
    width: int = Field(default=64, ge=8)
    """D: size of item vectors and hidden states."""
    num_layers: int = Field(default=2, ge=1)
    num_heads: int = Field(default=2, ge=1)
    head_dim: int = Field(default=32, ge=4, multiple_of=2)
    feedforward_width: int = Field(default=128, ge=8)
    """Inner width of the gated feed-forward block."""
    dropout: float = Field(default=0.2, ge=0.0, lt=1.0)
    """Applied to item embeddings on the way in and to hidden states on the way out, in training only."""
    init_std: float = Field(default=0.02, gt=0)
