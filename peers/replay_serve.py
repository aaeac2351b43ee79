"""Time RePlay's compiled SasRec on one user: `replay_serve.py OUT.json ITEMS WIDTH LAYERS HEADS LENGTH THREADS ROUNDS`.

OpenVINO in float32: its own choice on processors that have bf16 would change the lists. Weights are untrained,
which costs the same. Every answer encodes the whole history again: it keeps nothing between calls.
"""

import json
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

WARM_UP_ROUNDS, K = 2, 10


class Float32Core(ov.Core):
    """RePlay makes its own core and sets the threads; this one sets the arithmetic too."""

    def __init__(self) -> None:
        super().__init__()
        self.set_property("CPU", {"INFERENCE_PRECISION_HINT": "f32"})


started = time.monotonic()
out, *numbers = sys.argv[1:]
num_items, width, num_layers, num_heads, length, threads, rounds = map(int, numbers)
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


milliseconds, first_s = [], 0.0
for round_ in range(WARM_UP_ROUNDS + rounds):
    before = time.perf_counter()
    answer()
    first_s = first_s or time.monotonic() - started
    if round_ >= WARM_UP_ROUNDS:
        milliseconds.append((time.perf_counter() - before) * 1000)
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
values = {
    "p50_ms": sorted(milliseconds)[len(milliseconds) // 2],
    "load_s": first_s,
    "peak_mb": int(peak.split()[1]) * 1024 / 1e6,
}
Path(out).write_text(json.dumps(values))
