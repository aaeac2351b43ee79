"""How late the event loop is: what a deadline has to allow for when the machine is busy."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

_EVERY_S: Final = 0.01
_HALVED_AFTER_S: Final = 0.05


class LoopLag:
    """The worst recent delay of a timer on the event loop, which fades by half every 50 ms.

    A request waits about as long in its socket before the loop sees it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._worst_s = 0.0
        self._noted = clock()

    @property
    def seconds(self) -> float:
        """Now."""
        age = self._clock() - self._noted
        return self._worst_s * float(0.5 ** (age / _HALVED_AFTER_S))

    def note(self, delay_s: float) -> None:
        """A timer fired so much late."""
        self._worst_s = max(self.seconds, delay_s)
        self._noted = self._clock()

    async def watch(self) -> None:
        """Measure until cancelled."""
        while True:
            due = self._clock() + _EVERY_S
            await asyncio.sleep(_EVERY_S)
            self.note(max(0.0, self._clock() - due))
