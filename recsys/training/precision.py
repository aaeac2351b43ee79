"""Number formats of training: the forward pass in 16 bits or not, and what fp16 needs so that gradients survive it."""

import math

import torch

from recsys.training.config import Precision

LEAST_SCALE = 2.0**-10
"""Gradients that overflow fp16 even when the loss is made so small will not come back."""


_DTYPES = {Precision.FP32: torch.float32, Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}


class MixedPrecision:
    """Autocast and loss scaling of `torch.amp`; with fp32 both do nothing, to the last bit.

    Source: Micikevicius et al., Mixed precision training, ICLR 2018.
    """

    def __init__(self, precision: Precision, device: torch.device) -> None:
        self._precision = precision
        self._device = device.type
        self.scaler = torch.amp.GradScaler(self._device, enabled=precision is Precision.FP16)

    def autocast(self) -> torch.autocast:
        """The block in which the forward pass is computed."""
        return torch.autocast(self._device, _DTYPES[self._precision], enabled=self._precision is not Precision.FP32)

    def problem(self, gradient_norm: float) -> str | None:
        """What is wrong with gradients of this norm; None where a step can be taken, or a smaller scale may help."""
        if math.isfinite(gradient_norm):
            return None
        if not self.scaler.is_enabled():
            return f"gradients became {gradient_norm}; lower learning_rate"
        if self.scaler.get_scale() < LEAST_SCALE:
            return 'gradients overflow fp16 at any scale of the loss; use precision = "bf16" or "fp32"'
        return None

    def state(self) -> dict[str, torch.Tensor]:
        """The scaler's state by name; empty without one."""
        if not self.scaler.is_enabled():
            return {}
        state = self.scaler.state_dict()
        return {
            "scaler.scale": torch.tensor(state["scale"], dtype=torch.float64),
            "scaler.growth": torch.tensor(state["_growth_tracker"]),
        }

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Go on from what `state` gave."""
        if self.scaler.is_enabled():
            state = self.scaler.state_dict()
            state |= {"scale": float(tensors["scaler.scale"]), "_growth_tracker": int(tensors["scaler.growth"])}
            self.scaler.load_state_dict(state)
