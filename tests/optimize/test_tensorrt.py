"""Real plans of TensorRT-RTX; building one needs no GPU."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from optimize import awq, calibration, tensorrt
from optimize.rounding import WeightFormat
from optimize.tensorrt import TensorRtConfig
from recsys.contracts.errors import ConfigError
from recsys.model.config import ModelConfig
from recsys.model.decoder import SequenceModel
from recsys.runtime.plans import Here, PlanName, bindings

WINDOW = 64
NUM_WEIGHTS = 2 * (4 * 256 * 256 + 3 * 256 * 4096)
"""Of `model`'s matrices."""


@pytest.fixture(scope="module")
def model() -> SequenceModel:
    torch.manual_seed(0)
    config = ModelConfig(width=256, num_layers=2, num_heads=4, head_dim=64, feedforward_width=4096, init_std=0.1)
    return SequenceModel(config, 20, WINDOW).eval()


@pytest.fixture(scope="module")
def small() -> SequenceModel:
    torch.manual_seed(0)
    config = ModelConfig(width=32, num_layers=1, num_heads=2, head_dim=16, feedforward_width=32, init_std=0.2)
    return SequenceModel(config, 20, 8).eval()


def rounded(model: SequenceModel, format_: WeightFormat) -> SequenceModel:
    statistics = calibration.collect(model, [np.arange(1, 21, dtype=np.int32)])
    return awq.round_weights(model, statistics, format_, clip=False, compensate=False)


@pytest.mark.slow
def test_8_bit_plans_are_built_and_keep_their_codes(model: SequenceModel, tmp_path: Path) -> None:
    sizes = []
    for one in (model, rounded(model, WeightFormat(bits=8))):
        said = tensorrt.build_plans(one, WINDOW, TensorRtConfig(precision="fp16"), tmp_path)
        names = [said[graph]["file"] for graph in ("open", "append")]
        assert [name.partition("-driverany-rtx1.")[0] for name in names] == ["open-sm80", "append-sm80"]
        sizes.append([(tmp_path / name).stat().st_size for name in names])
    # 2 bytes a weight become 1; what is left of each plan are kernels and the graph
    assert min(sizes[0][i] - sizes[1][i] for i in (0, 1)) > 0.9 * NUM_WEIGHTS


def test_a_plan_is_built_without_a_gpu_and_refused_where_it_is_not_for(small: SequenceModel, tmp_path: Path) -> None:
    config = TensorRtConfig(activations="int8")
    said = tensorrt.build_plans(rounded(small, WeightFormat(bits=8)), 8, config, tmp_path)
    name = PlanName.parse(said["append"]["file"])
    assert (tmp_path / str(name)).stat().st_size > 10_000
    assert (name.gpu, name.driver, name.precision) == ("sm80", "any", "bf16w8a8")
    a100 = Here(gpu_name="NVIDIA A100-SXM4-40GB", capability=80, driver="13.0")
    name.check(a100, name.version, said["append"]["graph_digest"])
    h100 = Here(gpu_name="NVIDIA H100 80GB HBM3", capability=90, driver="13.0")
    with pytest.raises(ConfigError, match=r"built for GPU sm80, here sm90 .*; for TensorRT .*, here 10.0; for graph"):
        name.check(h100, "10.0", "0" * 12)


@pytest.mark.slow
@pytest.mark.parametrize("activations", ["float", "int8"])
def test_a_plan_is_built_of_matrices_with_biases(activations: str, tmp_path: Path) -> None:
    config = ModelConfig(architecture="qwen2", width=32, num_layers=1, num_heads=2, head_dim=16, feedforward_width=32)
    decoder = rounded(SequenceModel(config, 20, 8).eval(), WeightFormat(bits=8))
    said = tensorrt.build_plans(decoder, 8, TensorRtConfig(activations=activations), tmp_path)
    assert all((tmp_path / said[graph]["file"]).stat().st_size > 10_000 for graph in ("open", "append"))


