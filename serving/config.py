"""Settings of the endpoint."""

from typing import Self

from pydantic import Field, model_validator

from recsys.contracts.config import Config


class ServeConfig(Config):
    """How answers are given."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65_535)
    deadline_ms: float = Field(default=100, gt=0, le=10_000)
    """From the arrival of a request to its answer."""
    reserve_ms: float = Field(default=10, ge=0)
    """Kept back from the deadline for writing the answer."""
    num_threads: int = Field(default=2, ge=1)
    """Threads of the engine."""
    num_workers: int = Field(default=2, ge=1)
    """Requests worked on at once."""
    max_waiting: int = Field(default=64, ge=0)
    """Requests that may wait for a worker; more are answered at once with popular items. A request
    that gave up waiting keeps its place until a worker comes by, so memory is bounded in a stall."""
    drain_s: int = Field(default=10, ge=0)
    """Longest that requests under way are waited for at shutdown."""

    @model_validator(mode="after")
    def _time_is_left(self) -> Self:
        if self.reserve_ms >= self.deadline_ms:
            raise ValueError(f"reserve_ms {self.reserve_ms:g} leaves nothing of deadline_ms {self.deadline_ms:g}")
        return self
