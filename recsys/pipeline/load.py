"""An open-loop load generator: requests leave at their appointed moments, whatever became of those before.

Latency counts from the appointed moment, so an answer that made others wait is not forgiven, and neither is the
generator's own delay. It shares the machine with the server, so it is kept lean: one protocol object a
connection, no task a request, and connections for what is due within `LATE_MS` are opened before the first
request, as a shop's backend holds them; more are opened when they are needed.
Source: Schroeder, Wierman, Harchol-Balter, NSDI 2006 (open against closed systems).
"""

import asyncio
import gc
import math
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
import uvloop

from recsys.pipeline.pauses import Pauses

LATE_MS: Final = 100.0
_MAX_CONNECTIONS: Final = 512
_TIMEOUT_S: Final = 10.0
_LEAST_S: Final = 0.001
"""Between two looks at what is due: the event loop's timers know milliseconds, and with less it would look all the
time, on a core that the server wants."""
_KEEP_IDLE_S: Final = 60.0
"""A connection that was idle for longer may be closed by the server at any moment, and is not used again."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request to send."""

    path: str
    body: dict[str, Any]

    def message(self) -> bytes:
        """As it goes over the wire."""
        body = orjson.dumps(self.body)
        head = f"POST {self.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        return head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body


@dataclass(slots=True)
class Outcomes:
    """What became of the requests of one run."""

    latencies_ms: list[float] = field(default_factory=list)
    late: int = 0
    late_in_pause: int = 0
    """Late answers that would have been in time without the pauses of the machine meanwhile; they are not in `late`."""
    errors: int = 0
    degraded: dict[str, int] = field(default_factory=dict)
    generator_share: float = 0.0
    """Processor time of this generator, in cores."""

    @property
    def degraded_share(self) -> float:
        """Answers not by the model among all that came."""
        return sum(self.degraded.values()) / max(1, len(self.latencies_ms))


@dataclass(slots=True)
class _Sent:
    """A request under way."""

    call: Call
    moment: float
    is_measured: bool


