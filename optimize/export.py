"""From a torch checkpoint to a saved OpenVINO graph with fused attention."""

import contextlib
import io
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recsys.model.checkpoint import Checkpoint
from recsys.model.decoder import UserEncoder
from recsys.runtime.openvino import GRAPH_FILE


def build_engine(checkpoint: Checkpoint, folder: Path, bits: int) -> str:
    """Write the CPU engine into `folder`; returns its precision by name.

    The graph is exported once and rounded once. AWQ's scales belong between `to_graph` and
    `round_weights`: folded into the float model before the export, so that every engine gets them.
    """
    import openvino

    graph = to_graph(checkpoint)
    precision = "float32"
    if bits == 8:
        graph = round_weights(graph)
        precision = "int8 weights, float32 arithmetic"
    openvino.save_model(graph, folder / GRAPH_FILE, compress_to_fp16=False)
    return precision


def to_graph(checkpoint: Checkpoint) -> Any:
    """The user encoder as an OpenVINO model with free batch and length; inputs tokens_BL, last_B (int32)."""
    import openvino

    encoder = UserEncoder(checkpoint.model).eval()
    example = (
        torch.ones((2, min(16, checkpoint.window.size)), dtype=torch.int32),
        torch.tensor([3, 1], dtype=torch.int32),
    )
    batch = torch.export.Dim("batch", min=1, max=65_536)
    length = torch.export.Dim("length", min=1, max=checkpoint.window.size)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        program = torch.export.export(encoder, example, dynamic_shapes=({0: batch, 1: length}, {0: batch}))
        return openvino.convert_model(program)


def round_weights(graph: Any) -> Any:
    """Every weight matrix and the item table rounded to 8 bits, symmetric, one scale per output channel."""
    import nncf

    nncf.set_log_level(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):
        return nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_SYM)


def item_vectors(checkpoint: Checkpoint) -> "np.ndarray[Any, np.dtype[np.float32]]":
    """What the index is built from: the output vectors of all items, shape [V, D]."""
    return checkpoint.model.items_VD.detach().numpy()
