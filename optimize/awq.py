"""AWQ: activation-aware weight quantization, 8 or 4 bits.

An input that is large in real windows makes the rounding errors of its weights count. Its weights are multiplied
by a scale before rounding and the input is divided by it: the division is folded into the norm or the projection
that makes the input, so the float model stays the same. The exponent of the scales and how far to clip are
searched for the least output error on calibration windows, the exponent per input that matrices share, clipping per
channel and group.
Source: Lin et al., AWQ, MLSys 2024.
"""

# O output channels, I inputs, G groups, K inputs of a group, C shares tried, N = C x O

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, assert_never

import torch
from torch import Tensor, nn

from optimize import rounding
from optimize.calibration import Calibration, InputStatistics
from optimize.rounding import RoundedLinear, RoundedWeight, WeightFormat
from recsys.model.decoder import SequenceModel

_EXPONENTS = torch.linspace(0, 1, 21).tolist()
_CLIPS = torch.linspace(1.1, 0.4, 71).tolist()
"""Shares of a channel's largest weight that the largest code stands for. Close together: at 8 bits a hundredth moves
the largest weights by more than a code, so that other weights are near one."""
_COMPENSATED_CLIPS = torch.linspace(1.05, 0.7, 15).tolist()
"""Tried where errors are made up for, which takes longer; one share for all groups of a channel."""
_SWEEPS = 4
"""Over the groups of a matrix; after them hardly a share changes any more."""
_MOST_TRIED = 2**22
"""Weights at a time, all shares together: channels are searched apart, so that memory stays flat."""

_FOLDED = 1e-4
"""Largest share of an output that folding may change: rounding of float32 is far below, another function far above."""


class Rounding(Enum):
    """How the weights of a matrix become codes."""

    NEAREST = "nearest"
    """Each to the nearest code, scaled by its channel's or group's largest weight."""
    CLIPPED = "clipped"
    """The same with channels and groups clipped where the output is nearest to what it was."""
    COMPENSATED = "compensated"
    """One input after another, each error made up for by the inputs to come (GPTQ), channels clipped for that."""


@dataclass(frozen=True, slots=True)
class _Site:
    """Matrices that read the same input, and what makes that input."""

    source: nn.Module
    """A norm, or a projection whose output channels are the input."""
    readers: dict[str, nn.Linear]


@torch.no_grad()
def fold(model: SequenceModel, calibration: Calibration, format_: WeightFormat) -> tuple[SequenceModel, Calibration]:
    """The same function with weights that round better, and the statistics of its inputs.

    The model given is not changed.
    """
    folded = copy.deepcopy(model)
    scaled = dict(calibration)
    for site in _sites(folded):
        statistics = calibration[next(iter(site.readers))]
        scale_I = search_scale([reader.weight for reader in site.readers.values()], statistics, format_)
        _divide_outputs(site.source, scale_I)
        for name, reader in site.readers.items():
            reader.weight *= scale_I
            inverse_I = 1 / scale_I.double()
            scaled[name] = InputStatistics(
                calibration[name].gram_II * inverse_I * inverse_I[:, None],
                calibration[name].mean_abs_I * inverse_I,
                calibration[name].peak_abs_I * inverse_I,
                calibration[name].num_events,
            )
    return folded, scaled


def search_scale(weights: Sequence[Tensor], statistics: InputStatistics, format_: WeightFormat) -> Tensor:
    """Scale of each input with the least output error of the rounded weights; all 1 where none helps.

    Candidates are |x|^a and |x|^a / |w|^(1 - a), a from 0 to 1, centred on 1.
    """
    mean_abs_I = statistics.mean_abs_I.clamp_min(1e-8)
    peak_I = torch.stack([weight.abs().amax(dim=0) for weight in weights]).amax(dim=0).double().clamp_min(1e-8)
    gram_II = statistics.mean_gram_II
    best, best_error = torch.ones_like(peak_I), float("inf")
    for exponent in _EXPONENTS:
        powers = (mean_abs_I**exponent, mean_abs_I**exponent / peak_I ** (1 - exponent))
        for scale_I in (_centred(power) for power in powers):
            error = sum(_rounding_error(weight, scale_I, gram_II, format_) for weight in weights)
            if error < best_error:
                best, best_error = scale_I, error
    return best.float()


