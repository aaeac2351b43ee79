"""Real plans of TensorRT-RTX; building one needs no GPU."""

from pathlib import Path
from types import SimpleNamespace
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
    return awq.round_weights(model, statistics, format_, awq.Rounding.NEAREST)


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
    logger, _ = tensorrt.heard(trt)
    builder = trt.Builder(logger)
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


def test_a_profile_beyond_the_workspace_is_refused_with_the_arithmetic(small: SequenceModel, tmp_path: Path) -> None:
    # an event takes 2 x (width 32 + 5 x 32 of its heads + 3 x 32 of its feed-forward block) bytes
    config = TensorRtConfig(max_batch=10_000, workspace_mib=16)
    problem = (
        r"10,000 windows x 8 events x 576 bytes = 44 MiB, at most 3,640 windows fit: lower max_batch or raise work"
    )
    with pytest.raises(ConfigError, match=rf"built no plan of the open graph .*OutOfMemory.*; {problem}"):
        tensorrt.build_plans(small, 8, config, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_workspace_that_no_batch_fits_is_refused_in_tensorrts_words(small: SequenceModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"max_batch = 1, workspace_mib = 1: .*no tactics to implement") as found:
        tensorrt.build_plans(small, 8, TensorRtConfig(max_batch=1, workspace_mib=1), tmp_path)
    assert "windows fit" not in str(found.value)  # by the arithmetic one would


def test_without_a_batch_about_as_many_windows_as_fit_are_taken(small: SequenceModel, tmp_path: Path) -> None:
    """What an event takes is what TensorRT says: as many as that are built at once, and not twice as many."""
    torch.manual_seed(0)
    long = SequenceModel(small.config, 20, 512).eval()
    said = tensorrt.build_plans(long, 512, TensorRtConfig(max_batch=None, workspace_mib=16), tmp_path)
    assert said["max_batch"] == tensorrt.fitting(long.config, 512, 16) == 56
    with pytest.raises(ConfigError, match="at most 56 windows fit"):
        tensorrt.build_plans(long, 512, TensorRtConfig(max_batch=112, workspace_mib=16), tmp_path)


def test_a_batch_that_the_arithmetic_promised_and_that_is_not_built_is_halved(
    small: SequenceModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tried = tensorrt._plan, []

    def plan(trt: Any, proto: bytes, profile: dict, config: TensorRtConfig) -> bytes:
        tried.append(config.max_batch)
        if config.max_batch > 20:
            raise tensorrt._NoPlanError("too large")
        return real(trt, proto, profile, config)

    monkeypatch.setattr(tensorrt, "_plan", plan)
    assert tensorrt.build_plans(small, 8, TensorRtConfig(max_batch=None), tmp_path)["max_batch"] == 16
    assert tried == [64, 32, 16, 16]


class Full:
    """As much of TensorRT's own bindings as a build asks for beside those of TensorRT-RTX; its builder notes them."""

    __version__ = "11.2.0"

    class HardwareCompatibilityLevel:
        AMPERE_PLUS = "ampere plus"

    class BuilderFlag:
        VERSION_COMPATIBLE = "version compatible"

    class Settings:
        def __init__(self) -> None:
            self.builder_optimization_level = -1
            self.hardware_compatibility_level: Any = None
            self.flags: list[Any] = []
            self.cache = b""

        def set_memory_pool_limit(self, pool: Any, size: int) -> None:
            self.workspace = size

        def set_flag(self, flag: Any) -> None:
            self.flags.append(flag)

        def create_timing_cache(self, known: bytes) -> bytes:
            return known

        def set_timing_cache(self, cache: bytes, *, ignore_mismatch: bool) -> None:
            assert not ignore_mismatch
            self.cache = cache

        def get_timing_cache(self) -> Any:
            return SimpleNamespace(serialize=lambda: self.cache + b"+measured")

        def add_optimization_profile(self, shapes: Any) -> None:
            pass

    def __init__(self) -> None:
        self._rtx = bindings("rtx")
        self.built: list[Full.Settings] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rtx, name)

    def Builder(self, logger: Any) -> Any:
        real = self._rtx.Builder(logger)

        def build(network: Any, settings: Full.Settings) -> bytes:
            self.built.append(settings)
            return b"plan"

        return SimpleNamespace(
            create_network=real.create_network,
            create_builder_config=Full.Settings,
            create_optimization_profile=real.create_optimization_profile,
            build_serialized_network=build,
        )


def test_plans_of_tensorrt_itself_have_its_settings_and_are_named_by_the_machine(
    small: SequenceModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full, here = Full(), Here(gpu_name="NVIDIA H100 80GB HBM3", capability=90, driver="13.0")
    monkeypatch.setattr(tensorrt, "bindings", lambda flavour: full)
    monkeypatch.setattr(tensorrt, "CudaGpu", lambda: SimpleNamespace(here=lambda: here))
    (tmp_path / "plans").mkdir()
    config = TensorRtConfig(flavour="full", timing_cache=tmp_path / "cache", optimization_level=5, workspace_mib=7)
    said = tensorrt.build_plans(small, 8, config, tmp_path / "plans")
    assert said["open"]["file"].startswith("open-nvidia_h100_80gb_hbm3-driver13.0-full11.2.0-bf16-")
    assert (tmp_path / "plans" / said["open"]["file"]).read_bytes() == b"plan"
    assert (
        tmp_path / "cache"
    ).read_bytes() == b"+measured+measured"  # of the second graph, which began with the first's
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert {(one.builder_optimization_level, one.workspace) for one in full.built} == {(5, 7 * 2**20)}
    assert all(not one.flags and one.hardware_compatibility_level is None for one in full.built)

    wide = config.model_copy(update={"hardware_compatible": True, "version_compatible": True, "timing_cache": None})
    name = PlanName.parse(tensorrt.build_plans(small, 8, wide, tmp_path / "plans")["append"]["file"])
    assert (name.gpu, name.version, name.is_version_compatible) == ("sm80plus", "11.2.0plus", True)
    assert full.built[-1].flags == ["version compatible"]
    assert full.built[-1].hardware_compatibility_level == "ampere plus"
    for version in ("11.2.0", "11.10", "11.3.0b1"):
        name.check(here, version, name.digest)
    for version in ("11.1.9", "12.0"):
        with pytest.raises(ConfigError, match=rf"built for TensorRT 11.2.0plus, here {version}; run"):
            name.check(here, version, name.digest)


@pytest.mark.parametrize(
    ("format_", "message"),
    [(WeightFormat(bits=4), "takes weights of 8 bits or floats"), (WeightFormat(group_size=16), "one scale a channel")],
)
def test_formats_that_a_plan_would_turn_into_floats_are_refused(
    small: SequenceModel, format_: WeightFormat, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        tensorrt.onnx_graph(rounded(small, format_), 8, TensorRtConfig(), "open")
