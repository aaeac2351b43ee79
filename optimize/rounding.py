"""Weights as integer codes: symmetric, one scale per output channel or per group of inputs, rounded once.

The codes stay codes in every engine: `RoundedLinear` is exported with them, so no engine's own quantizer has a
say. Two ways of rounding: to the nearest code, or one input after another, each rounding error made up for by
the inputs not yet rounded.
"""

# O output channels, I inputs, G groups of inputs (1 per channel without groups), N calibration events

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from recsys.contracts.config import Config

_DAMPING = 0.01
"""Share of the mean diagonal that is added to a Gram matrix before it is inverted."""


class WeightFormat(Config):
    """What a weight matrix is rounded to."""

    bits: int = 8
    group_size: int | None = None
    """Inputs that share a scale; None: all inputs of an output channel. A last group may be smaller."""

    @property
    def max_code(self) -> int:
        """127 for 8 bits, 7 for 4: symmetric, the lowest code is not used."""
        return int(2 ** (self.bits - 1) - 1)

    def num_groups(self, num_inputs: int) -> int:
        """G."""
        return -(-num_inputs // (self.group_size or num_inputs))

    def group_of(self, num_inputs: int) -> Tensor:
        """Group of each input, shape [I]."""
        return torch.arange(num_inputs) // (self.group_size or num_inputs)


@dataclass(frozen=True, slots=True)
class RoundedWeight:
    """Codes and scales; the weight is code x the scale of its channel and group."""

    codes_OI: Tensor
    """int8, also where they need 4 bits only."""
    scales_OG: Tensor
    format: WeightFormat

    def dense(self) -> Tensor:
        """The rounded weight in float32, shape [O, I]."""
        return self.codes_OI.float() * self.scales_OG[:, self.format.group_of(self.codes_OI.shape[1])]


class RoundedLinear(nn.Module):
    """y = x (codes · scales)ᵀ, exported as codes, a conversion, a multiplication and a matrix product."""

    def __init__(self, weight: RoundedWeight, input_peak: float, bias_O: Tensor | None = None) -> None:
        """`input_peak` is the largest input of the calibration windows, for engines that round inputs too."""
        super().__init__()
        self.input_peak = input_peak
        num_outputs, num_inputs = weight.codes_OI.shape
        num_groups = weight.scales_OG.shape[1]
        assert num_inputs % num_groups == 0, (num_inputs, num_groups)
        self.weight = weight
        self.shape = (num_outputs, num_inputs)
        self.register_buffer("codes", weight.codes_OI.reshape(num_outputs, num_groups, -1))
        self.register_buffer("scales", weight.scales_OG[:, :, None])
        self.register_buffer("bias", bias_O)

    def forward(self, inputs: Tensor) -> Tensor:
        """The product, shape [..., O]."""
        dense = (self.codes.to(inputs.dtype) * self.scales).reshape(self.shape)  # type: ignore[operator]
        product = linear(inputs, dense)
        return product if self.bias is None else product + self.bias  # type: ignore[operator]


def scales(weight_OI: Tensor, format_: WeightFormat, clip_OG: Tensor | float = 1.0) -> Tensor:
    """Largest magnitude of each channel and group, times `clip_OG`, over the largest code; shape [O, G]."""
    num_inputs = weight_OI.shape[1]
    group_I = format_.group_of(num_inputs).expand_as(weight_OI)
    peak_OG = weight_OI.new_zeros(len(weight_OI), format_.num_groups(num_inputs))
    peak_OG.scatter_reduce_(1, group_I, weight_OI.abs(), "amax")
    return (peak_OG * clip_OG).clamp_min(1e-12) / format_.max_code


def nearest(weight_OI: Tensor, format_: WeightFormat, clip_OG: Tensor | float = 1.0) -> RoundedWeight:
    """Each weight by itself to the nearest code."""
    scales_OG = scales(weight_OI, format_, clip_OG)
    return RoundedWeight(
        _codes(weight_OI, scales_OG[:, format_.group_of(weight_OI.shape[1])], format_).to(torch.int8),
        scales_OG,
        format_,
    )


@dataclass(frozen=True, slots=True)
class Order:
    """In what order inputs are rounded, and what those to come make up for."""

    inputs: Tensor
    """The ones with most energy first, shape [I]."""
    factor_II: Tensor
    """Upper Cholesky factor of the inverse of the damped Gram matrix, in that order."""

    @classmethod
    def of(cls, gram_II: Tensor) -> "Order":
        """Of the mean of x xᵀ over calibration events."""
        energy_I = gram_II.diagonal()
        inputs = torch.argsort(energy_I, descending=True, stable=True)
        damped = gram_II + torch.eye(len(gram_II), dtype=gram_II.dtype) * _DAMPING * energy_I.mean().clamp_min(1e-12)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped[inputs][:, inputs].double()))
        return cls(inputs, torch.linalg.cholesky(inverse, upper=True))


def compensated(weight_OI: Tensor, format_: WeightFormat, order: Order, clip_OG: Tensor | float = 1.0) -> RoundedWeight:
    """Inputs one after another.

    What a rounding changes in the output is made up for, as far as it can be, by the weights of the inputs
    still to come.
    Source: Frantar et al., GPTQ, ICLR 2023 (with order by activation).
    """
    scales_OG = scales(weight_OI, format_, clip_OG)
    scale_OI = scales_OG[:, format_.group_of(weight_OI.shape[1])]
    inputs, factor_II = order.inputs, order.factor_II
    rest_OI, scale_OI = weight_OI[:, inputs].double(), scale_OI[:, inputs].double()
    codes_OI = torch.empty_like(rest_OI)
    for i in range(len(inputs)):
        codes_OI[:, i] = _codes(rest_OI[:, i], scale_OI[:, i], format_)
        error_O = (rest_OI[:, i] - codes_OI[:, i] * scale_OI[:, i]) / factor_II[i, i]
        rest_OI[:, i + 1 :] -= error_O[:, None] * factor_II[i, i + 1 :]
    return RoundedWeight(codes_OI[:, torch.argsort(inputs)].to(torch.int8), scales_OG, format_)


def output_error(difference_OI: Tensor, gram_II: Tensor) -> Tensor:
    """Mean of (Δw · x)² per output channel over the events behind `gram_II`, shape [..., O]."""
    return ((difference_OI.to(gram_II.dtype) @ gram_II) * difference_OI).sum(dim=-1).clamp_min(0)


def _codes(weight: Tensor, scale: Tensor, format_: WeightFormat) -> Tensor:
    return (weight / scale).round().clamp(-format_.max_code, format_.max_code)
