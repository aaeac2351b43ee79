"""TensorRT plans of `OpenWindow` and `AppendEvents`, from the same rounded model as the CPU engine.

The networks are strongly typed: tensors have the type they are exported with (bf16 or fp16), and 8-bit matrices
enter as codes before a DequantizeLinear, so they stay 8 bits in the plan. TensorRT-RTX builds without a GPU and
compiles kernels for the one at hand when a plan is loaded; TensorRT builds on the GPU that the plan is for.
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
from torch import Tensor, nn

from optimize.rounding import RoundedLinear
from recsys.contracts.config import Config
from recsys.contracts.errors import ConfigError
from recsys.contracts.files import write_whole
from recsys.contracts.precision import CacheFormat
from recsys.model.config import ModelConfig
from recsys.model.decoder import SequenceModel
from recsys.model.incremental import AppendEvents, OpenWindow, in_precision
from recsys.runtime.cache import BLOCK, rounded_up
from recsys.runtime.gpu import CudaGpu
from recsys.runtime.plans import ANY_DRIVER, Flavour, PlanName, bindings, slug
from recsys.runtime.tensorrt import MIN_LENGTH, kept_names

_OPSET = 21
_MIB = 2**20
_LARGEST_BATCH = 64
"""Where the workspace has room for more: inputs, outputs and activations outside attention grow with it, too."""
_BYTES = 2
"""Of a bf16 or fp16 number."""


class TensorRtConfig(Config):
    """Settings of the plans."""

    flavour: Flavour = "rtx"
    """`rtx`: TensorRT-RTX, needs no GPU to build; `full`: TensorRT, builds on the GPU that it is for."""
    precision: Literal["bf16", "fp16"] = "bf16"
    activations: Literal["float", "int8"] = "float"
    """`int8` (W8A8): inputs of matrices are rounded too, by scales of the calibration windows; needs 8-bit weights."""
    workspace_mib: int = Field(default=1024, ge=1)
    """Most scratch memory that a layer may take."""
    max_batch: int | None = Field(default=4, ge=1)
    """Windows of full size that a plan can take at once; None (from Python): as many as fit the workspace, at most
    64."""
    max_new: int = Field(default=32, ge=1)
    """New events of a session that the append plan can take at once; more are appended in turns."""
    capability: Literal["SM75", "SM80", "SM86", "SM89", "SM120", "SM121"] = "SM80"
    """GPUs that a plan of TensorRT-RTX is for: SM80 is the A100."""
    hardware_compatible: bool = False
    """`full` only: later GPUs of the Ampere family and above may run the plan too."""
    version_compatible: bool = False
    """`full` only: later versions of TensorRT of the same major one may load the plan. It holds code for that, which
    runs where it is loaded."""
    optimization_level: int = Field(default=3, ge=0, le=5)
    timing_cache: Path | None = None
    """`full` only: measured tactics are read from here and written back, so that the next build is quick."""


def build_plans(model: SequenceModel, window_size: int, config: TensorRtConfig, folder: Path) -> dict[str, Any]:
    """Write both plans into `folder`; what the manifest says of them.

    Raises:
        ConfigError: TensorRT is not installed, or builds no plan of these shapes in the workspace, or weights are
            of 4 bits.
    """
    trt = bindings(config.flavour)
    batch = config.max_batch or max(1, min(fitting(model.config, window_size, config.workspace_mib), _LARGEST_BATCH))
    while True:
        tried = config.model_copy(update={"max_batch": batch})
        try:
            plans = {graph: _built(trt, model, window_size, tried, graph) for graph in ("open", "append")}
        except _NoPlanError:
            if config.max_batch is not None or batch == 1:
                raise
            batch //= 2
        else:
            break
    said: dict[str, Any] = {"max_batch": batch, "max_new": config.max_new, "num_layers": model.config.num_layers}
    for graph, (name, plan) in plans.items():
        (folder / str(name)).write_bytes(plan)
        said[graph] = {"file": str(name), "graph_digest": name.digest}
    return said


def fitting(model: ModelConfig, window_size: int, workspace_mib: int) -> int:
    """How many full windows a workspace has room for, by what an event takes of it."""
    return workspace_mib * _MIB // (window_size * _event_bytes(model))


def _event_bytes(model: ModelConfig) -> int:
    """Scratch that an event takes, give or take: between 2 % below and 17 % above what was seen.

    Found by building plans of seven shapes with TensorRT-RTX 1.7 (`docs/gpu.md`), which fuses attention: nothing
    grows with the square of the window.
    """
    return _BYTES * (model.width + 5 * model.num_heads * model.head_dim + 3 * model.feedforward_width)


class _NoPlanError(ConfigError):
    """TensorRT did not build; with its words, and the arithmetic where that says why."""


def _built(
    trt: Any, model: SequenceModel, window_size: int, config: TensorRtConfig, graph: str
) -> tuple[PlanName, bytes]:
    """A plan and its name."""
    proto = onnx_graph(model, window_size, config, graph).SerializeToString()
    name = _name(trt, graph, hashlib.sha256(proto).hexdigest()[:12], config)
    try:
        return name, _plan(trt, proto, _profile(graph, model.config, window_size, config), config)
    except _NoPlanError as error:
        batch, most = _batch(config), fitting(model.config, window_size, config.workspace_mib)
        why = ""
        if batch > most:
            one, needed = _event_bytes(model.config), batch * window_size * _event_bytes(model.config) / _MIB
            why = (
                f"; {batch:,} windows x {window_size:,} events x {one:,} bytes = {needed:,.0f} MiB, "
                f"at most {most:,} windows fit: lower max_batch or raise workspace_mib"
            )
        shapes = f"the {graph} graph with max_batch = {batch:,}, workspace_mib = {config.workspace_mib:,}"
        raise _NoPlanError(f"TensorRT {trt.__version__} built no plan of {shapes}: {error}{why}") from None


def _batch(config: TensorRtConfig) -> int:
    assert config.max_batch is not None, "as many as fit: how many was not found out"
    return config.max_batch


class _Boundary(nn.Module):
    """float32 vectors in and out, whatever is computed with between."""

    def __init__(self, graph: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner = graph
        self.dtype = dtype

    def forward(self, embedded: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        vector_BD, *kept = self.inner(embedded.to(self.dtype), *others)
        return vector_BD.float(), *kept


def onnx_graph(model: SequenceModel, window_size: int, config: TensorRtConfig, graph: str) -> Any:
    """`OpenWindow` or `AppendEvents` as an ONNX model with free axes, floats inside in the plan's precision."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[config.precision]
    kind = OpenWindow if graph == "open" else AppendEvents
    module = _Boundary(in_precision(kind(copy.deepcopy(model), CacheFormat.FLOAT16), dtype), dtype).eval()
    example, axes = _example(graph, model, window_size, config)
    with warnings.catch_warnings(), _quiet("torch.onnx"), _quiet("torch.export"), torch.inference_mode():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            example,
            dynamo=True,
            opset_version=_OPSET,
            dynamic_shapes=(axes[0], axes[1:]),
            input_names=_inputs(graph, model.config.num_layers),
            output_names=["vector", *kept_names(model.config.num_layers, "kept")],
            verbose=False,
            optimize=False,  # not before codes are dequantized by one operation: small ones would become floats
        )
    assert program is not None
    import onnxscript.optimizer

    coded = _with_codes(program.model_proto, model, round_inputs=config.activations == "int8")
    with _quiet("onnxscript"):
        return onnxscript.optimizer.optimize(coded)


