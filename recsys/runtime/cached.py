"""What engines of two graphs share: batches of similar length, sessions, growing caches.

An engine of this kind computes `OpenWindow` and `AppendEvents` of `recsys/model/incremental.py`; the rest is here.
`CachedEngine` appends to many sessions at once, which pays on a GPU, `SessionEngine` leaves appending to its heirs.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from recsys.contracts.ids import Floats, Tokens
from recsys.contracts.precision import CacheFormat
from recsys.runtime.cache import BLOCK, EventRows
from recsys.runtime.engine import EngineInfo, Session
from recsys.windows import padded, similar_lengths

# B batch, L window length, E new events, D width, N layers, H heads, K head_dim


class SessionEngine(ABC):
    """An `Engine` whose sessions keep keys and values. Thread-safe if its graphs are, or if `turn` is a lock."""

    rows: type[EventRows] = EventRows
    """Where keys and values of a session live."""
    max_batch: int | None = None
    """Most windows that a graph takes at once."""

    def __init__(self, info: EngineInfo, turn: AbstractContextManager[Any] | None = None) -> None:
        self._info = info
        self._turn = nullcontext() if turn is None else turn

    @abstractmethod
    def _open(self, tokens_BL: Tokens, last_B: Tokens) -> list[Any]:
        """The user vectors (numpy, [B, D]) and the arrays to keep ([B, L, …]), valid until the next call."""

    @abstractmethod
    def _longer(self, sessions: Sequence[Session], events: Sequence[Tokens]) -> list[Session]:
        """What `append` returns; there is room for the events. Whoever computes here takes his `turn`."""

    @property
    def info(self) -> EngineInfo:
        """Name, precision, width and limits."""
        return self._info

    def encode(self, windows: Sequence[Tokens]) -> Floats:
        """One user vector per window, shape [B, D]. No window is empty."""
        vectors_BD = np.empty((len(windows), self._info.width), dtype=np.float32)
        for chosen in self._batches([len(window) for window in windows]):
            tokens_BL, last_B = padded([windows[i] for i in chosen])
            with self._turn:
                vectors_BD[chosen] = self._open(tokens_BL, last_B)[0]
        return vectors_BD

    def open(self, windows: Sequence[Tokens]) -> list[Session]:
        """See `Engine.open`."""
        sessions: dict[int, Session] = {}
        for chosen in self._batches([len(window) for window in windows]):
            tokens_BL, last_B = padded([windows[i] for i in chosen])
            with self._turn:
                vector_BD, *kept = self._open(tokens_BL, last_B)
                for row, i in enumerate(chosen):
                    length = int(last_B[row]) + 1
                    rows = self.rows.of([part[row, :length] for part in kept])
                    sessions[i] = Session(vector_BD[row].copy(), length, rows.size_bytes, rows)
        return [sessions[i] for i in range(len(windows))]

    def append(self, sessions: Sequence[Session], events: Sequence[Tokens]) -> list[Session]:
        """See `Engine.append`."""
        for session, new in zip(sessions, events, strict=True):
            if session.length + len(new) > self._info.window_size:
                raise ValueError(
                    f"{session.length} events and {len(new)} more do not fit into a window of "
                    f"{self._info.window_size}; open the next window"
                )
        return self._longer(sessions, events)

    def kept(self, session: Session) -> Floats:
        """See `Engine.kept`."""
        with self._turn:
            rows = session.cache.on_host(session.length)
        if self._info.cache is CacheFormat.INT8:
            codes, scales = rows[: len(rows) // 2], rows[len(rows) // 2 :]
            rows = [part * scale[..., None] for part, scale in zip(codes, scales, strict=True)]
        return np.stack(rows, axis=1)

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Places of similar lengths, no more at a time than a graph takes."""
        for chosen in similar_lengths(lengths):
            size = self.max_batch or len(chosen)
            yield from (chosen[start : start + size] for start in range(0, len(chosen), size))

    def warm_up(self) -> None:
        """Open long and short windows and continue them once, so that kernels and memory are in place.

        The longest comes first: an engine takes its memory anew where a window is longer than any before it, and
        what it gives up piecemeal stays with the process.
        """
        one, size = np.ones(1, dtype=np.int32), self._info.window_size
        self.open([np.ones(size, dtype=np.int32)])
        for length in sorted({1, min(BLOCK, size - 1), size - 1}, reverse=True):
            self.append(self.open([np.ones(length, dtype=np.int32)]), [one])


class CachedEngine(SessionEngine):
    """An engine made of the two graphs, each of which takes many sessions at once."""

    max_new: int | None = None
    """Most new events of a session that a graph takes at once."""

    @abstractmethod
    def _append(self, tokens_BE: Tokens, last_B: Tokens, lengths_B: Tokens, caches: Sequence[EventRows]) -> list[Any]:
        """The user vectors and the arrays of the new events ([B, E, …]), valid until the next call."""

    def _longer(self, sessions: Sequence[Session], events: Sequence[Tokens]) -> list[Session]:
        appended: dict[int, Session] = {}
        for chosen in self._batches([session.length for session in sessions]):
            longer, rest = [sessions[i] for i in chosen], [events[i] for i in chosen]
            step = self.max_new or max(len(new) for new in rest)
            with self._turn:
                while unread := [i for i in range(len(rest)) if len(rest[i])]:
                    now = self._continued([longer[i] for i in unread], [rest[i][:step] for i in unread])
                    for i, session in zip(unread, now, strict=True):
                        longer[i], rest[i] = session, rest[i][step:]
            appended.update(zip(chosen, longer, strict=True))
        return [appended[i] for i in range(len(sessions))]

    def _continued(self, sessions: Sequence[Session], events: Sequence[Tokens]) -> list[Session]:
        """One batch of sessions of similar length."""
        tokens_BE, last_B = padded(events)
        lengths_B = np.array([session.length for session in sessions], dtype=np.int32)
        vector_BD, *fresh = self._append(tokens_BE, last_B, lengths_B, [session.cache for session in sessions])
        longer = []
        for row, session in enumerate(sessions):
            rows = session.cache.extended(session.length, [part[row, : last_B[row] + 1] for part in fresh])
            length = session.length + int(last_B[row]) + 1
            longer.append(Session(vector_BD[row].copy(), length, rows.size_bytes, rows))
        return longer
