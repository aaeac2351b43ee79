"""What reading a history of 2,048 events costs by each way to do it, at the size that is served."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from recsys.contracts.precision import CacheFormat
from recsys.model.config import ModelConfig
from recsys.model.decoder import SequenceModel, UserEncoder
from recsys.model.flops import encode_flops
from recsys.model.incremental import AppendEvents, OpenWindow
from recsys.model.long_range import BandedModel
from recsys.training.config import Recipe
from recsys.windows import WindowConfig

EVENTS = 2048
NUM_ITEMS = 10_000
_ROUNDS = 7
_CACHE_BYTES = 2
"""Of a number that a session keeps as float16. As int8, the default, it is about half of that, of every way alike."""


def run(summary_tokens: int = 4) -> dict[str, Any]:
    """By way: milliseconds and FLOPs of a first answer and of one more event, and the bytes of a session.

    Random weights of the default recipe in eager torch, one thread, medians. A full open window is the worst case.
    """
    config, window = Recipe.load("default").model, WindowConfig()
    prefix = window.num_summaries * summary_tokens
    model = SequenceModel(config, NUM_ITEMS, 2 * EVENTS).eval()
    band = BandedModel(config, NUM_ITEMS, 2 * EVENTS, window.size).eval()
    open_ms, summary_ms = _open_ms(model, window.size), _open_ms(model, window.size + summary_tokens)
    step_ms = _step_ms(model, window.size)
    full_ms = _open_ms(model, EVENTS)
    opened, summary = _flops(window.size, config), _flops(window.size + summary_tokens, config)
    read = _flops(prefix + window.size, config)
    with_prefix_ms = _open_ms(model, prefix + window.size)
    step = _step_flops(window.size, config)
    rows = {
        "last window": (open_ms, open_ms, step_ms, opened, step, window.size),
        "summaries": (
            with_prefix_ms + window.num_summaries * summary_ms,
            with_prefix_ms,
            _step_ms(model, prefix + window.size),
            read + window.num_summaries * summary,
            _step_flops(prefix + window.size, config),
            window.size + prefix,
        ),
        # its oldest event leaves at each new one, which changes all states: nothing can be kept
        "full attention": (full_ms, full_ms, full_ms, _flops(EVENTS, config), _flops(EVENTS, config), 0),
        "band": (_band_ms(band), _band_ms(band), step_ms, _band_flops(config, window.size), step, window.size),
    }
    return {
        "events": EVENTS,
        "window": window.size,
        "rows": {name: _row(config, *values) for name, values in rows.items()},
    }


def _row(
    config: ModelConfig, cold: float, stored: float, warm: float, cold_flops: int, warm_flops: int, kept: int
) -> dict[str, float]:
    numbers = 2 * config.num_layers * config.num_heads * config.head_dim
    return {
        "cold_ms": round(cold, 2),
        "cold_stored_ms": round(stored, 2),
        "warm_ms": round(warm, 3),
        "cold_mflop": round(cold_flops / 1e6, 1),
        "warm_mflop": round(warm_flops / 1e6, 3),
        "session_kb": round(kept * numbers * _CACHE_BYTES / 1e3, 1),
    }


def _flops(num_events: int, config: ModelConfig) -> int:
    return encode_flops(num_events, config)[1]


def _step_flops(num_kept: int, config: ModelConfig) -> int:
    """One more event after `num_kept` − 1 others."""
    return _flops(num_kept, config) - _flops(num_kept - 1, config)


def _band_flops(config: ModelConfig, size: int) -> int:
    """A pass over two windows, every event attending to one window at most; dense kernels with a mask do more."""
    return _flops(size, config) + (EVENTS - size) * _step_flops(size, config)


def _median_ms(call: Callable[[], object]) -> float:
    seconds = []
    with torch.inference_mode():
        for _ in range(_ROUNDS + 2):
            started = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - started)
    return 1000 * float(np.median(seconds[2:]))


def _open_ms(model: SequenceModel, length: int) -> float:
    graph = OpenWindow(model, CacheFormat.FLOAT32).eval()
    embedded, last = torch.randn(1, length, model.config.width), torch.tensor([length - 1])
    return _median_ms(lambda: graph(embedded, last))


def _step_ms(model: SequenceModel, num_kept: int) -> float:
    graph = AppendEvents(model, CacheFormat.FLOAT32).eval()
    config = model.config
    kept = [torch.randn(1, num_kept - 1, config.num_heads, config.head_dim) for _ in range(2 * config.num_layers)]
    event = torch.randn(1, 1, config.width)
    return _median_ms(lambda: graph(event, torch.tensor([0]), torch.tensor([num_kept - 1]), *kept))


def _band_ms(model: BandedModel) -> float:
    encoder, tokens = UserEncoder(model), torch.randint(1, NUM_ITEMS, (1, EVENTS))
    return _median_ms(lambda: encoder(tokens, torch.tensor([EVENTS - 1])))
