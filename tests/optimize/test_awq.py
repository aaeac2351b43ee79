"""Rounding: the float model stays the same, and errors are what the formulas say."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from optimize import awq, calibration, rounding
from optimize.calibration import InputStatistics
from optimize.rounding import WeightFormat
from recsys.model.config import ModelConfig
from recsys.model.decoder import SequenceModel
from recsys.model.reference import encode
from tests.architectures import ARCHITECTURES

EIGHT, FOUR = WeightFormat(bits=8), WeightFormat(bits=4, group_size=16)


def heavy_tailed_model(architecture: str = "qwen3") -> SequenceModel:
    """Some channels of the norms are far larger than the others, as in trained models."""
    torch.manual_seed(0)
    config = ModelConfig(
        architecture=architecture, width=64, num_layers=2, num_heads=2, head_dim=32, feedforward_width=96, init_std=0.1
    )
    model = SequenceModel(config, 200, 64).eval()
    for layer in model.decoder.layers:
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            if getattr(norm, "weight", None) is not None:
                norm.weight.data = torch.exp(torch.randn(64))
    for name, parameter in model.decoder.named_parameters():
        if name.endswith(".bias"):
            parameter.data = 0.1 * torch.randn(parameter.shape)
    return model


def windows(seed: int, num: int = 60) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.integers(1, 201, n).astype(np.int32) for n in generator.integers(5, 64, num)]


def random_layer(num_events: int = 400) -> tuple[torch.Tensor, torch.Tensor, InputStatistics]:
    """A weight, heavy-tailed inputs that hang together, and their statistics."""
    generator = torch.Generator().manual_seed(0)
    mixed_NI = torch.randn(num_events, 16, generator=generator) @ torch.randn(16, 64, generator=generator)
    mixed_NI += torch.randn(num_events, 64, generator=generator)
    inputs_NI = mixed_NI * torch.exp(torch.randn(64, generator=generator))
    weight_OI = torch.randn(48, 64, generator=generator) * 0.1
    gram_II = inputs_NI.double().T @ inputs_NI.double()
    size_NI = inputs_NI.abs().double()
    return weight_OI, inputs_NI, InputStatistics(gram_II, size_NI.mean(dim=0), size_NI.amax(dim=0), num_events)


def test_nearest_codes_by_hand() -> None:
    # the largest code, 7, stands for 1.4, so a step is 0.2
    rounded = rounding.nearest(torch.tensor([[1.4, -0.31, 0.09]]), WeightFormat(bits=4))
    assert rounded.codes_OI.tolist() == [[7, -2, 0]]
    assert rounded.dense()[0].tolist() == pytest.approx([1.4, -0.4, 0.0])


def test_groups_have_scales_of_their_own() -> None:
    weight = torch.tensor([[7.0, 1.0, 0.07, 0.01]])
    assert rounding.nearest(weight, WeightFormat(bits=4)).codes_OI.tolist() == [[7, 1, 0, 0]]
    assert rounding.nearest(weight, WeightFormat(bits=4, group_size=2)).codes_OI.tolist() == [[7, 1, 7, 1]]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("format_", [EIGHT, FOUR], ids=["8", "4"])
def test_folding_scales_leaves_the_float_model_the_same(architecture: str, format_: WeightFormat) -> None:
    model = heavy_tailed_model(architecture)
    before = copy.deepcopy(model.state_dict())
    folded, _ = awq.fold(model, calibration.collect(model, windows(0)), format_)
    reference = encode(model, windows(1))
    np.testing.assert_allclose(encode(folded, windows(1)), reference, atol=1e-5 * np.abs(reference).max())
    assert any(not torch.equal(value, before[name]) for name, value in folded.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("width", "std"), [(256, 1.0), (512, 0.3)])
def test_large_weights_are_folded_too(width: int, std: float) -> None:
    torch.manual_seed(0)
    model = SequenceModel(ModelConfig(width=width, init_std=std), 20, 16)
    with torch.inference_mode():
        assert len(list(awq._sites(model))) == 8


def test_statistics_leave_padding_out() -> None:
    model = heavy_tailed_model()
    together = calibration.collect(model, windows(0, 6))
    apart = [calibration.collect(model, [window]) for window in windows(0, 6)]
    for name, entry in together.items():
        assert entry.num_events == sum(len(window) for window in windows(0, 6))
        peak_abs_I = torch.stack([part[name].peak_abs_I for part in apart]).amax(dim=0)
        torch.testing.assert_close(entry.peak_abs_I, peak_abs_I, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(entry.gram_II, sum(part[name].gram_II for part in apart), rtol=1e-4, atol=1e-4)


def test_statistics_are_read_back_to_the_last_bit(tmp_path: Path) -> None:
    model = heavy_tailed_model()
    statistics = calibration.collect(model, windows(0, 6))
    calibration.save(statistics, tmp_path)
    read = calibration.load(tmp_path)
    assert read.keys() == statistics.keys() == {name for name, _ in awq.linears(model)}
    for name, entry in read.items():
        assert entry.num_events == statistics[name].num_events
        for field in ("gram_II", "mean_abs_I", "peak_abs_I"):
            tensor = getattr(entry, field)
            assert tensor.dtype == torch.float64
            assert torch.equal(tensor, getattr(statistics[name], field))


def test_output_error_is_the_mean_square_over_the_events() -> None:
    weight_OI, inputs_NI, statistics = random_layer()
    difference_OI = rounding.nearest(weight_OI, FOUR).dense() - weight_OI
    expected = ((inputs_NI @ difference_OI.T) ** 2).mean(dim=0)
    found = rounding.output_error(difference_OI.double(), statistics.mean_gram_II)
    torch.testing.assert_close(found.float(), expected, rtol=1e-3, atol=1e-9)


def test_each_search_lowers_the_error_it_searches() -> None:
    weight_OI, _, statistics = random_layer()
    gram_II = statistics.mean_gram_II
    clip_OG = awq.search_clip(weight_OI, gram_II, WeightFormat(bits=4))

    def error(rounded: rounding.RoundedWeight) -> float:
        return float(rounding.output_error((rounded.dense() - weight_OI).double(), gram_II).sum())

    plain = error(rounding.nearest(weight_OI, WeightFormat(bits=4)))
    assert error(rounding.nearest(weight_OI, WeightFormat(bits=4), clip_OG)) < plain
    order = rounding.Order.of(gram_II)
    assert error(rounding.compensated(weight_OI, WeightFormat(bits=4), order)) < 0.8 * plain
    for format_ in (WeightFormat(bits=4), FOUR, EIGHT):
        best = error(awq.best_compensated(weight_OI, gram_II, format_))
        assert best < error(rounding.compensated(weight_OI, format_, order))
    assert scaled_error(weight_OI, statistics, WeightFormat(bits=4)) < 0.8 * plain


@pytest.mark.parametrize("format_", [WeightFormat(bits=4), FOUR], ids=["channel", "groups"])
def test_clips_are_the_best_for_the_whole_output_whatever_is_searched_at_a_time(
    format_: WeightFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight_OI, _, statistics = random_layer()
    gram_II = statistics.mean_gram_II

    def error_O(clip_OG: torch.Tensor | float) -> torch.Tensor:
        rounded = rounding.nearest(weight_OI, format_, clip_OG)
        return rounding.output_error((rounded.dense() - weight_OI).double(), gram_II)

    clip_OG = awq.search_clip(weight_OI, gram_II, format_)
    best_O = error_O(clip_OG)
    for group in range(clip_OG.shape[1]):
        for clip in awq._CLIPS:
            other_OG = clip_OG.clone()
            other_OG[:, group] = clip
            assert (
                error_O(other_OG) >= best_O * (1 - 1e-4)
            ).float().mean() > 0.98  # some turn more often than they may
    compensated = awq.best_compensated(weight_OI, gram_II, format_)
    monkeypatch.setattr(awq, "_MOST_TRIED", 1)
    assert torch.equal(awq.search_clip(weight_OI, gram_II, format_), clip_OG)
    again = awq.best_compensated(weight_OI, gram_II, format_)
    assert torch.equal(again.codes_OI, compensated.codes_OI)
    assert torch.equal(again.scales_OG, compensated.scales_OG)


def scaled_error(weight_OI: torch.Tensor, statistics: InputStatistics, format_: WeightFormat) -> float:
    scale_I = awq.search_scale([weight_OI], statistics, format_)
    dense_OI = rounding.nearest(weight_OI * scale_I, format_).dense() / scale_I
    return float(rounding.output_error((dense_OI - weight_OI).double(), statistics.mean_gram_II).sum())


@pytest.mark.parametrize(("format_", "alone_share", "share"), [(EIGHT, 0.95, 0.75), (FOUR, 0.7, 0.5)], ids=["8", "4"])
def test_awq_is_nearer_to_the_reference_than_plain_rounding(
    format_: WeightFormat, alone_share: float, share: float
) -> None:
    model = heavy_tailed_model()
    statistics = calibration.collect(model, windows(0))
    folded, scaled = awq.fold(model, statistics, format_)
    reference = encode(model, windows(1))

    def error(rounded: SequenceModel) -> float:
        return float(np.linalg.norm(encode(rounded, windows(1)) - reference))

    plain = error(awq.round_weights(model, statistics, format_, awq.Rounding.NEAREST))
    alone = error(awq.round_weights(folded, scaled, format_, awq.Rounding.CLIPPED))
    both = error(awq.round_weights(folded, scaled, format_, awq.Rounding.COMPENSATED))
    assert alone < alone_share * plain
    assert both < share * plain


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bits", [8, 4])
def test_our_scales_are_as_good_as_those_of_nvidia_modelopt(bits: int) -> None:
    from modelopt.torch import quantization  # slow to import

    weight_OI, inputs_NI, statistics = random_layer()
    linear = nn.Sequential(nn.Linear(64, 48, bias=False))
    linear[0].weight.data = weight_OI.clone()
    config = {
        "quant_cfg": [
            {"quantizer_name": "*", "enable": False},
            {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": bits, "axis": 0}, "enable": True},
        ],
        "algorithm": {"method": "awq_lite", "alpha_step": 0.05},
    }
    quantization.quantize(linear, config, forward_loop=lambda model: model(inputs_NI))
    with torch.inference_mode():
        theirs = float(((linear(inputs_NI) - inputs_NI @ weight_OI.T) ** 2).mean(dim=0).sum())
    plain_OI = rounding.nearest(weight_OI, WeightFormat(bits=bits)).dense() - weight_OI
    plain = float(rounding.output_error(plain_OI.double(), statistics.mean_gram_II).sum())
    assert theirs < plain
    assert scaled_error(weight_OI, statistics, WeightFormat(bits=bits)) <= 1.02 * theirs
