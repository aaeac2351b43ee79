"""The scores of all items from their int8 codes, by OpenVINO."""

import threading
from typing import Final

import numpy as np

from recsys.contracts.ids import Floats
from recsys.runtime.openvino import SETTINGS

# V items, D width

PAYS_FROM: Final = 30_000
"""Items from which this is quicker than a product with float32 vectors, which then no longer fit into a cache."""


class CodeScorer:
    """vector_D -> scores_V, exact for the vectors that the codes stand for. Thread-safe.

    Each code is read once and nothing is done with it but one multiplication, so the time is that of reading:
    a quarter of the bytes of float32.
    """

    def __init__(self, codes_VD: np.ndarray, scales_V: Floats) -> None:
        import openvino
        from openvino import opset13 as ops

        vector_1D = ops.parameter([1, codes_VD.shape[1]], np.float32)
        items_VD = ops.multiply(
            ops.convert(ops.constant(codes_VD), np.float32),
            ops.constant(scales_V[:, None]),
        )
        scores_1V = ops.matmul(vector_1D, items_VD, transpose_a=False, transpose_b=True)
        settings = {**SETTINGS, "INFERENCE_NUM_THREADS": 1}
        self._compiled = openvino.Core().compile_model(openvino.Model([scores_1V], [vector_1D]), "CPU", settings)
        self._tensor = openvino.Tensor
        self._local = threading.local()

    def __call__(self, vector_D: Floats) -> Floats:
        """A fresh array."""
        if not hasattr(self._local, "request"):
            self._local.request = self._compiled.create_infer_request()
        request = self._local.request
        request.set_input_tensor(self._tensor(np.ascontiguousarray(vector_D[None], dtype=np.float32)))
        request.infer(share_outputs=True)
        scores_V: Floats = request.get_output_tensor().data[0].copy()
        return scores_V
