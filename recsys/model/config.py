"""The decoder's settings."""

from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from recsys.contracts.config import Config

LATENT_ATTENTION = "deepseek_v3"
"""Keys and values are made of a few numbers an event; with `num_experts` a mixture of experts."""


class ModelConfig(Config):
    """A causal decoder over item tokens, item embeddings tied to the output."""

    architecture: str = "qwen3"
    """Which decoder, by its `model_type` in `transformers`: qwen3, llama, mistral, qwen2, deepseek_v3 …"""
    transformers: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Further settings of that decoder by the names that `transformers` gives them: attention_bias, hidden_act …"""
    width: int = Field(default=64, ge=8)
    """D: size of item vectors and hidden states."""
    num_layers: int = Field(default=2, ge=1)
    """Decoder layers."""
    num_heads: int = Field(default=2, ge=1)
    """Heads of attention; keys and values have as many."""
    head_dim: int = Field(default=32, ge=4, multiple_of=2)
    """Size of a head; num_heads x head_dim need not be the width."""
    feedforward_width: int = Field(default=128, ge=8)
    """Inner width of the gated feed-forward block."""
    dropout: float = Field(default=0.2, ge=0.0, lt=1.0)
    """Applied to item embeddings on the way in and to hidden states on the way out, in training only."""
    init_std: float = Field(default=0.02, gt=0)
    """Standard deviation of the weights before training."""
    pretrained: str | None = None
    """A folder with config.json and safetensors of a decoder of this architecture, width and depth: its weights are
    the start of training. Its token embedding is left out; item vectors are ours."""
    rope_theta: float = Field(default=10_000.0, gt=0)
    """Base of the rotary position embedding."""
    norm_eps: float = Field(default=1e-6, gt=0)
    """Added to the mean square in RMS norms."""
    latent_width: int = Field(default=64, ge=4)
    """DeepSeek-V3: numbers that an event's keys and values are made of, in all heads."""
    num_experts: int = Field(default=0, ge=0)
    """DeepSeek-V3: feed-forward blocks that a layer chooses from, beside one that all events share; 0: none."""
    experts_per_event: int = Field(default=2, ge=1)
    """Experts that an event goes through."""
    expert_width: int = Field(default=64, ge=8)
    """Inner width of each expert and of the shared one."""
    num_dense_layers: int = Field(default=1, ge=0)
    """With experts: first layers that have an ordinary feed-forward block."""

    @field_validator("architecture")
    @classmethod
    def _by_its_name(cls, name: str) -> str:
        """What checkpoints and releases of before called it."""
        return LATENT_ATTENTION if name == "deepseek-v3" else name

    @property
    def is_latent(self) -> bool:
        """Whether attention is DeepSeek-V3's."""
        return self.architecture == LATENT_ATTENTION

    @property
    def shape(self) -> dict[str, Any]:
        """What must be the same for the weights of one model to be another's."""
        return self.model_dump(mode="json", exclude={"pretrained", "dropout", "init_std"})

    @model_validator(mode="after")
    def _fits_the_architecture(self) -> Self:
        if self.num_experts and not self.is_latent:
            raise ValueError(f"num_experts = {self.num_experts} needs architecture {LATENT_ATTENTION!r}")
        if self.num_experts and not max(2, self.experts_per_event) <= self.num_experts:
            raise ValueError(f"{self.num_experts} experts are fewer than 2, or than experts_per_event")
        if self.is_latent and self.head_dim % 4:
            raise ValueError(f"head_dim = {self.head_dim}: latent attention rotates half of it, so 4 must divide it")
        return self
