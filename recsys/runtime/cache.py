"""Keys and values of a session: rows of events that grow at the end without being copied."""

import threading
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

# B sessions, C kept events (padded), E new events; the other axes are the engine's

BLOCK = 64
"""Room is made, and shown to the engine, in steps of so many events: engines see few distinct shapes."""


class EventRows:
    """Arrays with one row per event, shared by the sessions that grew out of one another.

    A session reads its first `length` rows; they are never written again. The session that holds the last row
    may be continued in place; a second continuation of the same session copies. An engine whose caches live on a
    device overrides `_zeros` and `_here`; its arrays are sliced, written and measured (`nbytes`) like numpy's.
    """

    def __init__(self, arrays: Sequence[Any], num_filled: int) -> None:
        self._arrays = tuple(arrays)
        self._num_filled = num_filled
        self._lock = threading.Lock()

    @classmethod
    def of(cls, rows: Sequence[Any]) -> Self:
        """A copy of these rows with room for a few more."""
        fresh = cls._room(rows, len(rows[0]))
        fresh._write(0, rows)
        return fresh

    @property
    def size_bytes(self) -> int:
        """Memory of the arrays, room included."""
        return sum(part.nbytes for part in self._arrays)

    def first(self, num_rows: int) -> tuple[Any, ...]:
        """The first rows of each array, `num_rows` rounded up as far as there is room; no copy."""
        return tuple(part[: rounded_up(num_rows)] for part in self._arrays)

    def on_host(self, num_rows: int) -> list[np.ndarray]:
        """A copy of the first rows of each array, in this process's memory; bf16 as float32."""
        return [self._here(part[:num_rows]) for part in self._arrays]

    def extended(self, length: int, rows: Sequence[Any]) -> "EventRows":
        """The first `length` rows and then these: in place where nobody continued from there, else a copy."""
        with self._lock:
            if self._num_filled == length and length + len(rows[0]) <= len(self._arrays[0]):
                self._write(length, rows)
                return self
        fresh = self._room(rows, length + len(rows[0]))
        fresh._write(0, [part[:length] for part in self._arrays])
        fresh._write(length, rows)
        return fresh

    @classmethod
    def _room(cls, like: Sequence[Any], num_rows: int) -> Self:
        return cls([cls._zeros(part, (rounded_up(num_rows), *part.shape[1:])) for part in like], 0)

    @staticmethod
    def _zeros(like: Any, shape: tuple[int, ...]) -> Any:
        """An array of zeros of the type, and on the device, of another one."""
        return np.zeros(shape, like.dtype)

    @staticmethod
    def _here(part: Any) -> np.ndarray:
        """A copy in this process's memory."""
        return np.array(part)

    def _write(self, start: int, rows: Sequence[Any]) -> None:
        stop = start + len(rows[0])
        for part, new in zip(self._arrays, rows, strict=True):
            part[start:stop] = new
        self._num_filled = stop


class Bf16Rows(EventRows):
    """float32 rows kept as bf16, rounded to the nearest, ties to even.

    numpy has no such type: the arrays are of uint16, with its bits.
    """

    @staticmethod
    def _zeros(like: Any, shape: tuple[int, ...]) -> Any:
        del like
        return np.zeros(shape, np.uint16)

    @staticmethod
    def _here(part: Any) -> np.ndarray:
        exact: np.ndarray = (part.astype(np.uint32) << 16).view(np.float32)
        return exact

    def _write(self, start: int, rows: Sequence[Any]) -> None:
        super()._write(start, [_bf16_bits(part) if part.dtype == np.float32 else part for part in rows])


def _bf16_bits(part: np.ndarray) -> np.ndarray:
    """The upper halves of float32 numbers, after half of the lower halves' range was added; ties to even."""
    bits = part.view(np.uint32)
    half = ((bits >> 16) & 1) + np.uint32(0x7FFF)
    return ((bits + half) >> 16).astype(np.uint16)


def rounded_up(num_rows: int) -> int:
    """The next multiple of `BLOCK`."""
    return -(-num_rows // BLOCK) * BLOCK


def stacked(caches: Sequence[EventRows], lengths: Sequence[int]) -> list[Any]:
    """The caches of a batch, arrays of shape [B, C, …], zeros where a session is shorter; no copy for one."""
    views = [cache.first(length) for cache, length in zip(caches, lengths, strict=True)]
    if len(views) == 1:
        return [part[None] for part in views[0]]
    longest = max(len(view[0]) for view in views)
    batch = []
    for parts in zip(*views, strict=True):
        whole = caches[0]._zeros(parts[0], (len(parts), longest, *parts[0].shape[1:]))
        for row, part in enumerate(parts):
            whole[row, : len(part)] = part
        batch.append(whole)
    return batch
