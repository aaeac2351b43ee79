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
    """(attention, total) FLOPs of one causal pass over `num_events`.

    Per layer and event: the four attention projections and the three feed-forward matrices, and for
    event i scores and weighted sum over i keys: 2 x 2 x heads x head_dim x i.
    """
    inner = config.num_heads * config.head_dim
    linear = 2 * num_events * config.width * (4 * inner + 3 * config.feedforward_width)
    attention = 4 * inner * num_events * (num_events + 1) // 2
    return config.num_layers * attention, config.num_layers * (linear + attention)


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
