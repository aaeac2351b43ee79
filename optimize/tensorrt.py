"""A TensorRT plan of `OpenWindow`, from the same rounded model as the CPU engine. Built without a GPU.

The network is strongly typed: tensors have the type they are exported with (bf16 or fp16), and 8-bit matrices
enter as codes before a DequantizeLinear, so they stay 8 bits in the plan. TensorRT-RTX compiles kernels for the
GPU at hand when a plan is loaded; the plan itself holds weights and graph for a family of GPUs.
"""

import contextlib
import copy
import hashlib
import logging
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from optimize.rounding import RoundedLinear
from recsys.contracts.config import Config
from recsys.contracts.errors import ConfigError
from recsys.contracts.precision import CacheFormat
from recsys.model.config import ModelConfig
from recsys.model.decoder import SequenceModel
from recsys.model.incremental import OpenWindow

_OPSET = 21
_MIB = 2**20
_BYTES = 2
"""Of a bf16 or fp16 number."""


class TensorRtConfig(Config):
    """Settings of a plan."""

    precision: Literal["bf16", "fp16"] = "bf16"
    workspace_mib: int = Field(default=1024, ge=1)
    """Most scratch memory that a layer may take."""
    max_batch: int = Field(default=4, ge=1)
    """Windows of full size that the plan can take at once."""
    capability: Literal["SM75", "SM80", "SM86", "SM89", "SM120"] = "SM80"
    """GPUs the plan is for: SM80 is the A100."""
    optimization_level: int = Field(default=3, ge=0, le=5)


def build_plan(model: SequenceModel, window_size: int, config: TensorRtConfig, folder: Path) -> str:
    """Write a plan into `folder`; returns its name: GPU, TensorRT version, precision and graph digest.

    Raises:
        ConfigError: TensorRT is not installed, the largest batch does not fit the workspace, or weights are
            of 4 bits.
    """
    check_workspace(model.config, window_size, config)
    trt = _tensorrt()
    proto = onnx_graph(model, window_size, config).SerializeToString()
    digest = hashlib.sha256(proto).hexdigest()[:12]
    name = f"open-{config.capability.lower()}-rtx{trt.__version__}-{config.precision}-{digest}.plan"
    (folder / name).write_bytes(_plan(trt, proto, model.config.width, window_size, config))
    return name


def check_workspace(model: ModelConfig, window_size: int, config: TensorRtConfig) -> None:
    """Refuse a profile whose unfused attention, scores and their softmax, is larger than the workspace.

    Raises:
        ConfigError: with the arithmetic and the largest batch that fits.
    """
    one = 2 * model.num_heads * window_size**2 * _BYTES
    limit = config.workspace_mib * _MIB
    if one * config.max_batch > limit:
        raise ConfigError(
            f"max_batch = {config.max_batch}: attention needs 2 x {config.max_batch} windows x {model.num_heads} heads "
            f"x {window_size:,}² events x {_BYTES} bytes = {one * config.max_batch / _MIB:,.0f} MiB, the workspace has "
            f"{config.workspace_mib:,}; at most {limit // one} windows fit"
        )


def onnx_graph(model: SequenceModel, window_size: int, config: TensorRtConfig) -> Any:
    """`OpenWindow` as an ONNX model with free batch and length, all floats in the plan's precision."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[config.precision]
    module = OpenWindow(copy.deepcopy(model).to(dtype), CacheFormat.FLOAT16).eval()
    example = torch.zeros(2, min(8, window_size), model.config.width, dtype=dtype), torch.tensor([3, 1]).int()
    batch = torch.export.Dim("batch", min=1, max=max(2, config.max_batch))
    length = torch.export.Dim("length", min=2, max=window_size)
    with warnings.catch_warnings(), _quiet("torch.onnx"), _quiet("torch.export"), torch.inference_mode():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            example,
            dynamo=True,
            opset_version=_OPSET,
            dynamic_shapes=({0: batch, 1: length}, {0: batch}),
            input_names=["embedded", "last"],
            output_names=["vector", "kept"],
            verbose=False,
        )
    assert program is not None
    return _with_dequantize(program.model_proto, model)


def _with_dequantize(proto: Any, model: SequenceModel) -> Any:
    """Each Cast, Mul and Reshape of integer codes as one DequantizeLinear, which is what TensorRT accepts."""
    from onnx import helper, numpy_helper

    if any(part.weight.format.bits != 8 for part in model.modules() if isinstance(part, RoundedLinear)):
        raise ConfigError("a TensorRT plan takes weights of 8 bits or floats; use --bits 8")
    graph = proto.graph
    constants = {entry.name: entry for entry in graph.initializer}
    readers = {name: node for node in graph.node for name in node.input}
    for cast in [node for node in graph.node if node.op_type == "Cast" and node.input[0].endswith(".codes")]:
        product = readers[cast.output[0]]
        reshape = readers[product.output[0]]
        assert (product.op_type, reshape.op_type) == ("Mul", "Reshape"), (product.op_type, reshape.op_type)
        codes, scales = (constants[name] for name in (cast.input[0], product.input[1]))
        num_outputs, num_groups, size = codes.dims
        if num_groups > 1:
            raise ConfigError("a TensorRT plan takes one scale a channel (groups are folded back to floats)")
        codes.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(codes).reshape(num_outputs, size), codes.name))
        del scales.dims[:]
        scales.dims.append(num_outputs)
        dequantize = helper.make_node(
            "DequantizeLinear", [codes.name, scales.name], [reshape.output[0]], axis=0, name=f"{codes.name}.dequantize"
        )
        graph.node.insert(0, dequantize)
        for node in (cast, product, reshape):
            graph.node.remove(node)
    return proto


def _plan(trt: Any, proto: bytes, width: int, window_size: int, config: TensorRtConfig) -> bytes:
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(proto):
        problems = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise ConfigError(f"TensorRT {trt.__version__} cannot read the graph: {problems}")
    settings = builder.create_builder_config()
    settings.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, config.workspace_mib * _MIB)
    settings.builder_optimization_level = config.optimization_level
    settings.num_compute_capabilities = 1
    settings.set_compute_capability(getattr(trt.ComputeCapability, config.capability), 0)
    profile = builder.create_optimization_profile()
    largest = (config.max_batch, window_size, width)
    profile.set_shape("embedded", (1, 2, width), (1, window_size, width), largest)
    profile.set_shape("last", (1,), (1,), (config.max_batch,))
    settings.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, settings)
    if plan is None:
        raise ConfigError(
            f"TensorRT {trt.__version__} built no plan for {config.max_batch} windows of {window_size:,} events in "
            f"{config.workspace_mib:,} MiB; its own message stands above"
        )
    return bytes(plan)


def _tensorrt() -> Any:
    """The bindings of TensorRT-RTX, after the libraries they need.

    Raises:
        ConfigError: not installed; names the extra.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
        import tensorrt_rtx_bindings
        import tensorrt_rtx_libs  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"a TensorRT plan needs the extra: pip install 'recsys[tensorrt]' ({error})") from None
    return tensorrt_rtx_bindings


@contextlib.contextmanager
def _quiet(name: str) -> Any:
    """The exporter reports every step; errors are raised all the same."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
