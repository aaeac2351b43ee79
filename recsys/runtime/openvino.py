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
"""Kept events that are all read for one new event, however many of them are padding; of a longer window, what there
is."""


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

    Compiled at once: the first graph, and the second for one session and one event. The second for any number of both
    is when it is first needed, which takes half a second (an endpoint needs it before it is ready).
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
        weights = openvino.Tensor(np.memmap(folder / WEIGHTS, mode="c"), shared_memory=True)

        def graph(text: str, threads: int, *, of_one: bool = False) -> _Graph:
            def compiled() -> Any:
                model = core.read_model(text, weights)
                if of_one:
                    model.reshape(_of_one(model, self._most_kept))
                return core.compile_model(model, "CPU", {**settings, "INFERENCE_NUM_THREADS": threads})

            return _Graph(compiled)

        self._most_kept = window_size if window_size <= _MOST_READ else None
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
        self._room = _Room(window_size)

    def _shared(self, part: Any) -> Any:
        """A tensor over the array's memory; uint16 are the bits of bf16."""
        if part.dtype == np.uint16:
            return self._tensor(part, part.shape, self._bf16)
        return self._tensor(part, shared_memory=True)

    def _open(self, tokens_BL: Tokens, last_B: Tokens) -> list[Any]:
        return self._infer(self._open_windows, [self._vectors(tokens_BL), last_B])

    def _append(self, tokens_BE: Tokens, last_B: Tokens, lengths_B: Tokens, caches: Sequence[EventRows]) -> list[Any]:
        graph, kept = self._append_events, stacked(caches, lengths_B.tolist())
        if tokens_BE.shape[:2] == (1, 1):
            graph = self._append_one
            if self._most_kept is not None:
                kept = self._room.filled(kept, int(lengths_B[0]))
        return self._infer(graph, [self._vectors(tokens_BE), last_B, lengths_B, *kept])

    def _infer(self, graph: "_Graph", inputs: Sequence[Any]) -> list[Any]:
        return graph.infer([self._shared(part) for part in inputs])

    def _vectors(self, tokens: Tokens) -> Floats:
        """Vectors of the events, and of no event up to the length that they are run at."""
        if missing := run_length(tokens.shape[1]) - tokens.shape[1]:
            nothing = np.full((len(tokens), missing, *tokens.shape[2:]), PAD, dtype=tokens.dtype)
            tokens = np.concatenate([tokens, nothing], axis=1)
        return self._items.embed(tokens)


class _Graph:
    """A graph that is compiled when it is first needed. Thread-safe."""

    def __init__(self, compile_: Callable[[], Any]) -> None:
        self._compile = compile_
        self._compiled: Any = None
        self._lock = threading.Lock()
        self._local = threading.local()

    def compiled(self) -> Any:
        """OpenVINO's compiled model."""
        with self._lock:
            if self._compiled is None:
                self._compiled = self._compile()
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


class _Room(threading.local):
    """A thread's own copy of one session's rows, in arrays that are as long for each."""

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows
        self._arrays: list[np.ndarray] = []

    def filled(self, kept: Sequence[np.ndarray], length: int) -> list[np.ndarray]:
        """The first `length` rows, then what was there before. Valid until the thread's next call."""
        if not self._arrays:
            self._arrays = [np.zeros((1, self._num_rows, *part.shape[2:]), part.dtype) for part in kept]
        for room, part in zip(self._arrays, kept, strict=True):
            room[:, :length] = part[:, :length]
        return self._arrays


def _of_one(graph: Any, num_kept: int | None) -> dict[int, Any]:
    """Shapes of the append graph's inputs for one session and one new event; None: so many as are kept.

    Most calls are such. OpenVINO sees to every shape that is not known before, in each call, and makes ready anew what
    another number of kept events concerns: a session then takes twice as long after one of another length. To copy
    what is kept and read as much padding as there is takes less.
    """
    shapes = {place: part.partial_shape for place, part in enumerate(graph.inputs)}
    for shape in shapes.values():
        shape[0] = 1
    shapes[0][1] = 1
    for place in range(3, len(shapes)) if num_kept else ():
        shapes[place][1] = num_kept
    return shapes