@pytest.mark.parametrize(
    ("inputs", "num_quantized"), [pytest.param("float", 0, marks=pytest.mark.slow), ("int8", 2 * 4 + 1)]
)
def test_the_network_holds_8_bit_codes_and_half_precision(
    model: SequenceModel, inputs: str, num_quantized: int
) -> None:
    # inputs of a layer: of q, k, v; of o; of gate and up; of down; and in the last layer q reads the last event alone
    config = TensorRtConfig(precision="bf16", activations=inputs)
    proto = tensorrt.onnx_graph(rounded(model, WeightFormat(bits=8)), WINDOW, config, "open")
    graph = proto.graph
    dequantized = [node for node in graph.node if node.op_type == "DequantizeLinear"]
    weights = [node for node in dequantized if node.input[0].endswith(".codes") and "input" not in node.input[0]]
    assert len(weights) == 2 * 7
    assert len(dequantized) - len(weights) == num_quantized
    assert sum(node.op_type == "QuantizeLinear" for node in graph.node) == num_quantized
    kinds = {entry.name: entry.data_type for entry in graph.initializer}
    assert {kinds[node.input[0]] for node in weights} == {3}  # int8
    assert {kinds[node.input[1]] for node in dequantized} == {16}  # bfloat16
    trt = bindings("rtx")
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = tensorrt.parsed(trt, builder, proto.SerializeToString())
    layers = [network.get_layer(i) for i in range(network.num_layers)]

    def types(kind: Any) -> list[tuple[Any, ...]]:
        return [(layer.get_input(0).dtype, layer.get_output(0).dtype) for layer in layers if layer.type == kind]

    assert types(trt.LayerType.DEQUANTIZE) == [(trt.int8, trt.bfloat16)] * (2 * 7 + num_quantized)
    assert types(trt.LayerType.QUANTIZE) == [(trt.bfloat16, trt.int8)] * num_quantized
    # the decoder's 7 matrices and 2 products of attention a layer, in bfloat16
    assert types(trt.LayerType.MATRIX_MULTIPLY) == [(trt.bfloat16, trt.bfloat16)] * (2 * 9)
    # codes are one byte a weight and kernels come on top; as floats they would be two
    plan = tensorrt._plan(
        trt, proto.SerializeToString(), tensorrt._profile("open", model.config, WINDOW, config), config
    )
    assert NUM_WEIGHTS < len(plan) < 1.6 * NUM_WEIGHTS


def test_a_profile_beyond_the_workspace_is_refused_with_the_arithmetic() -> None:
    # 2 x 33 windows x 2 heads x 2,048² x 2 bytes = 33 x 32 MiB
    model = ModelConfig(num_heads=2)
    tensorrt.fitted(model, 2048, TensorRtConfig(max_batch=32))
    with pytest.raises(ConfigError, match=r"= 1,056 MiB, the workspace has 1,024; at most 32 windows fit"):
        tensorrt.fitted(model, 2048, TensorRtConfig(max_batch=33))


@pytest.mark.parametrize(("workspace_mib", "batch"), [(1024, 32), (32, 1), (10_000, 64)])
def test_without_a_batch_the_largest_that_fits_is_taken(workspace_mib: int, batch: int) -> None:
    config = TensorRtConfig(max_batch=None, workspace_mib=workspace_mib)
    assert tensorrt.fitted(ModelConfig(num_heads=2), 2048, config).max_batch == batch
    with pytest.raises(ConfigError, match=r"max_batch = 1: .* the workspace has 31; at most 0 windows fit"):
        tensorrt.fitted(ModelConfig(num_heads=2), 2048, config.model_copy(update={"workspace_mib": 31}))


def test_no_plan_is_built_whose_profile_does_not_fit(small: SequenceModel, tmp_path: Path) -> None:
    # 2 x 10,000 windows x 2 heads x 8² x 2 bytes
    with pytest.raises(ConfigError, match=r"= 5 MiB, the workspace has 1; at most 2048 windows fit"):
        tensorrt.build_plans(small, 8, TensorRtConfig(max_batch=10_000, workspace_mib=1), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("format_", "message"),
    [(WeightFormat(bits=4), "takes weights of 8 bits or floats"), (WeightFormat(group_size=16), "one scale a channel")],
)
def test_formats_that_a_plan_would_turn_into_floats_are_refused(
    small: SequenceModel, format_: WeightFormat, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        tensorrt.onnx_graph(rounded(small, format_), 8, TensorRtConfig(), "open")
