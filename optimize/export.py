"""From a (rounded) torch decoder to two saved OpenVINO graphs with fused attention and shared weights."""

import hashlib
import logging
import warnings
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from torch import Tensor, nn

from optimize.rounding import RoundedLinear
from recsys.contracts import packing
from recsys.contracts.precision import CacheFormat
from recsys.model.decoder import SequenceModel
from recsys.model.incremental import AppendEvents, OpenWindow
from recsys.runtime.openvino import APPEND_GRAPH, OPEN_GRAPH, WEIGHTS

_ALIGNMENT = 64
_CAUSAL_BLOCKS = 4
"""OpenVINO's fused attention computes what the causal mask hides; four blocks spare it three eighths. Of 2, 4 and 8
four were quickest for 1,000 events, tried by hand."""
_EXAMPLE_EVENTS = 4 * _CAUSAL_BLOCKS
"""Of a window to export with: an exporter takes sizes of 0 and 1 for constants, also those of blocks."""


def build_engine(model: SequenceModel, folder: Path, cache: CacheFormat, *, packed: bool = True) -> None:
    """Write the CPU engine into `folder`: `open.xml`, `append.xml` and the weights of both."""
    import openvino

    for name, graph in ((OPEN_GRAPH, open_graph(model, cache)), (APPEND_GRAPH, append_graph(model, cache))):
        _check_codes(graph, model)
        openvino.save_model(graph, folder / name, compress_to_fp16=False)
    _share_weights(folder, packed)


def open_graph(model: SequenceModel, cache: CacheFormat) -> Any:
    """`OpenWindow` as an OpenVINO model with free batch and length."""
    return _converted(OpenWindow(model, _written(cache), _CAUSAL_BLOCKS), _two_windows(model))


def append_graph(model: SequenceModel, cache: CacheFormat) -> Any:
    """`AppendEvents` as an OpenVINO model with free batch, number of new and of kept events."""
    with torch.no_grad():
        _, *kept = OpenWindow(model, cache).eval()(*_two_windows(model))
    events = _embedded(model, 2, 3), _integers(2, 1), _integers(4, 2)
    return _converted(AppendEvents(model, _written(cache)), events, tuple(kept))


def _written(cache: CacheFormat) -> CacheFormat:
    """What the graphs give of new events. They read bf16, and the engine rounds to it.

    OpenVINO 2026.4 rounds half of the numbers down that are to be rounded up: those whose last bit would become 1.
    """
    return CacheFormat.FLOAT32 if cache is CacheFormat.BF16 else cache


def _converted(module: nn.Module, inputs: tuple[Tensor, ...], kept: tuple[Tensor, ...] = ()) -> Any:
    """The exported module with the first two axes of all inputs free: batch and events.

    `torch.export` raises where the module fixes one of these sizes. It holds for sizes below its examples' (a test).
    """
    example = (*inputs, *kept)
    axes = (*map(_free_axes, inputs), *((tuple(map(_free_axes, kept)),) if kept else ()))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        graph = _read(torch.export.export(module.eval(), example, dynamic_shapes=axes))
    graph.reshape({i: [-1, -1, *part.shape[2:]][: part.ndim] for i, part in enumerate(example)})
    _pack_4_bits(graph, module)
    return graph


def _read(program: torch.export.ExportedProgram) -> Any:
    """The program as an OpenVINO model.

    `convert_model(program)` decomposes it, which computes all of it twice more with symbols for sizes: it is for
    architectures with an operation that OpenVINO does not read as it is (gemma, olmo …; `docs/case.md`, Appends).
    """
    import openvino
    from openvino.frontend import OpConversionFailure
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    level = logging.root.level
    try:
        return openvino.convert_model(TorchFXPythonDecoder(_renamed(program), dynamic_shapes=True))
    except OpConversionFailure:
        return openvino.convert_model(program)
    finally:
        logging.root.setLevel(level)  # OpenVINO leaves it at ERROR where a conversion failed


def _renamed(program: torch.export.ExportedProgram) -> torch.fx.GraphModule:
    """A copy in which operations that OpenVINO knows by another name have that name."""
    aten = torch.ops.aten
    module = program.module(check_guards=False)
    for node in module.graph.nodes:
        if node.target is aten.to.dtype and len(node.args) == 2 and not node.kwargs:
            node.target, node.args, node.kwargs = aten._to_copy.default, node.args[:1], {"dtype": node.args[1]}
        elif node.target is aten.reshape.default:
            node.target = aten.view.default
        elif node.target is aten.softmax.int and len(node.args) == 2 and not node.kwargs:
            node.target, node.args = aten._softmax.default, (*node.args[:2], False)
    return module


def _free_axes(part: Tensor) -> dict[int, Any]:
    return dict.fromkeys(range(min(part.ndim, 2)), torch.export.Dim.DYNAMIC)


def _two_windows(model: SequenceModel) -> tuple[Tensor, Tensor]:
    return _embedded(model, 2, _EXAMPLE_EVENTS), _integers(_EXAMPLE_EVENTS - 1, 0)


def _embedded(model: SequenceModel, batch: int, length: int) -> Tensor:
    return torch.zeros(batch, length, model.config.width)


def _integers(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def _rounded(module: nn.Module) -> list[RoundedLinear]:
    return [part for part in module.modules() if isinstance(part, RoundedLinear)]


def _code_constants(graph: Any) -> list[Any]:
    """Constants of integer codes: matrices of 8 or 4 bits."""
    return [
        node
        for node in graph.get_ops()
        if node.get_type_name() == "Constant"
        and node.get_element_type().get_type_name() in ("i8", "i4")
        and len(node.get_output_shape(0)) == 3
    ]


def _pack_4_bits(graph: Any, module: nn.Module) -> None:
    """Codes of 4 bits stored as such; torch has no type for them."""
    import openvino

    if not any(part.weight.format.bits == 4 for part in _rounded(module)):
        return
    for node in _code_constants(graph):
        packed = openvino.op.Constant(openvino.Type.i4, node.get_output_shape(0), node.data.ravel().tolist())
        for reader in node.output(0).get_target_inputs():
            reader.replace_source_output(packed.output(0))


def _check_codes(graph: Any, model: nn.Module) -> None:
    """A converter that turns codes back into floats would quadruple the engine without a word."""
    found, expected = len(_code_constants(graph)), len(_rounded(model))
    assert found == expected, f"{found} matrices of codes in the graph, {expected} in the model"


def _share_weights(folder: Path, packed: bool) -> None:
    """Both graphs read one file of weights: equal constants are stored once."""
    place_of: dict[bytes, int] = {}
    with (folder / WEIGHTS).open("wb") as shared:
        for name in (OPEN_GRAPH, APPEND_GRAPH):
            tree = ElementTree.parse(folder / name)  # noqa: S314 (written by save_model just now)
            own = (folder / name).with_suffix(".bin")
            constants = own.read_bytes()
            for data in tree.iterfind(".//layer[@type='Const']/data"):
                offset, size = int(data.attrib["offset"]), int(data.attrib["size"])
                content = constants[offset : offset + size]
                key = hashlib.sha256(content).digest()
                if key not in place_of:
                    shared.write(b"\0" * (-shared.tell() % _ALIGNMENT))
                    place_of[key] = shared.tell()
                    shared.write(content)
                data.set("offset", str(place_of[key]))
            own.unlink()
            (folder / name).unlink()
            packing.write(folder / name, ElementTree.tostring(tree.getroot()), packed)
