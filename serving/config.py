"""Settings of the endpoint."""

from ipaddress import ip_address
from typing import Annotated, Literal, Self

from pydantic import Field, IPvAnyNetwork, model_validator

from recsys.contracts.config import Config

TokenScope = Literal["read", "write", "admin"]


class Token(Config):
    """A client's token. Only its hash is kept: `openssl rand -hex 32`, then `printf %s TOKEN | sha256sum`."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    scopes: list[TokenScope] = Field(min_length=1)


class ServeConfig(Config):
    """How answers are given."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65_535)
    deadline_ms: float = Field(default=100, gt=0, le=10_000)
    """From the arrival of a request to its answer."""
    reserve_ms: float = Field(default=25, ge=0)
    """Kept back from the deadline for writing the answer, on processors that others keep busy too."""
    num_threads: int = Field(default=1, ge=1)
    """Threads of the engine for one encoding. More make a cold user quicker where cores are idle; where they are not,
    threads that wait for one another made cold users late (docs/benchmarks.md)."""
    num_workers: int | None = Field(default=None, ge=1)
    """Requests worked on at once. Left out: as many as the engine of the first release was measured to append to for
    less each when they come together, and 2 at least. More than a processor's batch needs make answers late: they share
    the interpreter with the event loop."""
    max_waiting: int = Field(default=64, ge=0)
    """Requests that may wait for a worker; more are answered at once with popular items. A request
    that gave up waiting keeps its place until a worker comes by, so memory is bounded in a stall."""
    drain_s: int = Field(default=10, ge=0)
    """Longest that requests under way are waited for at shutdown."""

    session_cache_mb: float = Field(default=1_024, ge=0)
    """Most memory for sessions of users, in 10^6 bytes."""
    prepare_s: float = Field(default=300.0, ge=0)
    """Longest that kept sessions are encoded under a new release before it answers; it ends when all are."""
    poll_s: float = Field(default=1.0, gt=0)
    """Between two looks at the `current` pointer and at what other workers changed."""
    recall_s: float = Field(default=15.0, gt=0)
    """Between two counts of what became of answers."""
    attribution_hours: float = Field(default=24.0, gt=0, le=24 * 90)
    """How long after an answer an event may count for it."""
    recall_days: float = Field(default=7.0, gt=0)
    """Period of the live figures in /metrics and on the console."""
    index_check_share: float = Field(default=0.01, ge=0, le=1)
    """Share of answers whose index search is compared with exact search."""
    traces: bool = False
    """Send OpenTelemetry traces of recommendations by OTLP; needs the extra `otel`."""
    tokens: tuple[Token, ...] = ()
    """Who may ask. Without any, everybody on this machine may, and the admin endpoints are off."""
    requests_per_s: float = Field(default=0, ge=0)
    """Most requests of one client on average; 0 sets no limit."""
    burst: int = Field(default=100, ge=1)
    """Requests of one client that may come at once within the limit."""
    proxies: tuple[IPvAnyNetwork, ...] = ()
    """Addresses or networks of proxies whose `X-Forwarded-For` says which client asks. Nobody else's is read."""

    @model_validator(mode="after")
    def _strangers_need_tokens(self) -> Self:
        if not self.tokens and not _is_loopback(self.host):
            raise ValueError(
                f"host {self.host} is open to others; set [[serve.tokens]] in the config, or use 127.0.0.1"
            )
        return self

    @model_validator(mode="after")
    def _time_is_left(self) -> Self:
        if self.reserve_ms >= self.deadline_ms:
            raise ValueError(f"reserve_ms {self.reserve_ms:g} leaves nothing of deadline_ms {self.deadline_ms:g}")
        return self


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
