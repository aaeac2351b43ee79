"""How events are divided into those that may be fitted and those that are asked for."""

from enum import StrEnum


class Protocol(StrEnum):
    """Which events may be fitted and which are targets."""

    TIME = "time"
    LAST_OUT = "last-out"
    FINAL = "final"

    @property
    def masks_seen(self) -> bool:
        """Whether items of the history are left out of the ranking."""
        return self is Protocol.LAST_OUT
