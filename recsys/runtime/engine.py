"""What an engine is: token windows in, user vectors out. Adding one is one file with this shape."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from recsys.contracts.ids import PAD, Floats, Tokens

# B batch, L window length, D width


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What an engine says of itself."""

    name: str
    precision: str
    width: int
    num_threads: int


class Engine(Protocol):
    """Encodes windows. Thread-safe."""

    @property
    def info(self) -> EngineInfo:
        """Name, precision and width."""
        ...

    def encode(self, windows: Sequence[Tokens]) -> Floats:
        """One user vector per window, shape [B, D]. No window is empty."""
        ...

    def warm_up(self) -> None:
        """Pay for first-call work before the first request does."""
        ...


def padded_batches(windows: Sequence[Tokens], max_tokens: int = 16_384) -> Iterator[tuple[list[int], Tokens, Tokens]]:
    """Batches of similar length: (positions in `windows`, tokens_BL padded at the end, last_B).

    `last_B` is the position of each window's last event. A batch holds at most `max_tokens` padded
    tokens, and padding is at most a quarter of it.
    """
    order = sorted(range(len(windows)), key=lambda i: len(windows[i]))
    start = 0
    while start < len(order):
        stop = start + 1
        shortest = len(windows[order[start]])
        while stop < len(order):
            longest = len(windows[order[stop]])
            if (stop + 1 - start) * longest > max_tokens or longest * 3 > max(shortest, 1) * 4:
                break
            stop += 1
        chosen = order[start:stop]
        last_B = np.array([len(windows[i]) - 1 for i in chosen], dtype=np.int32)
        assert last_B.min() >= 0, "an empty window cannot be encoded"
        tokens_BL = np.full((len(chosen), int(last_B.max()) + 1), PAD, dtype=np.int32)
        for row, i in enumerate(chosen):
            tokens_BL[row, : len(windows[i])] = windows[i]
        yield chosen, tokens_BL, last_B
        start = stop
