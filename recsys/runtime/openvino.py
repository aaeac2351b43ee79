"""The CPU engine: an OpenVINO graph with 8-bit weights and fused attention."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recsys.contracts.ids import Floats, Tokens
from recsys.runtime.engine import EngineInfo
from recsys.windows import padded_batches

GRAPH_FILE = "engine.xml"
WEIGHTS_FILE = "engine.bin"


class OpenVinoEngine:
    """Runs `engine.xml` on the CPU in float32 arithmetic; threads are explicit."""

    def __init__(self, folder: Path, *, num_threads: int, precision: str) -> None:
        import openvino

        settings = {
            "INFERENCE_NUM_THREADS": num_threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            # Both would otherwise be chosen by the processor's model, and change the answers with it.
            "INFERENCE_PRECISION_HINT": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        }
        self._compiled = openvino.Core().compile_model(folder / GRAPH_FILE, "CPU", settings)
        width = self._compiled.output(0).partial_shape[1].get_length()
        self._info = EngineInfo(name="openvino", precision=precision, width=width, num_threads=num_threads)
        self._local = threading.local()

    @property
    def info(self) -> EngineInfo:
        """Name, precision and width."""
        return self._info

    def _request(self) -> Any:
        """This thread's own inference request: requests are not safe to share."""
        if not hasattr(self._local, "request"):
            self._local.request = self._compiled.create_infer_request()
        return self._local.request

    def encode(self, windows: Sequence[Tokens]) -> Floats:
        """One user vector per window, shape [B, D]. No window is empty."""
        vectors_BD = np.empty((len(windows), self._info.width), dtype=np.float32)
        for rows, tokens_BL, last_B in padded_batches(windows):
            result = self._request().infer([tokens_BL, last_B], share_inputs=True)
            vectors_BD[rows] = result[0]
        return vectors_BD

    def warm_up(self) -> None:
        """Run short and long windows once, so that kernels and memory are in place."""
        for length in (1, 32, 1024):
            self.encode([np.ones(length, dtype=np.int32)])