def _example(
    graph: str, model: SequenceModel, window_size: int, config: TensorRtConfig
) -> tuple[tuple[Tensor, ...], tuple[dict[int, Any], ...]]:
    """Inputs to export with, and the axes of them that stay free."""
    settings = model.config
    batch = torch.export.Dim("batch", min=1, max=max(2, _batch(config)))
    if graph == "open":
        length = torch.export.Dim("length", min=MIN_LENGTH, max=window_size)
        embedded = torch.zeros(2, min(8, window_size), settings.width)
        return (embedded, _integers(3, 1)), ({0: batch, 1: length}, {0: batch})
    new = torch.export.Dim("new", min=1, max=max(3, config.max_new))
    kept = torch.export.Dim("kept", min=1, max=rounded_up(window_size))
    past = [
        torch.zeros(2, 5, settings.num_heads, settings.head_dim, dtype=torch.float16)
        for _ in kept_names(settings.num_layers, "past")
    ]
    example = (torch.zeros(2, 3, settings.width), _integers(2, 1), _integers(4, 2), *past)
    return example, ({0: batch, 1: new}, {0: batch}, {0: batch}, *({0: batch, 1: kept} for _ in past))


def _inputs(graph: str, num_layers: int) -> list[str]:
    names = ["embedded", "last"]
    return names if graph == "open" else [*names, "num_kept", *kept_names(num_layers, "past")]


