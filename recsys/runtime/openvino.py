"""The CPU engine: two OpenVINO graphs with rounded weights and fused attention, in float32 arithmetic or bf16."""

import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from recsys.contracts import packing
from recsys.contracts.ids import PAD, Floats, Tokens
from recsys.contracts.precision import Arithmetic, CacheFormat
from recsys.runtime.cache import Bf16Rows, EventRows
from recsys.runtime.cached import CachedEngine
from recsys.runtime.engine import EngineInfo
from recsys.runtime.items import ItemTable

# B batch, L window length, E new events

# OpenVINO would tell Google Analytics of every import and conversion, each time from a fork of this process. It goes
# without where the package that does so is not there.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

OPEN_GRAPH = "open.xml"
APPEND_GRAPH = "append.xml"
WEIGHTS = "engine.bin"
"""Constants of both graphs, equal ones stored once."""

SETTINGS: Final = {
    "NUM_STREAMS": 1,
    "PERFORMANCE_HINT": "LATENCY",
    # As the next one it would otherwise be chosen by the processor's model, and change the answers with it.
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    # Each graph would stay on the first cores: two at once would share one while others are idle.
    "ENABLE_CPU_PINNING": False,
}
"""Of every graph, but for bf16."""


_MOST_READ = 2048
"""Of windows up to this size all rows are read for one new event, however few are kept (`docs/case.md`, Appends)."""