def search_clip(weight_OI: Tensor, gram_II: Tensor, format_: WeightFormat) -> Tensor:
    """Per channel and group, the share of the largest weight to clip at, shape [O, G].

    Groups start with the share that is best for each alone. Then they choose again in turns, as what one rounds wrong
    another may make up for: the error is that of the whole output, and no choice makes it larger.
    """
    parts = [_clip(part_OI, gram_II, format_) for part_OI in _channels(weight_OI, len(_CLIPS))]
    return torch.tensor(_CLIPS)[torch.cat(parts)]


def _clip(weight_OI: Tensor, gram_II: Tensor, format_: WeightFormat) -> Tensor:
    """Places among the shares, shape [O, G]."""
    num_inputs = weight_OI.shape[1]
    size = format_.group_size or num_inputs
    groups = [slice(start, start + size) for start in range(0, num_inputs, size)]
    tried_COI = torch.stack([_difference(rounding.nearest(weight_OI, format_, clip), weight_OI) for clip in _CLIPS])
    own_COG = torch.stack([rounding.output_error(tried_COI[..., at], gram_II[at, at]) for at in groups], dim=-1)
    chosen_OG = own_COG.argmin(dim=0)
    rows = torch.arange(len(weight_OI))
    difference_OI = torch.cat([tried_COI[chosen_OG[:, g], rows, at] for g, at in enumerate(groups)], dim=1)
    for _ in range(_SWEEPS if len(groups) > 1 else 0):
        for g, at in enumerate(groups):
            difference_OI[:, at] = 0
            pull_OK = 2 * (difference_OI @ gram_II[:, at])
            whole_CO = own_COG[..., g] + (tried_COI[..., at] * pull_OK).sum(dim=-1)
            chosen_OG[:, g] = whole_CO.argmin(dim=0)
            difference_OI[:, at] = tried_COI[chosen_OG[:, g], rows, at]
    return chosen_OG


def best_compensated(weight_OI: Tensor, gram_II: Tensor, format_: WeightFormat) -> RoundedWeight:
    """Rounded by `rounding.compensated`, each channel clipped at the share that leaves the least output error then."""
    order = rounding.Order.of(gram_II)
    codes, scales = [], []
    for part_OI in _channels(weight_OI, len(_COMPENSATED_CLIPS)):
        tried_NI = part_OI.repeat(len(_COMPENSATED_CLIPS), 1)
        clip_N1 = torch.tensor(_COMPENSATED_CLIPS).repeat_interleave(len(part_OI))[:, None]
        found = rounding.compensated(tried_NI, format_, order, clip_N1)
        error_CO = rounding.output_error(_difference(found, tried_NI), gram_II).view(-1, len(part_OI))
        best_O = error_CO.argmin(dim=0) * len(part_OI) + torch.arange(len(part_OI))
        codes.append(found.codes_OI[best_O])
        scales.append(found.scales_OG[best_O])
    return RoundedWeight(torch.cat(codes), torch.cat(scales), format_)


@torch.no_grad()
def round_weights(
    model: SequenceModel, calibration: Calibration, format_: WeightFormat, way: Rounding
) -> SequenceModel:
    """A copy of the model whose decoder matrices are rounded, once."""
    rounded = copy.deepcopy(model)
    for name, linear in list(linears(rounded)):
        weight = _rounded(linear.weight, calibration[name].mean_gram_II, format_, way)
        parent, _, leaf = name.rpartition(".")
        setattr(
            rounded.decoder.get_submodule(parent),
            leaf,
            RoundedLinear(weight, float(calibration[name].peak_abs_I.max()), linear.bias),
        )
    return rounded


def _rounded(weight_OI: Tensor, gram_II: Tensor, format_: WeightFormat, way: Rounding) -> RoundedWeight:
    match way:
        case Rounding.NEAREST:
            return rounding.nearest(weight_OI, format_)
        case Rounding.CLIPPED:
            return rounding.nearest(weight_OI, format_, search_clip(weight_OI, gram_II, format_))
        case Rounding.COMPENSATED:
            return best_compensated(weight_OI, gram_II, format_)
        case _:
            assert_never(way)