def _integers(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def _profile(
    graph: str, model: ModelConfig, window_size: int, config: TensorRtConfig
) -> dict[str, list[tuple[int, ...]]]:
    """Least, usual and largest shape of each input."""
    most = _batch(config)
    if graph == "open":
        lengths = [(1, MIN_LENGTH), (1, window_size), (most, window_size)]
        return {"embedded": [(*axes, model.width) for axes in lengths], "last": [(1,), (1,), (most,)]}
    heads = (model.num_heads, model.head_dim)
    past: list[tuple[int, ...]] = [
        (1, BLOCK, *heads),
        (1, rounded_up(window_size), *heads),
        (most, rounded_up(window_size), *heads),
    ]
    return {
        "embedded": [(1, 1, model.width), (1, 1, model.width), (most, config.max_new, model.width)],
        "last": [(1,), (1,), (most,)],
        "num_kept": [(1,), (1,), (most,)],
        **{name: list(past) for name in kept_names(model.num_layers, "past")},
    }


def _with_codes(proto: Any, model: SequenceModel, *, round_inputs: bool) -> Any:
    """Each Cast, Mul and Reshape of integer codes as one DequantizeLinear, which is what TensorRT accepts.

    With `round_inputs` the other input of each product is rounded to 8 bits as well (W8A8).
    """
    from onnx import helper, numpy_helper

    peaks = {name: part.input_peak for name, part in model.decoder.named_modules() if isinstance(part, RoundedLinear)}
    if any(part.weight.format.bits != 8 for part in model.modules() if isinstance(part, RoundedLinear)):
        raise ConfigError("a TensorRT plan takes weights of 8 bits or floats; use --bits 8")
    graph = proto.graph
    constants = {entry.name: entry for entry in graph.initializer}
    readers = {name: node for node in graph.node for name in node.input}
    found = [node for node in graph.node if node.op_type == "Cast" and node.input[0].endswith(".codes")]
    assert len(found) == len(peaks), f"{len(found)} matrices of codes in the graph, {len(peaks)} in the model"
    if round_inputs and not found:
        raise ConfigError("int8 activations need weights of 8 bits; use --bits 8")
    for cast in found:
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
        if round_inputs:
            name = codes.name.removesuffix(".codes")
            _round_input(graph, readers, dequantize.output[0], scales.data_type, peaks[name[name.index("layers.") :]])
    return proto


def _round_input(graph: Any, readers: dict[str, Any], weights: str, kind: int, peak: float) -> None:
    """QuantizeLinear and DequantizeLinear, one scale for all, before the product that reads `weights`."""
    from onnx import TensorProto, helper

    product = readers[weights]
    while product.op_type == "Transpose":
        product = readers[product.output[0]]
    assert product.op_type in ("MatMul", "Gemm"), product.op_type
    place = list(graph.node).index(product)
    stem = f"{weights}.input"
    graph.initializer.append(helper.make_tensor(f"{stem}.scale", kind, [], [max(peak, 1e-12) / 127]))
    graph.initializer.append(helper.make_tensor(f"{stem}.zero", TensorProto.INT8, [], [0]))
    constants = [f"{stem}.scale", f"{stem}.zero"]
    nodes = [
        helper.make_node("QuantizeLinear", [product.input[0], *constants], [f"{stem}.codes"], name=f"{stem}.quantize"),
        helper.make_node("DequantizeLinear", [f"{stem}.codes", *constants], [stem], name=f"{stem}.dequantize"),
    ]
    for node in reversed(nodes):
        graph.node.insert(place, node)
    product.input[0] = stem


def _name(trt: Any, graph: str, digest: str, config: TensorRtConfig) -> PlanName:
    gpu, driver = config.capability.lower(), ANY_DRIVER
    if config.flavour == "full":
        here = CudaGpu().here()
        gpu, driver = "sm80plus" if config.hardware_compatible else slug(here.gpu_name), here.driver
    return PlanName(
        graph=graph,
        gpu=gpu,
        driver=driver,
        flavour=config.flavour,
        version=f"{trt.__version__}{'plus' if config.flavour == 'full' and config.version_compatible else ''}",
        precision=config.precision if config.activations == "float" else f"{config.precision}w8a8",
        digest=digest,
    )


def _plan(trt: Any, proto: bytes, profile: dict[str, list[tuple[int, ...]]], config: TensorRtConfig) -> bytes:
    logger, words = heard(trt)
    builder = trt.Builder(logger)
    network = parsed(trt, builder, proto)
    settings = builder.create_builder_config()
    settings.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, config.workspace_mib * _MIB)
    settings.builder_optimization_level = config.optimization_level
    if config.flavour == "rtx":
        settings.num_compute_capabilities = 1
        settings.set_compute_capability(getattr(trt.ComputeCapability, config.capability), 0)
    else:
        _settings_of_full(trt, settings, config)
    shapes = builder.create_optimization_profile()
    for name, (least, usual, largest) in profile.items():
        shapes.set_shape(name, least, usual, largest)
    settings.add_optimization_profile(shapes)
    plan = builder.build_serialized_network(network, settings)
    if plan is None:
        raise _NoPlanError("; ".join(words[:1]) or "without a word why")
    if config.flavour == "full" and config.timing_cache is not None:
        measured = bytes(settings.get_timing_cache().serialize())
        write_whole(config.timing_cache, lambda unfinished: unfinished.write_bytes(measured))
    return bytes(plan)


def heard(trt: Any) -> tuple[Any, list[str]]:
    """A logger of TensorRT, and the errors that it has heard."""
    words: list[str] = []

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                words.append(" ".join(message.split()))

    return Logger(), words


def parsed(trt: Any, builder: Any, proto: bytes) -> Any:
    """The strongly typed network of an ONNX model.

    Raises:
        ConfigError: TensorRT does not read it; with its words.
    """
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    logger, _ = heard(trt)  # the parser has its own words
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(proto):
        problems = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise ConfigError(f"TensorRT {trt.__version__} cannot read the graph: {problems}")
    return network


def _settings_of_full(trt: Any, settings: Any, config: TensorRtConfig) -> None:
    """What TensorRT-RTX does not have: compatibility and measured tactics."""
    if config.hardware_compatible:
        settings.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if config.version_compatible:
        settings.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if config.timing_cache is not None:
        known = config.timing_cache.read_bytes() if config.timing_cache.is_file() else b""
        settings.set_timing_cache(settings.create_timing_cache(known), ignore_mismatch=False)


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
