"""The CPU engine: OpenVINO graphs with rounded weights and fused attention, in float32 arithmetic or bf16."""

import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from recsys.contracts import packing
from recsys.contracts.ids import PAD, Floats, Tokens
from recsys.contracts.precision import Arithmetic, CacheFormat
from recsys.runtime.cache import Bf16Rows, EventRows, stacked
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

    The second is compiled twice: for one session and one event, which most appends are, and for any number of both.
    The latter is compiled when it is first needed, which takes half a second; `warm_up` needs it.
    """

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

        def graph(text: str, threads: int, *, of_one: bool = False) -> _Graph:
            def compiled() -> Any:
                model = core.read_model(text, weights)
                if of_one:
                    model.reshape(_of_one(model, None if self._padded is None else window_size))
                return core.compile_model(model, "CPU", {**settings, "INFERENCE_NUM_THREADS": threads})

            return _Graph(compiled)

        self._padded = _PaddedRows(window_size, self._shared) if window_size <= _MOST_READ else None
        append = packing.read(folder / APPEND_GRAPH).decode()
        self._open_windows = graph(packing.read(folder / OPEN_GRAPH).decode(), num_threads)
        # A few events are too little work to share: with a busy core, two threads took ten times as long.
        self._append_events = graph(append, 1)
        self._append_one = graph(append, 1, of_one=True)
        super().__init__(
            EngineInfo(
                name="openvino",
                precision=f"{precision}, {'bf16' if in_bf16 else 'float32'} arithmetic",
                width=self._open_windows.compiled().output(0).partial_shape[1].get_length(),
                num_threads=num_threads,
                window_size=window_size,
                cache=cache,
            )
        )
        self._items = items
        self._append_one.compiled()

    def _shared(self, part: Any) -> Any:
        """A tensor over the array's memory; uint16 are the bits of bf16."""
        if part.dtype == np.uint16:
            return self._tensor(part, part.shape, self._bf16)
        return self._tensor(part, shared_memory=True)

    def _open(self, tokens_BL: Tokens, last_B: Tokens) -> list[Any]:
        return self._infer(self._open_windows, [self._vectors(tokens_BL), last_B])

    def _append(self, tokens_BE: Tokens, last_B: Tokens, lengths_B: Tokens, caches: Sequence[EventRows]) -> list[Any]:
        inputs, kept = (self._vectors(tokens_BE), last_B, lengths_B), stacked(caches, lengths_B.tolist())
        if tokens_BE.shape[:2] != (1, 1):
            return self._infer(self._append_events, [*inputs, *kept])
        if self._padded is None:
            return self._infer(self._append_one, [*inputs, *kept])
        return self._infer(self._append_one, inputs, self._padded.filled(kept, int(lengths_B[0])))

    def _infer(self, graph: "_Graph", inputs: Sequence[Any], more: Sequence[Any] = ()) -> list[Any]:
        """`more` are inputs that are tensors already."""
        return graph.infer([*map(self._shared, inputs), *more])

    def warm_up(self) -> None:
        """See `Engine.warm_up`; two events are appended, too."""
        super().warm_up()
        if self._info.window_size > 2:
            self.append(self.open([np.ones(1, dtype=np.int32)]), [np.ones(2, dtype=np.int32)])

    def _vectors(self, tokens: Tokens) -> Floats:
        """Vectors of the events, and of no event up to the length that they are run at."""
        if missing := run_length(tokens.shape[1]) - tokens.shape[1]:
            nothing = np.full((len(tokens), missing, *tokens.shape[2:]), PAD, dtype=tokens.dtype)
            tokens = np.concatenate([tokens, nothing], axis=1)
        return self._items.embed(tokens)


class _Graph:
    """A graph that is compiled when it is first needed. Thread-safe."""

    def __init__(self, compile_: Callable[[], Any]) -> None:
        self._compile: Callable[[], Any] | None = compile_
        self._compiled: Any = None
        self._lock = threading.Lock()
        self._local = threading.local()

    def compiled(self) -> Any:
        """OpenVINO's compiled model."""
        with self._lock:
            if self._compile is not None:
                self._compiled, self._compile = self._compile(), None
            return self._compiled

    def infer(self, inputs: Sequence[Any]) -> list[Any]:
        """Outputs of this thread's own request (requests are not safe to share), valid until its next call."""
        if not hasattr(self._local, "request"):
            compiled = self.compiled()
            self._local.request, self._local.num_outputs = compiled.create_infer_request(), len(compiled.outputs)
        request = self._local.request
        for place, part in enumerate(inputs):  # one by one: its own way from a list takes as long as two layers
            request.set_input_tensor(place, part)
        request.infer(share_outputs=True)  # in this thread: handing it to another takes as long as a layer
        return [request.get_output_tensor(place).data for place in range(self._local.num_outputs)]


class _PaddedRows(threading.local):
    """A thread's copy of one session's rows, padded to a fixed number."""

    def __init__(self, num_rows: int, tensor: Callable[[np.ndarray], Any]) -> None:
        self._num_rows = num_rows
        self._tensor = tensor
        self._arrays: list[np.ndarray] = []
        self._tensors: list[Any] = []
        self._num_filled = 0

    def filled(self, kept: Sequence[np.ndarray], length: int) -> list[Any]:
        """Tensors of the first `length` rows and zeros, valid until the thread's next call."""
        if not self._arrays:
            self._arrays = [np.zeros((1, self._num_rows, *part.shape[2:]), part.dtype) for part in kept]
            self._tensors = [self._tensor(whole) for whole in self._arrays]
        for whole, part in zip(self._arrays, kept, strict=True):
            whole[:, :length] = part[:, :length]
            whole[:, length : self._num_filled] = 0  # of whoever was longer before: nothing of theirs is computed with
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
