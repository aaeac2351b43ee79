"""Two engines as one: short windows to the first, long ones to the second, answers in the order asked."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from recsys.contracts.ids import Floats, Tokens
from recsys.runtime.engine import Engine, EngineInfo, Session

# B batch, D width

Group = tuple[Engine, list[int]]
"""An engine and the places in a batch that are its own."""


class TieredEngine:
    """Windows of up to `threshold` events to `short`, longer ones to `long`. Thread-safe if both are.

    A session stays with the engine that opened it, which holds its keys and values; when its window is opened
    again its length decides again.
    """

    def __init__(self, short: Engine, long: Engine, threshold: int) -> None:
        if (short.info.width, short.info.window_size) != (long.info.width, long.info.window_size):
            raise ValueError(f"{short.info} and {long.info} are not engines of the same release")
        self._short = short
        self._long = long
        self._threshold = threshold

    @property
    def info(self) -> EngineInfo:
        """Both engines and where they take over from one another."""
        short, long = self._short.info, self._long.info
        return replace(
            short,
            name=f"tiered: {short.name} up to {self._threshold} events, {long.name} above",
            precision=short.precision if short.precision == long.precision else f"{short.precision} | {long.precision}",
        )

    def encode(self, windows: Sequence[Tokens]) -> Floats:
        """One user vector per window, shape [B, D]. No window is empty."""
        vectors_BD = np.empty((len(windows), self._short.info.width), dtype=np.float32)
        for engine, places in self._by_length(windows):
            vectors_BD[places] = engine.encode([windows[i] for i in places])
        return vectors_BD

    def open(self, windows: Sequence[Tokens]) -> list[Session]:
        """See `Engine.open`."""
        return self._sessions(
            len(windows),
            self._by_length(windows),
            lambda engine, places: engine.open([windows[i] for i in places]),
        )

    def append(self, sessions: Sequence[Session], events: Sequence[Tokens]) -> list[Session]:
        """See `Engine.append`."""
        groups = [
            (engine, [i for i, session in enumerate(sessions) if session.cache[0] is engine])
            for engine in (self._short, self._long)
        ]
        return self._sessions(
            len(sessions),
            groups,
            lambda engine, places: engine.append(
                [replace(sessions[i], cache=sessions[i].cache[1]) for i in places], [events[i] for i in places]
            ),
        )

    def kept(self, session: Session) -> Floats:
        """See `Engine.kept`."""
        engine, cache = session.cache
        kept: Floats = engine.kept(replace(session, cache=cache))
        return kept

    def warm_up(self) -> None:
        """Both engines'."""
        self._short.warm_up()
        self._long.warm_up()

    def _by_length(self, windows: Sequence[Tokens]) -> list[Group]:
        is_long = [len(window) > self._threshold for window in windows]
        return [
            (engine, [i for i in range(len(windows)) if is_long[i] == wanted])
            for engine, wanted in ((self._short, False), (self._long, True))
        ]

    @staticmethod
    def _sessions(
        count: int, groups: Sequence[Group], ask: Callable[[Engine, list[int]], list[Session]]
    ) -> list[Session]:
        """The sessions of every group in the places asked for, each marked with its engine."""
        found: dict[int, Session] = {}
        for engine, places in groups:
            if places:
                for i, session in zip(places, ask(engine, places), strict=True):
                    found[i] = replace(session, cache=(engine, session.cache))
        return [found[i] for i in range(count)]
