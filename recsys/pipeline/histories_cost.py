"""What answers cost by each way to read a long history: measured of the very models that are compared."""

# L events read, N closed windows of W events, M vectors of a summary, D width

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys.contracts.ids import Tokens
from recsys.contracts.precision import CacheFormat
from recsys.model.config import ModelConfig
from recsys.model.decoder import SequenceModel
from recsys.model.flops import encode_flops
from recsys.model.incremental import OpenWindow
from recsys.model.long_range import BandedModel, OpenBand, RollingCache
from recsys.model.summaries import SummaryModel
from recsys.windows import num_windows

CACHE = CacheFormat.INT8
"""How sessions are kept, of all ways alike: as by the default."""
_ROUNDS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """How one model answers for a history; calls return the user vector, shape [1, D]."""

    cold: Callable[[], Tensor]
    """From the events alone."""
    stored: Callable[[], Tensor] | None = None
    """With stored summaries of closed windows; None: the model reads none, so as `cold`."""
    warm: Callable[[], Tensor] | None = None
    """One more event, appended to a session of those before it; None: nothing can be kept, so as `cold`."""
    session: RollingCache | None = None
    cold_flops: int
    warm_flops: int


@torch.inference_mode()
def measure(answers: Answers) -> dict[str, float]:
    """Milliseconds and FLOPs of a first answer and of one more event, and the bytes of a session.

    In eager torch, medians.
    """
    cold_ms = _median_ms(answers.cold)
    rows = [] if answers.session is None else answers.session.rows
    return {
        "cold_ms": round(cold_ms, 2),
        "cold_stored_ms": round(cold_ms if answers.stored is None else _median_ms(answers.stored), 2),
        "warm_ms": round(cold_ms if answers.warm is None else _median_ms(answers.warm), 3),
        "cold_mflop": round(answers.cold_flops / 1e6, 1),
        "warm_mflop": round(answers.warm_flops / 1e6, 3),
        "session_kb": round(sum(part.nbytes for part in rows) / 1e3, 1),
    }


def last_window(model: SequenceModel, tokens: Tokens, cache: CacheFormat = CACHE) -> Answers:
    """One pass over the open window; later events are appended to what it leaves."""
    events_1LD, opened = _embedded(model, tokens), _opening(model, cache)
    session, warm = _appending(model, events_1LD, cache)
    return Answers(
        cold=lambda: opened(events_1LD)[0],
        warm=warm,
        session=session,
        cold_flops=_flops(len(tokens), model.config),
        warm_flops=_step_flops(len(tokens), model.config),
    )


def summaries(model: SequenceModel, tokens: Tokens, cache: CacheFormat = CACHE) -> Answers:
    """A pass over each closed window, and one over the open window with their summaries ahead.

    FLOPs are without the projection of summaries.
    """
    assert isinstance(model, SummaryModel)
    window, config, plain = model.window, model.config, model.without_summaries()
    events_1LD = _embedded(model, tokens)
    num_closed = num_windows(len(tokens), window) - 1
    closed_NWD = events_1LD[0].unfold(0, window.size, window.stride)[:num_closed].transpose(1, 2)
    open_1LD = events_1LD[:, num_closed * window.stride :]

    def read() -> Tensor:
        return torch.cat([model.summaries(closed_NWD).flatten(0, 1)[None], open_1LD], dim=1)

    with torch.inference_mode():
        read_1LD = read()
    session, warm = _appending(plain, read_1LD, cache)
    opened, num_rows = _opening(plain, cache), read_1LD.shape[1]
    return Answers(
        cold=lambda: opened(read())[0],
        stored=lambda: opened(read_1LD)[0],
        warm=warm,
        session=session,
        cold_flops=_flops(num_rows, config) + num_closed * _flops(window.size + model.num_summary_vectors, config),
        warm_flops=_step_flops(num_rows, config),
    )


def full_attention(model: SequenceModel, tokens: Tokens, cache: CacheFormat = CACHE) -> Answers:
    """One pass, anew for each event: the oldest that it reads leaves with each new one, which changes all states."""
    events_1LD, opened, flops = _embedded(model, tokens), _opening(model, cache), _flops(len(tokens), model.config)
    return Answers(cold=lambda: opened(events_1LD)[0], cold_flops=flops, warm_flops=flops)


def band(model: SequenceModel, tokens: Tokens, cache: CacheFormat = CACHE) -> Answers:
    """One pass in which each event sees the band before it; later events are appended to a rolling cache.

    FLOPs of the pass are those of the band, blocks of attention do somewhat more.
    """
    assert isinstance(model, BandedModel)
    config, num_before = model.config, len(tokens) - 1
    events_1LD = _embedded(model, tokens)
    graph, session = OpenBand(model, cache).eval(), RollingCache(model, cache, model.band - 1)
    with torch.inference_mode():
        session.fill(graph(events_1LD[:, :-1])[1:], num_before)
    step = _step_flops(model.band, config)
    return Answers(
        cold=lambda: graph(events_1LD)[0],
        warm=lambda: session.append(events_1LD[:, -1:], num_before),
        session=session,
        cold_flops=_flops(model.band, config) + (len(tokens) - model.band) * step,
        warm_flops=step,
    )


def _embedded(model: SequenceModel, tokens: Tokens) -> Tensor:
    with torch.inference_mode():
        return model.embed(torch.from_numpy(tokens).long()[None])


def _opening(model: SequenceModel, cache: CacheFormat) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """events_1LD -> (vector_1D, *kept)."""
    graph = OpenWindow(model, cache).eval()
    return lambda events_1LD: graph(events_1LD, torch.tensor([events_1LD.shape[1] - 1]))


def _appending(
    model: SequenceModel, events_1LD: Tensor, cache: CacheFormat
) -> tuple[RollingCache, Callable[[], Tensor]]:
    """A session of all but the last event, with room for it, and the call that appends it."""
    num_before = events_1LD.shape[1] - 1
    session = RollingCache(model, cache, num_before + 1)
    with torch.inference_mode():
        session.fill(_opening(model, cache)(events_1LD[:, :-1])[1:], num_before)
    return session, lambda: session.append(events_1LD[:, -1:], num_before)


def _flops(num_events: int, config: ModelConfig) -> int:
    return encode_flops(num_events, config)[1]


def _step_flops(num_kept: int, config: ModelConfig) -> int:
    """One more event after `num_kept` − 1 others."""
    return _flops(num_kept, config) - _flops(num_kept - 1, config)


def _median_ms(call: Callable[[], Any]) -> float:
    seconds = []
    for _ in range(_ROUNDS + 2):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return 1000 * float(np.median(seconds[2:]))