class _Generator:
    """Sends what is due on connections that are each used by one request at a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._schedule: Iterator[_Sent] = iter(())
        self._next: _Sent | None = None
        self._waiting: deque[_Sent] = deque()
        self._idle: list[tuple[float, _Connection]] = []
        self._num_connections = 0
        self._connections: set[_Connection] = set()
        self._num_under_way = 0
        self._opening: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.get_running_loop()
        self.done = asyncio.Event()
        self.spans: list[tuple[float, float]] = []
        self.outcomes = Outcomes()

    async def connect(self, num_connections: int) -> None:
        """Open connections for later."""
        self._num_connections += num_connections
        for _ in range(num_connections):
            await self._open(None)

    def start(self, schedule: Iterator[_Sent]) -> None:
        """Send each request at its moment."""
        self._schedule, self._next = schedule, next(schedule, None)
        self.tick()

    def tick(self) -> None:
        """Send all that is due, and come again when the next is."""
        now = time.monotonic()
        while self._next is not None and self._next.moment <= now:
            self._num_under_way += 1
            self._waiting.append(self._next)
            self._next = next(self._schedule, None)
        self._send()
        if self._next is not None:
            self._loop.call_later(max(_LEAST_S, self._next.moment - time.monotonic()), self.tick)
        elif not self._num_under_way:
            self.done.set()

    def answered(self, sent: _Sent, connection: "_Connection", status: int, content: bytes) -> None:
        """Note what came, and use the connection again."""
        now = time.monotonic()
        self._idle.append((now, connection))
        if status != 200:
            self.outcomes.errors += 1
        elif sent.is_measured:
            self.spans.append((sent.moment, now))
            reason = orjson.loads(content).get("degraded")
            if reason:
                self.outcomes.degraded[reason] = self.outcomes.degraded.get(reason, 0) + 1
        self._ended()

    def lost(self, sent: _Sent | None, connection: "_Connection | None" = None) -> None:
        """A connection is gone, or was never made, and with it the request that it carried."""
        self._num_connections -= 1
        if connection is not None:
            self._connections.discard(connection)
            self._idle = [(since, idle) for since, idle in self._idle if idle is not connection]
        if sent is not None:
            self.outcomes.errors += 1
            self._ended()

    def give_up(self) -> None:
        """Whatever has no answer by now is an error."""
        self.outcomes.errors += self._num_under_way

    def close(self) -> None:
        """No more requests over any connection."""
        for connection in list(self._connections):
            connection.close()

    def _ended(self) -> None:
        self._num_under_way -= 1
        if self._waiting:
            self._send()
        if self._next is None and not self._num_under_way:
            self.done.set()

    def _send(self) -> None:
        while self._waiting:
            while self._idle and time.monotonic() - self._idle[-1][0] > _KEEP_IDLE_S:
                self._idle.pop()[1].close()
            if self._idle:
                self._idle.pop()[1].send(self._waiting.popleft())
            elif self._num_connections < _MAX_CONNECTIONS:
                self._num_connections += 1
                task = self._loop.create_task(self._open(self._waiting.popleft()))
                self._opening.add(task)
                task.add_done_callback(self._opening.discard)
            else:
                return

    async def _open(self, sent: _Sent | None) -> None:
        try:
            _, connection = await self._loop.create_connection(lambda: _Connection(self), "127.0.0.1", self._port)
        except OSError:
            self.lost(sent)
        else:
            self._connections.add(connection)
            if sent is None:
                self._idle.append((time.monotonic(), connection))
            else:
                connection.send(sent)


class _Connection(asyncio.Protocol):
    """One request at a time over one connection."""

    def __init__(self, generator: _Generator) -> None:
        self._generator = generator
        self._sent: _Sent | None = None
        self._received = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        sent, self._sent = self._sent, None
        self._generator.lost(sent, self)

    def send(self, sent: _Sent) -> None:
        """Send one request; the answer goes to the generator."""
        self._sent = sent
        self._transport.write(sent.call.message())

    def close(self) -> None:
        """No more requests."""
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        received = self._received = self._received + data
        head, found, content = received.partition(b"\r\n\r\n")
        if not found or self._sent is None:
            return
        start = head.lower().index(b"content-length:") + len(b"content-length:")
        if len(content) < int(head[start:].split(b"\r\n", 1)[0]):
            return
        sent, self._sent, self._received = self._sent, None, b""
        self._generator.answered(sent, self, int(head[9:12]), content)


def run(
    port: int, calls: Sequence[Call], rate_per_s: float, beside: Sequence[Call] = (), server_pid: int | None = None
) -> Outcomes:
    """Send `calls` at a constant rate, and `beside` (not measured, but an error there counts) at the same one.

    What this process and the server `server_pid` do to the machine is never called a pause of it.
    """
    started, used = time.monotonic(), time.process_time()
    ours = [os.getpid()] if server_pid is None else [os.getpid(), server_pid]
    with Pauses(ours) as pauses, _without_collections():
        spans, outcomes = uvloop.run(_send(port, calls, rate_per_s, beside))
    outcomes.generator_share = (time.process_time() - used) / (time.monotonic() - started)
    for start, stop in spans:
        latency_ms = (stop - start) * 1000
        outcomes.latencies_ms.append(latency_ms)
        if latency_ms > LATE_MS:
            if latency_ms - pauses.overlap_ms(start, stop) > LATE_MS:
                outcomes.late += 1
            else:
                outcomes.late_in_pause += 1
    return outcomes


@contextmanager
def _without_collections() -> Iterator[None]:
    """A look through all that this process holds for garbage takes tens of milliseconds, in which nothing is sent."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def _send(
    port: int, calls: Sequence[Call], rate_per_s: float, beside: Sequence[Call]
) -> tuple[list[tuple[float, float]], Outcomes]:
    generator = _Generator(port)
    due = rate_per_s * LATE_MS / 1000 * (2 if beside else 1)
    await generator.connect(min(_MAX_CONNECTIONS, math.ceil(due)))
    generator.start(_schedule(calls, beside, time.monotonic() + 0.1, rate_per_s))
    last_s = max(len(calls), len(beside)) / rate_per_s
    try:
        await asyncio.wait_for(generator.done.wait(), last_s + _TIMEOUT_S)
    except TimeoutError:
        generator.give_up()
    generator.close()
    await asyncio.sleep(0)  # connections are closed in the next turn of the loop
    return generator.spans, generator.outcomes


def _schedule(calls: Sequence[Call], beside: Sequence[Call], start: float, rate_per_s: float) -> Iterator[_Sent]:
    """Both in the order of their moments, those beside half a step after the others."""
    for i in range(max(len(calls), len(beside))):
        if i < len(calls):
            yield _Sent(calls[i], start + i / rate_per_s, True)
        if i < len(beside):
            yield _Sent(beside[i], start + (i + 0.5) / rate_per_s, False)
