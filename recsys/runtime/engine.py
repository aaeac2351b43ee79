"""What an engine is: token windows in, user vectors out. Adding one is one file with this shape.

A window, or new events, may also come as the vectors that its tokens stand for, shape [L, D]: so summaries of earlier
windows are read (`recsys/runtime/summaries.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from recsys.contracts.ids import Floats, Tokens
from recsys.contracts.precision import CacheFormat

# B batch, L window length, D width, N layers, H heads, K head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What an engine says of itself."""

    name: str
    precision: str
    width: int
    num_threads: int
    window_size: int
    """Most events of a window."""
    cache: CacheFormat
    """How sessions keep keys and values."""


@dataclass(frozen=True, slots=True)
class Session:
    """An encoded open window: its user vector and what one more event needs. `append` makes a new one."""

    vector_D: Floats
    """The user vector after the last event."""
    length: int
    """Events encoded, at most the window's size."""
    size_bytes: int
    """What keeping it costs."""
    cache: Any
    """The engine's own: keys and values of the events so far."""


class Engine(Protocol):
    """Encodes windows. Thread-safe."""

    @property
    def info(self) -> EngineInfo:
        """Name, precision and width."""
        ...

    def encode(self, windows: Sequence[Tokens]) -> Floats:
        """One user vector per window, shape [B, D]. No window is empty."""
        ...

    def open(self, windows: Sequence[Tokens]) -> list[Session]:
        """Encode windows and keep what later events need. No window is empty."""
        ...

    def append(self, sessions: Sequence[Session], events: Sequence[Tokens]) -> list[Session]:
        """Each session with its new events, at least one; the sessions given stay as they are.

        Equal to `open` of the longer window within the rounding of the cache (see `docs/extend.md`).

        Raises:
            ValueError: a window would grow beyond its size; open the next one.
        """
        ...

    def kept(self, session: Session) -> Floats:
        """Keys (rotated) and values of the session's events, layer after layer, shape [L, 2N, H, K]; a copy.

        float16 where that is what the session keeps. What a comparison by layer looks at; no answer needs it.
        """
        ...

    def warm_up(self) -> None:
        """Pay for first-call work before the first request does."""
        ...
