"""What making a model small saves: size and time of one full window, before and after."""

import time
from collections.abc import Callable

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from recsys.contracts.ids import Tokens
from recsys.model.checkpoint import Checkpoint
from recsys.model.reference import encode
from recsys.runtime.engine import Engine

NUM_ROUNDS = 7
_WARM_UP_ROUNDS = 2


class EncodingCost(BaseModel):
    """Of the float32 model, run eagerly by torch, and of the engine that serves."""

    model_config = ConfigDict(frozen=True)
    float32_mb: float
    """All weights, 4 bytes each, in 10^6 bytes."""
    float32_encode_ms: float | None
    """None where the engine computes on a GPU: the eager model runs on the CPU, so they would differ by the device."""
    engine_encode_ms: float
    """Median of one full window, each in turn on the machine that made the release."""


def measure(checkpoint: Checkpoint, engine: Engine, num_threads: int, seed: int, *, same_device: bool) -> EncodingCost:
    """Both on the same window of random items; the engine alone unless it computes on the CPU (`same_device`)."""
    window = np.random.default_rng(seed).integers(1, len(checkpoint.vocabulary) + 1, checkpoint.window.size)
    windows: list[Tokens] = [window.astype(np.int32)]
    encoders: list[Callable[[], object]] = [lambda: engine.encode(windows)]
    if same_device:
        encoders.append(lambda: encode(checkpoint.model, windows))
    samples: list[list[float]] = [[] for _ in encoders]
    threads_before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        for _ in range(NUM_ROUNDS + _WARM_UP_ROUNDS):
            for encoder, milliseconds in zip(encoders, samples, strict=True):
                milliseconds.append(_timed_ms(encoder))
    finally:
        torch.set_num_threads(threads_before)
    after, *before = (round(float(np.median(each[_WARM_UP_ROUNDS:])), 3) for each in samples)
    num_weights = sum(parameter.numel() for parameter in checkpoint.model.parameters())
    return EncodingCost(
        float32_mb=round(num_weights * 4 / 1e6, 2),
        float32_encode_ms=before[0] if before else None,
        engine_encode_ms=after,
    )


def _timed_ms(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1000
