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
from recsys.runtime.cached import SessionEngine
from recsys.runtime.engine import EngineInfo, Session
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


_ROWS = 3
"""Place of the first array of kept rows among the append graph's inputs."""
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


class OpenVinoEngine(SessionEngine):
    """Opens windows by `open.xml`, continues them by `append.xml`; threads are explicit. Thread-safe.

    Events are appended one by one: together they are no cheaper on a processor, unless one session has several, and a
    graph of known shapes takes half the time (`docs/case.md`, Appends).
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

        if cache is CacheFormat.BF16:
            self.rows = Bf16Rows
        core = openvino.Core()
        weights = openvino.Tensor(np.fromfile(folder / WEIGHTS, dtype=np.uint8))

        def graph(name: str, threads: int, shapes: Callable[[Any], dict[int, Any]] = lambda _: {}) -> Any:
            model = core.read_model(packing.read(folder / name).decode(), weights)
            # Computed in the order of its results: keys and values that are rounded first need not stay until the end
            # as they were before.
            vector, *kept = model.get_results()
            model = openvino.Model([*kept, vector], model.get_parameters())
            model.reshape(shapes(model))
            return core.compile_model(model, "CPU", {**settings, "INFERENCE_NUM_THREADS": threads})

        self._open_windows = _Graph(graph(OPEN_GRAPH, num_threads))
        # An event is too little work to share: with a busy core, two threads took ten times as long.
        num_rows = window_size if window_size <= _MOST_READ else None
        self._append_one = _AppendOne(graph(APPEND_GRAPH, 1, lambda model: _of_one(model, num_rows)), num_rows)
        super().__init__(
            EngineInfo(
                name="openvino",
                precision=f"{precision}, {'bf16' if in_bf16 else 'float32'} arithmetic",
                width=self._open_windows.compiled.outputs[-1].partial_shape[1].get_length(),
                num_threads=num_threads,
                window_size=window_size,
                cache=cache,
            )
        )
        self._items = items

    def _open(self, tokens_BL: Tokens, last_B: Tokens) -> list[Any]:
        return self._open_windows.infer([*map(_shared, (self._vectors(tokens_BL), last_B))])

    def _longer(self, sessions: Sequence[Session], events: Sequence[Tokens]) -> list[Session]:
        longer = []
        for session, new in zip(sessions, events, strict=True):
            for vector_D in self._items.embed(new):
                session = self._appended(session, vector_D)
            longer.append(session)
        return longer

    def _appended(self, session: Session, vector_D: Floats) -> Session:
        """The session with one more event."""
        user_D, *fresh = self._append_one(vector_D, session.cache, session.length)
        rows = session.cache.extended(session.length, fresh)
        return Session(user_D, session.length + 1, rows.size_bytes, rows)

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
        """The user vectors and what is kept, of this thread's own request (they are not safe to share).

        Valid until its next call.
        """
        if not hasattr(self._local, "request"):
            self._local.request = self.compiled.create_infer_request()
        request = self._local.request
        for place, part in enumerate(inputs):  # one by one: its own way from a list takes as long as two layers
            request.set_input_tensor(place, part)
        request.infer(share_outputs=True)  # in this thread: handing it to another takes as long as a layer
        *kept, vectors = (request.get_output_tensor(place).data for place in range(len(self.compiled.outputs)))
        return [vectors, *kept]


class _AppendOne(threading.local):
    """The append graph for one session and one event. Thread-safe: each thread has its own request and arrays.

    The request is bound to the arrays once: to hand tensors over and take them back in each call takes Python about
    as long as the graph computes (`docs/case.md`, Appends).
    """

    def __init__(self, compiled: Any, num_rows: int | None) -> None:
        """`num_rows` that are read of each array; None: so many as are kept."""
        self.compiled = compiled
        self._request = compiled.create_infer_request()
        self._inputs = [_zeros(part, num_rows or 1) for part in compiled.inputs]  # held here: the request does not
        for place, part in enumerate(self._inputs):
            self._request.set_input_tensor(place, _shared(part))
        self._outputs = [np.zeros(part.shape, part.element_type.to_dtype()) for part in compiled.outputs]
        for place, part in enumerate(self._outputs):
            self._request.set_output_tensor(place, _shared(part))
        self._reads_all = num_rows is not None
        self._num_filled = 0

    def __call__(self, vector_D: Floats, cache: EventRows, length: int) -> list[Floats]:
        """The user vector, [D], and the rows to keep of the new event, [1, …], those valid until the next call."""
        vector_11D, _, length_1, *_ = self._inputs
        vector_11D[:], length_1[:] = vector_D, length
        if self._reads_all:
            self._fill(cache.first(length), length)
        else:
            for place, part in enumerate(cache.first(length), _ROWS):
                self._request.set_input_tensor(place, _shared(part[None]))
        self._request.infer(share_outputs=True)  # in this thread: handing it to another takes as long as a layer
        *fresh, user_1D = self._outputs
        return [user_1D[0].copy(), *(part[0] for part in fresh)]

    def _fill(self, rows: Sequence[np.ndarray], length: int) -> None:
        """Copy the first `length` rows; zeros behind them, that nothing of a longer session is computed with."""
        num_filled, self._num_filled = self._num_filled, max(self._num_filled, length)
        for whole_1C, part in zip(self._inputs[_ROWS:], rows, strict=True):
            np.copyto(whole_1C[0, :length], part[:length], casting="no")  # another engine's session is of another type
            if length < num_filled:
                whole_1C[0, length:num_filled] = 0
        self._num_filled = length


def _shared(part: np.ndarray) -> Any:
    """A tensor over the array's memory; uint16 are the bits of bf16."""
    import openvino

    if part.dtype == np.uint16:
        return openvino.Tensor(part, part.shape, openvino.Type.bf16)
    return openvino.Tensor(part, shared_memory=True)


def _zeros(port: Any, num_rows: int) -> np.ndarray:
    """An array for an input of one session; a free number of rows is `num_rows`."""
    shape, type_ = port.partial_shape, port.element_type
    sizes = [num_rows if size.is_dynamic else size.get_length() for size in shape]
    return np.zeros(sizes, np.uint16 if type_.get_type_name() == "bf16" else type_.to_dtype())


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
        for place in range(_ROWS, len(shapes)):
            shapes[place][1] = num_kept
    return shapes
