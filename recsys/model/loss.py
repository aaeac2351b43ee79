"""Cross-entropy over the whole catalogue, in chunks, so that memory does not grow with items x events."""

from typing import Any

import torch
from torch import Tensor

# N positions with a target, D width, V items without padding

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
