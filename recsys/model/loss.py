"""Cross-entropy over the catalogue: in full, in chunks of constant memory, or against a corrected sample of it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from recsys.contracts.ids import PAD

# N positions with a target, D width, V items without padding, S sampled negatives; of summaries: N windows of W events,
# M vectors each

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(hidden_ND, items_VD, targets_N counted from 0) -> their mean loss."""
CHUNK_ELEMENTS = 2**24
"""Logits held at a time: 64 MiB in float32."""


class _FullSoftmax(torch.autograd.Function):
    """Computes the gradients in the forward pass, chunk by chunk; no logits are kept."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, items_VD: Tensor, targets_N: Tensor) -> Tensor:
        num_targets, num_items = len(targets_N), len(items_VD)
        chunk = max(1, CHUNK_ELEMENTS // num_items)
        grad_hidden_ND = torch.empty_like(hidden_ND)
        grad_items_VD = torch.zeros_like(items_VD)
        loss = hidden_ND.new_zeros(())
        for start in range(0, num_targets, chunk):
            rows = slice(start, start + chunk)
            logits_CV = hidden_ND[rows] @ items_VD.T
            log_total_C1 = torch.logsumexp(logits_CV, dim=1, keepdim=True)
            target_C1 = targets_N[rows, None]
            loss += (log_total_C1 - logits_CV.gather(1, target_C1)).sum()
            grad_CV = logits_CV.sub_(log_total_C1).exp_()
            grad_CV.scatter_add_(1, target_C1, grad_CV.new_full(target_C1.shape, -1.0))
            grad_hidden_ND[rows] = grad_CV @ items_VD
            grad_items_VD.addmm_(grad_CV.T, hidden_ND[rows])
        ctx.save_for_backward(grad_hidden_ND / num_targets, grad_items_VD / num_targets)
        return loss / num_targets

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_hidden_ND, grad_items_VD = ctx.saved_tensors
        return grad_hidden_ND * grad_outputs[0], grad_items_VD * grad_outputs[0], None


def full_softmax_loss(hidden_ND: Tensor, items_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Mean of −log softmax(h · e)[target] over all items; `targets_N` counts items from 0.

    Equal to `torch.nn.functional.cross_entropy(hidden_ND @ items_VD.T, targets_N)`.
    """
    loss: Tensor = _FullSoftmax.apply(hidden_ND, items_VD, targets_N)  # type: ignore[no-untyped-call]
    return loss


class NegativeSampler:
    """Draws items half by their share of events, half uniformly: popular ones are hard, rare ones are learned too."""

    def __init__(self, num_events_V: Tensor, num_negatives: int) -> None:
        share_V = num_events_V.double() / num_events_V.sum().clamp_min(1)
        probability_V = 0.5 * share_V + 0.5 / len(share_V)
        self._cumulative_V = torch.cumsum(probability_V, 0)
        self._log_expected_V = torch.log(num_negatives * probability_V).float()
        self._num_negatives = num_negatives

    def draw(self) -> tuple[Tensor, Tensor]:
        """(items_S counted from 0, with replacement; the logarithm of how often each is expected among S draws).

        On the CPU, so that all processes draw alike.
        """
        items_S = torch.searchsorted(self._cumulative_V, torch.rand(self._num_negatives, dtype=torch.float64))
        items_S.clamp_(max=len(self._cumulative_V) - 1)
        return items_S, self._log_expected_V[items_S]


