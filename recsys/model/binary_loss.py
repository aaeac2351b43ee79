"""Binary cross-entropy over sampled items: rivals of the softmax in `recsys benchmark choices`."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

# N positions with a target, D width, V items without padding, S sampled negatives, R = N or 1 samples


@dataclass(frozen=True, slots=True, kw_only=True)
class BinaryLoss:
    """gBCE: −(β ln σ(target) + Σ ln(1 − σ(negative))) / (S + 1), the mean over targets.

    With S uniform negatives of V items and α = S / (V − 1): β = α (t (1 − 1/α) + 1/α). At t = 1 the target's score
    becomes what a softmax over all items would give, at t = 0 (β = 1) it is plain binary cross-entropy, whose scores
    are too sure of themselves. An item of a shared sample that is the target counts nothing.
    Source: Petrov, Macdonald, gSASRec, RecSys 2023 (negatives there are each position's own); SASRec has S = 1, t = 0.
    """

    num_negatives: int
    calibration: float
    """t, in [0, 1]."""
    is_shared: bool
    """One sample for all targets of a batch, which costs one matrix product; else one for each."""

    def beta(self, num_items: int) -> float:
        """Weight of the target's term."""
        rate = min(1.0, self.num_negatives / (num_items - 1))
        return rate * (self.calibration * (1 - 1 / rate) + 1 / rate)

    def __call__(self, hidden_ND: Tensor, items_VD: Tensor, targets_N: Tensor) -> Tensor:
        """Mean loss; `targets_N` counts items from 0."""
        if self.is_shared:
            drawn_RS = torch.randint(len(items_VD), (1, self.num_negatives))
            logits_NS = hidden_ND @ items_VD[drawn_RS[0]].T
        else:
            drawn_RS = torch.randint(len(items_VD) - 1, (len(targets_N), self.num_negatives))
            drawn_RS += drawn_RS >= targets_N[:, None]  # any item but the target
            logits_NS = torch.einsum("nd,nsd->ns", hidden_ND, items_VD[drawn_RS])
        against_NS = softplus(logits_NS).masked_fill(drawn_RS == targets_N[:, None], 0)
        target_N = torch.linalg.vecdot(hidden_ND, items_VD[targets_N])
        total_N = self.beta(len(items_VD)) * softplus(-target_N) + against_NS.sum(dim=1)
        return total_N.mean() / (1 + self.num_negatives)
