"""RePlay's compiled SasRec on one user: `replay_serve.py ITEMS WIDTH LAYERS HEADS LENGTH THREADS`.

Once it has answered for the first time it writes a line of JSON: seconds since the process started. Then, for each
line that it reads, it answers once and writes a line: milliseconds of that answer, and the most memory so far.

OpenVINO in float32: its own choice on processors that have bf16 would change the lists. Weights are untrained,
which costs the same. Every answer encodes the whole history again: it keeps nothing between calls.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import openvino as ov
import torch
from replay.data import FeatureHint, FeatureSource, FeatureType
from replay.data.nn import TensorFeatureInfo, TensorFeatureSource, TensorSchema
from replay.models.nn.sequential.compiled import SasRecCompiled
from replay.models.nn.sequential.sasrec import SasRec

K = 10


class Float32Core(ov.Core):
    """RePlay makes its own core and sets the threads; this one sets the arithmetic too."""

    def __init__(self) -> None:
        super().__init__()
        self.set_property("CPU", {"INFERENCE_PRECISION_HINT": "f32"})


replies = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)  # whatever else is printed is no reply
num_items, width, num_layers, num_heads, length, threads = map(int, sys.argv[1:])
torch.set_num_threads(threads)
torch.manual_seed(0)
ov.Core = Float32Core
schema = TensorSchema(
    TensorFeatureInfo(
        name="item_id",
        is_seq=True,
        cardinality=num_items,
        padding_value=num_items,
        embedding_dim=width,
        feature_type=FeatureType.CATEGORICAL,
        feature_hint=FeatureHint.ITEM_ID,
        feature_sources=[TensorFeatureSource(FeatureSource.INTERACTIONS, "item_id")],
    )
)
model = SasRec(
    schema, block_count=num_layers, head_count=num_heads, hidden_size=width, max_seq_len=length, loss_type="CE"
)
compiled = SasRecCompiled.compile(model.eval(), mode="one_query", num_threads=threads)


def answer() -> Any:
    """The ten best items after a history of full length."""
    inputs = {"item_id": torch.randint(0, num_items, (1, length))}
    batch = {"feature_tensor": inputs, "padding_mask": torch.ones(1, length, dtype=torch.bool)}
    return torch.topk(compiled.predict(batch), K)


def age_s() -> float:
    """Seconds since this process started, by Linux' own record of it."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def peak_mb() -> float:
    """The most memory that this process has held."""
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) * 1024 / 1e6


answer()
print(json.dumps({"load_s": age_s()}), file=replies)
for _ in sys.stdin:
    before = time.perf_counter()
    answer()
    milliseconds = (time.perf_counter() - before) * 1000
    print(json.dumps({"ms": milliseconds, "peak_mb": peak_mb()}), file=replies)