def _rounding_error(weight_OI: Tensor, scale_I: Tensor, gram_II: Tensor, format_: WeightFormat) -> float:
    scaled_OI = weight_OI * scale_I.float()
    difference_OI = _difference(rounding.nearest(scaled_OI, format_), scaled_OI) / scale_I
    return float(rounding.output_error(difference_OI, gram_II).sum())


def _difference(rounded: RoundedWeight, weight_OI: Tensor) -> Tensor:
    return (rounded.dense() - weight_OI).double()


def _channels(weight_OI: Tensor, num_tried: int) -> Sequence[Tensor]:
    """Some output channels at a time."""
    return torch.split(weight_OI, max(1, _MOST_TRIED // (num_tried * weight_OI.shape[1])))


def _centred(scale_I: Tensor) -> Tensor:
    """The largest and the smallest scale equally far from 1, within a factor of 1,000."""
    centred = scale_I / (scale_I.max() * scale_I.min()).sqrt()
    return centred.clamp(1e-3, 1e3)


def _sites(model: SequenceModel) -> Iterator[_Site]:
    """Inputs whose scales can be folded."""
    return (site for site in _candidates(model) if _is_foldable(site.source))


def _is_foldable(source: nn.Module) -> bool:
    """Whether dividing its weight divides its output; not so where a norm has none (OLMo) or adds 1 to it (Gemma)."""
    weight: Any = getattr(source, "weight", None)
    if weight is None:
        return False
    divided = copy.deepcopy(source)
    scale_I = torch.linspace(0.5, 2, len(weight))
    _divide_outputs(divided, scale_I)
    inputs = torch.linspace(-1, 2, weight.shape[-1])[None]
    expected = source(inputs)
    return float((divided(inputs) * scale_I - expected).norm()) <= _FOLDED * float(expected.norm())


def _candidates(model: SequenceModel) -> Iterator[_Site]:
    """Not what is read by mixtures of experts, feed-forward blocks without a gate, and values of latent attention."""
    layers: Any = model.decoder.layers
    for n, layer in enumerate(layers):
        attention, feedforward = layer.self_attn, layer.mlp
        if hasattr(attention, "kv_b_proj"):
            yield _site(layer.input_layernorm, n, "self_attn", attention, "q_proj", "kv_a_proj_with_mqa")
            yield _site(attention.kv_a_layernorm, n, "self_attn", attention, "kv_b_proj")
        else:
            yield _site(layer.input_layernorm, n, "self_attn", attention, "q_proj", "k_proj", "v_proj")
            yield _site(attention.v_proj, n, "self_attn", attention, "o_proj")
        if hasattr(feedforward, "experts"):
            shared = feedforward.shared_experts
            yield _site(shared.up_proj, n, "mlp.shared_experts", shared, "down_proj")
        elif hasattr(feedforward, "gate_proj"):
            yield _site(layer.post_attention_layernorm, n, "mlp", feedforward, "gate_proj", "up_proj")
            yield _site(feedforward.up_proj, n, "mlp", feedforward, "down_proj")


def _site(source: nn.Module, n: int, block: str, parent: nn.Module, *readers: str) -> _Site:
    return _Site(source, {f"layers.{n}.{block}.{name}": parent.get_submodule(name) for name in readers})  # type: ignore[misc]


def linears(model: SequenceModel) -> Iterator[tuple[str, nn.Linear]]:
    """The decoder's matrices that are rounded, by name; experts are not among them."""
    for name, module in model.decoder.named_modules():
        if isinstance(module, nn.Linear):
            yield name, module


def _divide_outputs(source: nn.Module, scale_I: Tensor) -> None:
    """Channels of a norm's or a projection's output divided by the scales."""
    weight: Any = source.weight
    bias: Any = getattr(source, "bias", None)
    weight /= scale_I if weight.ndim == 1 else scale_I[:, None]
    if bias is not None:
        bias /= scale_I
