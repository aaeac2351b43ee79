"""What fitting found, and its log."""

from dataclasses import dataclass, field
from typing import Protocol

import torch

from recsys.runtime.fusion import Fusion
from recsys.training.new_items import Choice


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundResult:
    """One row of the training log."""

    round: int
    """From 1; a round ends with a look at validation."""
    epochs: float
    """Times the data has been seen so far."""
    loss: float
    """Mean cross-entropy in nats per predicted event; an estimate where negatives are sampled."""
    validation_ndcg: float | None
    """Of the averaged weights, fused (see `Judge`); None where nothing is held out."""
    seconds: float
    tokens_per_second: float
    """Events predicted; padding and context not counted."""


class RoundListener(Protocol):
    """Hears of each round when it ends; what it raises ends the training."""

    def add(self, row: RoundResult) -> None:
        """A round has ended."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """The best round so far, and where the run stands."""

    epochs: float = 0.0
    """How often the data had been seen in this run; absorbing not counted."""
    ndcg: float | None = None
    fusion: Fusion = field(default_factory=Fusion)
    temperature: float = 1.0
    """Scores over it are log-odds; found once, after the last round, with the weights and fusion of the best."""
    weights: list[torch.Tensor] = field(default_factory=list)
    round: int = 0
    """Number of the best round."""
    log: list[RoundResult] = field(default_factory=list)
    """All rounds, also those after the best."""
    last_fusion: Fusion = field(default_factory=Fusion)
    """Found at the last round: where the next search begins."""
    trained_before_ms: int | None = None
    """`weights` have seen events before this moment only; None where the log has no times or users lost their last
    event to validation."""
    new_items: Choice = field(default_factory=Choice)
    memory_bytes: int = 0
    """The peak that was expected before the first step."""
