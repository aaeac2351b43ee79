"""The one function that cuts a history into windows. The batch job, training and serving all use it.

Window k of a history of n events covers [k·stride, k·stride + size). Window k + 1 opens with the first
event that does not fit into window k, so it has `overlap` events of context from its first moment. All
windows but the last are closed and never change again; the last is open.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from pydantic import Field, model_validator

from recsys.contracts.config import Config
from recsys.contracts.ids import PAD, Tokens

_NEW_WINDOWS = 5
"""Windows of a training row beside those that are read of, where there are summaries."""


_LEAST_STRIDE = 4
"""Where there are summaries: a release is checked by the last three events of a window."""


class WindowConfig(Config):
    """How histories are cut. The defaults are the shop's: 1,024 events, 30 % overlap."""

    size: int = Field(default=1024, ge=2, le=65_536)
    """Events in a full window."""
    overlap_share: float = Field(default=0.30, ge=0.0, lt=1.0)
    """Share of a window that the next one repeats."""
    num_summaries: int = Field(default=3, ge=0)
    """Closed windows before the open one that may reach the user vector. Nothing before them matters."""
    summary_tokens: int = Field(default=0, ge=0, le=64)
    """Vectors that a closed window leaves to the windows after it, which read them ahead of their events; 0: the
    decoder reads the open window alone."""

    @model_validator(mode="after")
    def _stride_is_positive(self) -> Self:
        if self.stride < 1:
            raise ValueError(f"overlap_share {self.overlap_share} leaves no stride in a window of {self.size}")
        if self.summary_tokens and not self.num_summaries:
            raise ValueError(f"summary_tokens = {self.summary_tokens}, and num_summaries = 0: nobody would read them")
        if self.summary_tokens and self.stride < _LEAST_STRIDE:
            raise ValueError(f"windows of {self.size} with a stride of {self.stride}: summaries need {_LEAST_STRIDE}")
        return self

    @property
    def overlap(self) -> int:
        """Events shared by consecutive windows: 307 by default."""
        return round(self.size * self.overlap_share)

    @property
    def stride(self) -> int:
        """Events from one window's start to the next one's: 717 by default."""
        return self.size - self.overlap

    @property
    def reach(self) -> int:
        """Least number of last events covered by the open window and its summaries once all are full."""
        return self.num_summaries * self.stride + self.overlap + 1

    @property
    def most_rows(self) -> int:
        """Most vectors that a decoder reads at once: a full window with the summaries before it."""
        return self.size + self.num_summaries * self.summary_tokens

    @property
    def longest_context(self) -> int:
        """Most events of an `answer_context`."""
        return self.size + (self.num_summaries * self.stride if self.summary_tokens else 0)

    @property
    def training_rows(self) -> Self:
        """How histories are cut for training: rows of several windows where they read one another's summaries.

        The part that two rows share is context for the second, as long as what an answer may read.
        """
        if not self.summary_tokens:
            return self
        size = self.size + (self.num_summaries + _NEW_WINDOWS - 1) * self.stride
        return self.model_copy(update={"size": size, "overlap_share": self.reach / size, "summary_tokens": 0})

    @classmethod
    def for_context(cls, context: int) -> Self:
        """The general rule: windows of 80 % of a context, 20 % overlap."""
        return cls(size=max(2, round(0.8 * context)), overlap_share=0.20)


@dataclass(frozen=True, slots=True)
class Window:
    """Events [start, stop) of a history."""

    k: int
    start: int
    stop: int
    first_target: int
    """First event, counted from the history's start, that this window predicts. Events before it are
    context: they were predicted in the window before, or there is nothing before them."""

    def __len__(self) -> int:
        return self.stop - self.start


def num_windows(num_events: int, config: WindowConfig) -> int:
    """1 if the history fits into one window, else 1 + ceil((n - size) / stride)."""
    if num_events < 0:
        raise ValueError(f"num_events = {num_events}, expected 0 or more")
    if num_events <= config.size:
        return 1
    return 1 + -(-(num_events - config.size) // config.stride)


def window_at(k: int, num_events: int, config: WindowConfig) -> Window:
    """Window k of a history of `num_events`."""
    if not 0 <= k < num_windows(num_events, config):
        raise ValueError(
            f"window {k} of a history of {num_events} events with {num_windows(num_events, config)} windows"
        )
    start = k * config.stride
    first_target = start + (config.overlap if k else 1)
    return Window(k, start, min(start + config.size, num_events), max(1, first_target))


def cut(num_events: int, config: WindowConfig) -> list[Window]:
    """All windows of a history, in order; the last one is open. An empty history has one empty window."""
    return [window_at(k, num_events, config) for k in range(num_windows(num_events, config))]


def serving_windows(num_events: int, config: WindowConfig) -> list[Window]:
    """The windows an answer may read: up to `num_summaries` closed ones, then the open one."""
    last = num_windows(num_events, config) - 1
    return [window_at(k, num_events, config) for k in range(max(0, last - config.num_summaries), last + 1)]


def open_window(tokens: Tokens, config: WindowConfig) -> Tokens:
    """The events of the open window of a kept history, shape [n] -> [at most size]."""
    window = serving_windows(len(tokens), config)[-1]
    return tokens[window.start : window.stop]


def reachable(tokens: Tokens, config: WindowConfig) -> Tokens:
    """The events that may matter for an answer: from the first serving window on."""
    return tokens[serving_windows(len(tokens), config)[0].start :]


def answer_context(tokens: Tokens, config: WindowConfig) -> Tokens:
    """The events of a kept history that its encoding is made of: `reachable` with summaries, else `open_window`."""
    return reachable(tokens, config) if config.summary_tokens else open_window(tokens, config)


def digest(tokens: Tokens) -> str:
    """What a window is known by beside (release, user, k): a hash of its events."""
    return hashlib.blake2b(np.ascontiguousarray(tokens, dtype="<i4").tobytes(), digest_size=16).hexdigest()


def similar_lengths(lengths: Sequence[int], max_tokens: int = 16_384) -> Iterator[list[int]]:
    """Positions in `lengths`, in batches of similar length.

    A batch holds at most `max_tokens` padded tokens, and padding is at most a quarter of it.
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    start = 0
    while start < len(order):
        stop = start + 1
        shortest = lengths[order[start]]
        while stop < len(order):
            longest = lengths[order[stop]]
            if (stop + 1 - start) * longest > max_tokens or longest * 3 > max(shortest, 1) * 4:
                break
            stop += 1
        yield order[start:stop]
        start = stop


def padded(windows: Sequence[Any]) -> tuple[Any, Tokens]:
    """(tokens_BL padded at the end, last_B): `last_B` is the position of each window's last event.

    Where an event is a row of several numbers, or a vector, so it is in `tokens_BL`.
    """
    last_B = np.array([len(window) - 1 for window in windows], dtype=np.int32)
    assert last_B.min() >= 0, "an empty window cannot be encoded"
    dtype = np.float32 if windows[0].dtype.kind == "f" else np.int32
    tokens_BL = np.full((len(windows), int(last_B.max()) + 1, *windows[0].shape[1:]), PAD, dtype=dtype)
    for row, window in enumerate(windows):
        tokens_BL[row, : len(window)] = window
    return tokens_BL, last_B


def padded_batches(windows: Sequence[Tokens], max_tokens: int = 16_384) -> Iterator[tuple[list[int], Tokens, Tokens]]:
    """Batches of similar length: (positions in `windows`, tokens_BL padded at the end, last_B)."""
    for chosen in similar_lengths([len(window) for window in windows], max_tokens):
        yield chosen, *padded([windows[i] for i in chosen])