class _SampledSoftmax(torch.autograd.Function):
    """Computes the gradients in the forward pass, in place: one matrix of logits is held, and none is kept."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, items_VD: Tensor, targets_N: Tensor, drawn_S: Tensor, log_expected_S: Tensor
    ) -> Tensor:
        num_targets = len(targets_N)
        sample_SD, target_ND = items_VD[drawn_S], items_VD[targets_N]
        logits_NS = torch.addmm(-log_expected_S, hidden_ND, sample_SD.T)
        logits_NS.masked_fill_(targets_N[:, None] == drawn_S, -torch.inf)
        target_N1 = torch.linalg.vecdot(hidden_ND, target_ND)[:, None]
        highest_N1 = torch.maximum(logits_NS.amax(dim=1, keepdim=True), target_N1)
        others_NS = logits_NS.sub_(highest_N1).exp_()
        target_share_N1 = (target_N1 - highest_N1).exp_()
        total_N1 = others_NS.sum(dim=1, keepdim=True) + target_share_N1
        loss: Tensor = (torch.log(total_N1) + highest_N1 - target_N1).mean()
        grad_NS = others_NS.mul_(1 / (total_N1 * num_targets))
        grad_target_N1 = (target_share_N1 / total_N1 - 1) / num_targets
        grad_hidden_ND = torch.addmm(target_ND.mul_(grad_target_N1), grad_NS, sample_SD)
        grad_items_VD = torch.zeros_like(items_VD)
        grad_items_VD.index_add_(0, drawn_S, grad_NS.T @ hidden_ND)
        grad_items_VD.index_add_(0, targets_N, hidden_ND * grad_target_N1)
        ctx.save_for_backward(grad_hidden_ND, grad_items_VD)
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_hidden_ND, grad_items_VD = ctx.saved_tensors
        return grad_hidden_ND * grad_outputs[0], grad_items_VD * grad_outputs[0], None, None, None


def sampled_softmax_loss(hidden_ND: Tensor, items_VD: Tensor, targets_N: Tensor, sampler: NegativeSampler) -> Tensor:
    """Mean of −log softmax(h · e)[target], the sum over the other items estimated from one sample for all positions.

    The estimate is unbiased: each drawn item counts 1 / (its expected number of draws); the target itself is
    exact, and left out where it is drawn.
    Source: Bengio, Senécal, IEEE TNN 19(4), 2008 (importance sampling); Yi et al., RecSys 2019 (logQ correction).
    """
    drawn = (tensor.to(hidden_ND.device) for tensor in sampler.draw())
    loss: Tensor = _SampledSoftmax.apply(hidden_ND, items_VD, targets_N, *drawn)  # type: ignore[no-untyped-call]
    return loss


def summary_loss(summaries_NMD: Tensor, tokens_NW: Tensor, items_VD: Tensor, num_events_V: Tensor) -> Tensor:
    """How badly summaries tell what was in their windows: cross-entropy of each full window's items, summed.

    An item's score is the log of its summed exponential scores by the M vectors, so each of them may tell some. A
    window's items share its target by 1 / (their events in the log): what others would not guess counts most.
    Windows with padding count nothing.
    """
    full = (tokens_NW != PAD).all(dim=1)
    summaries_NMD, tokens_NW = summaries_NMD[full].float(), tokens_NW[full]
    chunk = max(1, CHUNK_ELEMENTS // (summaries_NMD.shape[1] * len(items_VD)))
    loss = summaries_NMD.sum() * 0
    for start in range(0, len(tokens_NW), chunk):  # logits are computed again for the gradients, not kept
        rows = slice(start, start + chunk)
        given = _untold, summaries_NMD[rows], tokens_NW[rows], items_VD, num_events_V
        loss = loss + checkpoint(*given, use_reentrant=False, preserve_rng_state=False)
    return loss


def _untold(summaries_NMD: Tensor, tokens_NW: Tensor, items_VD: Tensor, num_events_V: Tensor) -> Tensor:
    log_share_NV = (summaries_NMD @ items_VD.T).logsumexp(dim=1).log_softmax(dim=1)
    target_NV = torch.zeros_like(log_share_NV).scatter(1, tokens_NW - 1, 1.0) / num_events_V.clamp_min(1)
    target_NV = target_NV / target_NV.sum(dim=1, keepdim=True)
    return -(target_NV * log_share_NV).sum()
