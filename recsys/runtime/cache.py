"""Keys and values of a session: rows of events that grow at the end without being copied."""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

# B sessions, C kept events (padded), E new events; the other axes are the engine's

Array = npt.NDArray[Any]

BLOCK = 64
"""Room is made, and shown to the engine, in steps of so many events: engines see few distinct shapes."""


class EventRows:
    """Arrays with one row per event, shared by the sessions that grew out of one another.

    A session reads its first `length` rows; they are never written again. The session that holds the last row
    may be continued in place; a second continuation of the same session copies.
    """

    def __init__(self, arrays: Sequence[Array], num_filled: int) -> None:
        self._arrays = tuple(arrays)
        self._num_filled = num_filled
        self._lock = threading.Lock()

    @classmethod
    def of(cls, rows: Sequence[Array]) -> "EventRows":
        """A copy of these rows with room for a few more."""
        num_rows = len(rows[0])
        fresh = cls([np.zeros((rounded_up(num_rows), *part.shape[1:]), part.dtype) for part in rows], 0)
        fresh._write(0, rows)
        return fresh

    @property
    def size_bytes(self) -> int:
        """Memory of the arrays, room included."""
        return sum(part.nbytes for part in self._arrays)

    def first(self, num_rows: int) -> tuple[Array, ...]:
        """The first rows of each array, `num_rows` rounded up as far as there is room; no copy."""
        return tuple(part[: rounded_up(num_rows)] for part in self._arrays)

    def extended(self, length: int, rows: Sequence[Array]) -> "EventRows":
        """The first `length` rows and then these: in place where nobody continued from there, else a copy."""
        with self._lock:
            if self._num_filled == length and length + len(rows[0]) <= len(self._arrays[0]):
                self._write(length, rows)
                return self
        pairs = zip(self._arrays, rows, strict=True)
        return EventRows.of([np.concatenate([part[:length], new]) for part, new in pairs])

    def _write(self, start: int, rows: Sequence[Array]) -> None:
        stop = start + len(rows[0])
        for part, new in zip(self._arrays, rows, strict=True):
            part[start:stop] = new
        self._num_filled = stop


def rounded_up(num_rows: int) -> int:
    """The next multiple of `BLOCK`."""
    return -(-num_rows // BLOCK) * BLOCK


def stacked(caches: Sequence[EventRows], lengths: Sequence[int]) -> list[Array]:
    """The caches of a batch, arrays of shape [B, C, …], zeros where a session is shorter; no copy for one."""
    views = [cache.first(length) for cache, length in zip(caches, lengths, strict=True)]
    if len(views) == 1:
        return [part[None] for part in views[0]]
    longest = max(len(view[0]) for view in views)
    batch = []
    for parts in zip(*views, strict=True):
        whole = np.zeros((len(parts), longest, *parts[0].shape[1:]), parts[0].dtype)
        for row, part in enumerate(parts):
            whole[row, : len(part)] = part
        batch.append(whole)
    return batch
