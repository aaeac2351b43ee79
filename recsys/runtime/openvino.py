"""The CPU engine: two OpenVINO graphs with rounded weights and fused attention, in float32 arithmetic."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recsys.contracts import packing
from recsys.contracts.ids import Floats, Tokens
from recsys.contracts.precision import CacheFormat
from recsys.runtime.cache import BLOCK, EventRows, stacked
from recsys.runtime.engine import EngineInfo, Session
from recsys.runtime.items import ItemTable
from recsys.windows import padded, padded_batches, similar_lengths

# B batch, L window length, E new events, D width

OPEN_GRAPH = "open.xml"
APPEND_GRAPH = "append.xml"
WEIGHTS = "engine.bin"
"""Constants of both graphs, equal ones stored once."""


class OpenVinoEngine:
    """Opens windows by `open.xml`, continues them by `append.xml`; threads are explicit. Thread-safe."""

    def __init__(
        self,
        folder: Path,
        items: ItemTable,
        *,
        num_threads: int,
        precision: str,
        window_size: int,
        cache: CacheFormat,
    ) -> None:
        import openvino

        settings = {
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            # Both would otherwise be chosen by the processor's model, and change the answers with it.
            "INFERENCE_PRECISION_HINT": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        }
        core = openvino.Core()
        weights = openvino.Tensor(np.fromfile(folder / WEIGHTS, dtype=np.uint8))
        self._graphs = [
            core.compile_model(
                core.read_model(packing.read(folder / name).decode(), weights),
                "CPU",
                {**settings, "INFERENCE_NUM_THREADS": threads},
            )
            # A few events are too little work to share: with a busy core, two threads took ten times as long.
            for name, threads in ((OPEN_GRAPH, num_threads), (APPEND_GRAPH, 1))
        ]
        self._items = items
        self._info = EngineInfo(
            name="openvino",
            precision=precision,
            width=self._graphs[0].output(0).partial_shape[1].get_length(),
            num_threads=num_threads,
            window_size=window_size,
            cache=cache,
        )
        self._local = threading.local()

    @property
    def info(self) -> EngineInfo:
        """Name, precision, width and limits."""
        return self._info

    def _infer(self, graph: int, inputs: Sequence[Any]) -> list[Any]:
        """Outputs of this thread's own request (requests are not safe to share), valid until its next call."""
        if not hasattr(self._local, "requests"):
            self._local.requests = [compiled.create_infer_request() for compiled in self._graphs]
        results = self._local.requests[graph].infer(list(inputs), share_inputs=True, share_outputs=True)
        return [results[i] for i in range(len(results))]

    def encode(self, windows: Sequence[Tokens]) -> Floats:
        """One user vector per window, shape [B, D]. No window is empty."""
        vectors_BD = np.empty((len(windows), self._info.width), dtype=np.float32)
        for rows, tokens_BL, last_B in padded_batches(windows):
            vectors_BD[rows] = self._infer(0, [self._items.embed(tokens_BL), last_B])[0]
        return vectors_BD

    def open(self, windows: Sequence[Tokens]) -> list[Session]:
        """See `Engine.open`."""
        sessions: dict[int, Session] = {}
        for chosen, tokens_BL, last_B in padded_batches(windows):
            vector_BD, *kept = self._infer(0, [self._items.embed(tokens_BL), last_B])
            for row, i in enumerate(chosen):
                length = int(last_B[row]) + 1
                rows = EventRows.of([part[row, :length] for part in kept])
                sessions[i] = Session(vector_BD[row].copy(), length, rows.size_bytes, rows)
        return [sessions[i] for i in range(len(windows))]

    def append(self, sessions: Sequence[Session], events: Sequence[Tokens]) -> list[Session]:
        """See `Engine.append`."""
        for session, new in zip(sessions, events, strict=True):
            if session.length + len(new) > self._info.window_size:
                raise ValueError(
                    f"{session.length} events and {len(new)} more do not fit into a window of "
                    f"{self._info.window_size}; open the next window"
                )
        appended: dict[int, Session] = {}
        for chosen in similar_lengths([session.length for session in sessions]):
            appended.update(
                zip(chosen, self._append([sessions[i] for i in chosen], [events[i] for i in chosen]), strict=True)
            )
        return [appended[i] for i in range(len(sessions))]

    def _append(self, sessions: Sequence[Session], events: Sequence[Tokens]) -> list[Session]:
        """One batch of sessions of similar length."""
        tokens_BE, last_B = padded(events)
        lengths_B = np.array([session.length for session in sessions], dtype=np.int32)
        kept = stacked([session.cache for session in sessions], lengths_B.tolist())
        vector_BD, *fresh = self._infer(1, [self._items.embed(tokens_BE), last_B, lengths_B, *kept])
        longer = []
        for row, session in enumerate(sessions):
            rows = session.cache.extended(session.length, [part[row, : last_B[row] + 1] for part in fresh])
            length = session.length + int(last_B[row]) + 1
            longer.append(Session(vector_BD[row].copy(), length, rows.size_bytes, rows))
        return longer

    def warm_up(self) -> None:
        """Open short and long windows and continue them once, so that kernels and memory are in place."""
        one = np.ones(1, dtype=np.int32)
        for length in sorted({1, min(BLOCK, self._info.window_size - 1), self._info.window_size - 1}):
            self.append(self.open([np.ones(length, dtype=np.int32)]), [one])
