"""Settings of the endpoint."""

from pydantic import Field

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
    """Requests that may wait for a worker; more are answered at once with popular items."""