def run_length(length: int) -> int:
    """The length that so many events are run at: an eighth longer at most, one of eight an octave.

    OpenVINO makes kernels for each shape that it sees, and keeps them. Run at their own lengths, windows took two
    thirds longer whenever a length was new, and 750 MB once all of 300 to 1,024 had been seen (`docs/benchmarks.md`).
    """
    step = 1 << max(0, length.bit_length() - 4)
    return -(-length // step) * step


def has_bf16() -> bool:
    """Whether this processor multiplies in bf16."""
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVinoEngine(CachedEngine):
    """Opens windows by `open.xml`, continues them by `append.xml`; threads are explicit. Thread-safe.

    Events are appended one by one: together they are no cheaper on a processor, unless one session has several, and a
    graph of known shapes takes half the time (`docs/case.md`, Appends).
    """

    max_new = 1

    def __init__(
        self,
        folder: Path,
        items: ItemTable,
        *,
        num_threads: int,
        precision: str,
        window_size: int,
        cache: CacheFormat,
        arithmetic: Arithmetic = Arithmetic.F32,
    ) -> None:
        """bf16 is float32 on a processor that does not multiply in it: as exact, and slower."""
        import openvino

        # releases of before say this whatever they compute in
        precision = precision.removesuffix(", float32 arithmetic")
        in_bf16 = arithmetic is Arithmetic.BF16 and has_bf16()
        settings = SETTINGS | ({"INFERENCE_PRECISION_HINT": "bf16"} if in_bf16 else {})

        self._tensor, self._bf16 = openvino.Tensor, openvino.Type.bf16
        if cache is CacheFormat.BF16:
            self.rows = Bf16Rows
        core = openvino.Core()
        weights = openvino.Tensor(np.fromfile(folder / WEIGHTS, dtype=np.uint8))

        def graph(name: str, threads: int, shapes: Callable[[Any], dict[int, Any]] = lambda _: {}) -> _Graph:
            model = core.read_model(packing.read(folder / name).decode(), weights)
            model.reshape(shapes(model))
            return _Graph(core.compile_model(model, "CPU", {**settings, "INFERENCE_NUM_THREADS": threads}))

        self._open_windows = graph(OPEN_GRAPH, num_threads)
        # An event is too little work to share: with a busy core, two threads took ten times as long.
        self._padded = _PaddedRows(window_size, self._shared) if window_size <= _MOST_READ else None
        num_rows = None if self._padded is None else window_size
        self._append_one = graph(APPEND_GRAPH, 1, lambda model: _of_one(model, num_rows))
        super().__init__(
            EngineInfo(
                name="openvino",
                precision=f"{precision}, {'bf16' if in_bf16 else 'float32'} arithmetic",
                width=self._open_windows.compiled.output(0).partial_shape[1].get_length(),
                num_threads=num_threads,
                window_size=window_size,
                cache=cache,
            )
        )
        self._items = items

    def _shared(self, part: Any) -> Any:
        """A tensor over the array's memory; uint16 are the bits of bf16."""
        if part.dtype == np.uint16:
            return self._tensor(part, part.shape, self._bf16)
        return self._tensor(part, shared_memory=True)

    def _open(self, tokens_BL: Tokens, last_B: Tokens) -> list[Any]:
        return self._open_windows.infer([*map(self._shared, (self._vectors(tokens_BL), last_B))])

    def _append(self, tokens_BE: Tokens, last_B: Tokens, lengths_B: Tokens, caches: Sequence[EventRows]) -> list[Any]:
        vectors_B1D = self._vectors(tokens_BE)
        if len(caches) == 1:
            return self._appended(vectors_B1D, last_B, lengths_B, caches[0])
        each = []
        for row, cache in enumerate(caches):
            one = slice(row, row + 1)
            outputs = self._appended(vectors_B1D[one], last_B[one], lengths_B[one], cache)
            each.append([part.copy() for part in outputs])
        return [np.concatenate(parts) for parts in zip(*each, strict=True)]

    def _appended(self, vector_11D: Floats, last_1: Tokens, length_1: Tokens, cache: EventRows) -> list[Any]:
        """Of one session and one event."""
        length = int(length_1[0])
        rows = cache.first(length)
        kept = (
            [self._shared(part[None]) for part in rows] if self._padded is None else self._padded.filled(rows, length)
        )
        return self._append_one.infer([*map(self._shared, (vector_11D, last_1, length_1)), *kept])

    def _vectors(self, tokens: Tokens) -> Floats:
        """Vectors of the events, and of no event up to the length that they are run at."""
        if missing := run_length(tokens.shape[1]) - tokens.shape[1]:
            nothing = np.full((len(tokens), missing, *tokens.shape[2:]), PAD, dtype=tokens.dtype)
            tokens = np.concatenate([tokens, nothing], axis=1)
        return self._items.embed(tokens)


class _Graph:
    """A compiled graph. Thread-safe."""

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled
        self._local = threading.local()

    def infer(self, inputs: Sequence[Any]) -> list[Any]:
        """Outputs of this thread's own request (requests are not safe to share), valid until its next call."""
        if not hasattr(self._local, "request"):
            self._local.request = self.compiled.create_infer_request()
        request = self._local.request
        for place, part in enumerate(inputs):  # one by one: its own way from a list takes as long as two layers
            request.set_input_tensor(place, part)
        request.infer(share_outputs=True)  # in this thread: handing it to another takes as long as a layer
        return [request.get_output_tensor(place).data for place in range(len(self.compiled.outputs))]


class _PaddedRows(threading.local):
    """A thread's copy of one session's rows, padded to a fixed number."""

    def __init__(self, num_rows: int, tensor: Callable[[np.ndarray], Any]) -> None:
        self._num_rows = num_rows
        self._tensor = tensor
        self._arrays: list[np.ndarray] = []
        self._tensors: list[Any] = []
        self._num_filled = 0

    def filled(self, rows: Sequence[np.ndarray], length: int) -> list[Any]:
        """Tensors of the first `length` rows and zeros, a batch of one, valid until the thread's next call."""
        if not self._arrays:
            self._arrays = [np.zeros((self._num_rows, *part.shape[1:]), part.dtype) for part in rows]
            self._tensors = [self._tensor(whole[None]) for whole in self._arrays]
        for whole, part in zip(self._arrays, rows, strict=True):
            whole[:length] = part[:length]
            whole[length : self._num_filled] = 0  # of whoever was longer before: nothing of theirs is computed with
        self._num_filled = length
        return self._tensors


def _of_one(graph: Any, num_kept: int | None) -> dict[int, Any]:
    """Shapes of the append graph's inputs for one session and one new event; None: so many as are kept.

    OpenVINO sees to every shape that is not known before, in each call, and makes ready anew what another number of
    kept events concerns. To copy what is kept and to read padding with it takes less (`docs/case.md`, Appends).
    """
    shapes = {place: part.partial_shape for place, part in enumerate(graph.inputs)}
    for shape in shapes.values():
        shape[0] = 1
    shapes[0][1] = 1
    if num_kept is not None:
        for place in range(3, len(shapes)):
            shapes[place][1] = num_kept
    return shapes
