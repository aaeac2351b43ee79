"""Real plans of TensorRT-RTX; building one needs no GPU."""

from pathlib import Path

import numpy as np
import pytest
import torch

from optimize import awq, calibration, tensorrt
from optimize.rounding import WeightFormat
from optimize.tensorrt import TensorRtConfig
from recsys.contracts.errors import ConfigError
from recsys.model.config import ModelConfig
from recsys.model.decoder import SequenceModel

WINDOW = 64


@pytest.fixture(scope="module")
def model() -> SequenceModel:
    torch.manual_seed(0)
    config = ModelConfig(width=256, num_layers=2, num_heads=4, head_dim=64, feedforward_width=1024, init_std=0.1)
    return SequenceModel(config, 20, WINDOW).eval()


def rounded(model: SequenceModel, format_: WeightFormat) -> SequenceModel:
    statistics = calibration.collect(model, [np.arange(1, 21, dtype=np.int32)])
    return awq.round_weights(model, statistics, format_, clip=False, compensate=False)


def test_an_8_bit_plan_is_built_and_keeps_its_codes(model: SequenceModel, tmp_path: Path) -> None:
    config = TensorRtConfig(precision="fp16")
    num_weights = 2 * (4 * 256 * 256 + 3 * 256 * 1024)
    sizes = []
    for one in (model, rounded(model, WeightFormat(bits=8))):
        name = tensorrt.build_plan(one, WINDOW, config, tmp_path)
        assert name.startswith("open-sm80-rtx1.")
        sizes.append((tmp_path / name).stat().st_size)
    # 2 bytes a weight become 1; what is left of each plan are kernels and the graph
    assert sizes[0] - sizes[1] > 0.9 * num_weights


def test_the_network_holds_8_bit_codes_and_half_precision(model: SequenceModel) -> None:
    graph = tensorrt.onnx_graph(rounded(model, WeightFormat(bits=8)), WINDOW, TensorRtConfig(precision="bf16")).graph
    dequantized = [node for node in graph.node if node.op_type == "DequantizeLinear"]
    assert len(dequantized) == 2 * 7
    kinds = {entry.name: entry.data_type for entry in graph.initializer}
    assert {kinds[node.input[0]] for node in dequantized} == {3}  # int8
    assert {kinds[node.input[1]] for node in dequantized} == {16}  # bfloat16


def test_a_profile_beyond_the_workspace_is_refused_with_the_arithmetic() -> None:
    # 2 x 33 windows x 2 heads x 2,048² x 2 bytes = 33 x 32 MiB
    model = ModelConfig(num_heads=2)
    tensorrt.check_workspace(model, 2048, TensorRtConfig(max_batch=32))
    with pytest.raises(ConfigError, match=r"= 1,056 MiB, the workspace has 1,024; at most 32 windows fit"):
        tensorrt.check_workspace(model, 2048, TensorRtConfig(max_batch=33))


@pytest.mark.parametrize(
    ("format_", "message"),
    [(WeightFormat(bits=4), "takes weights of 8 bits or floats"), (WeightFormat(group_size=64), "one scale a channel")],
)
def test_formats_that_a_plan_would_turn_into_floats_are_refused(
    model: SequenceModel, format_: WeightFormat, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        tensorrt.onnx_graph(rounded(model, format_), WINDOW, TensorRtConfig())
