"""Multiply-adds of the decoder, counted from its shapes (2 FLOPs each)."""

from dataclasses import dataclass

from recsys.model.config import ModelConfig
from recsys.windows import WindowConfig, cut


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeCost:
    """What encoding a history once costs."""

    name: str
    window: WindowConfig
    num_encoded: int
    """Events passed through the decoder, overlaps counted each time."""
    attention_flops: int
    total_flops: int


def encode_flops(num_events: int, config: ModelConfig) -> tuple[int, int]:
    """(attention, total) FLOPs of one causal pass over `num_events`; feed-forward blocks as in Llama, with a gate.

    Per layer and event: the matrices, of experts the shared and the chosen ones, and for event i scores and
    weighted sum over i keys: 2 x 2 x heads x head_dim x i.
    """
    inner = config.num_heads * config.head_dim
    attention = config.num_layers * 4 * inner * num_events * (num_events + 1) // 2
    return attention, attention + 2 * num_events * _matrix_elements(config)


def _matrix_elements(config: ModelConfig) -> int:
    """Elements of all matrices that an event is multiplied with."""
    inner, half = config.num_heads * config.head_dim, config.head_dim // 2
    projections = 4 * config.width * inner
    if config.is_latent:
        down, up = config.width * (config.latent_width + half), config.latent_width * config.num_heads * 3 * half
        projections = 2 * config.width * inner + down + up
    dense = 3 * config.width * config.feedforward_width
    experts = config.width * (config.num_experts + 3 * config.expert_width * (1 + config.experts_per_event))
    num_dense = min(config.num_dense_layers, config.num_layers) if config.num_experts else config.num_layers
    return config.num_layers * projections + num_dense * dense + (config.num_layers - num_dense) * experts


def compare_windows(num_events: int, config: ModelConfig) -> list[EncodeCost]:
    """Full attention, the general rule (80 % of the context, 20 % overlap) and the shop's default."""
    settings = {
        "full attention": WindowConfig(size=max(2, num_events), overlap_share=0.0),
        "general rule: 80 %, 20 % shared": WindowConfig.for_context(num_events),
        "default: 1,024, 30 % shared": WindowConfig(),
    }
    costs = []
    for name, window in settings.items():
        lengths = [len(part) for part in cut(num_events, window)]
        parts = [encode_flops(length, config) for length in lengths]
        costs.append(
            EncodeCost(
                name=name,
                window=window,
                num_encoded=sum(lengths),
                attention_flops=sum(attention for attention, _ in parts),
                total_flops=sum(total for _, total in parts),
            )
        )
    return costs
