"""An open-loop load generator: requests leave at their appointed moments, whatever became of those before.

Latency counts from the appointed moment, so an answer that made others wait is not forgiven.
Source: Schroeder, Wierman, Harchol-Balter, NSDI 2006 (open against closed systems).
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

LATE_MS: Final = 100.0
PAUSE_MS: Final = 20.0
"""Longest that an idle process may be kept from running before the machine is said to have paused."""
_MAX_CONNECTIONS: Final = 512
_TIMEOUT_S: Final = 10.0
_KEEP_IDLE_S: Final = 2.0
"""A connection that was idle for longer may be closed by the server at any moment, and is not used again."""
_CONTROL = f"""
import sys, time
last = time.monotonic()
while True:
    time.sleep(0.002)
    now = time.monotonic()
    if now - last > {PAUSE_MS / 1000}:
        print(last, now, flush=True)
    last = now
"""


@dataclass(frozen=True, slots=True)
class Call:
    """One request to send."""

    path: str
    body: dict[str, Any]


@dataclass(slots=True)
class Outcomes:
    """What became of the requests of one run."""

    latencies_ms: list[float] = field(default_factory=list)
    late: int = 0
    late_in_pause: int = 0
    """Late answers during which an idle process on this machine was paused too; they are not in `late`."""
    errors: int = 0
    degraded: dict[str, int] = field(default_factory=dict)

    @property
    def degraded_share(self) -> float:
        """Answers not by the model among all that came."""
        return sum(self.degraded.values()) / max(1, len(self.latencies_ms))


class _Control:
    """A process that does nothing but notice when it was not allowed to run."""

    def __enter__(self) -> "_Control":
        self._process = subprocess.Popen([sys.executable, "-c", _CONTROL], stdout=subprocess.PIPE, text=True)  # noqa: S603
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        lines = self._process.communicate(timeout=10)[0].splitlines()
        self.pauses = [tuple(map(float, line.split())) for line in lines if len(line.split()) == 2]

    def overlaps(self, start: float, stop: float) -> bool:
        """Whether a pause fell between two moments."""
        return any(begin < stop and end > start for begin, end in self.pauses)


class _Client:
    """Connections to one port, each used by one request at a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._places = asyncio.Semaphore(_MAX_CONNECTIONS)

    async def post(self, call: Call) -> tuple[int, dict[str, Any]]:
        body = json.dumps(call.body).encode()
        head = f"POST {call.path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        async with self._places:
            reader, writer = await self._connection()
            writer.write(head.encode() + b"\r\n\r\n" + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            lines = answer.lower().split(b"\r\n")
            length = next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:"))
            content = await reader.readexactly(length)
            self._idle.append((time.monotonic(), reader, writer))
        return int(answer.split(b" ", 2)[1]), json.loads(content)

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            since, reader, writer = self._idle.pop()
            if time.monotonic() - since < _KEEP_IDLE_S:
                return reader, writer
            writer.close()
        return await asyncio.open_connection("127.0.0.1", self._port)

    def close(self) -> None:
        for _, _, writer in self._idle:
            writer.close()


def run(port: int, calls: Sequence[Call], rate_per_s: float, beside: Sequence[Call] = ()) -> Outcomes:
    """Send `calls` at a constant rate, and `beside` (not measured, but an error there counts) at the same one."""
    with _Control() as control:
        spans, outcomes = asyncio.run(_send(port, calls, rate_per_s, beside))
    for start, stop in spans:
        outcomes.latencies_ms.append((stop - start) * 1000)
        if (stop - start) * 1000 > LATE_MS:
            if control.overlaps(start, stop):
                outcomes.late_in_pause += 1
            else:
                outcomes.late += 1
    return outcomes


async def _send(
    port: int, calls: Sequence[Call], rate_per_s: float, beside: Sequence[Call]
) -> tuple[list[tuple[float, float]], Outcomes]:
    client, outcomes = _Client(port), Outcomes()
    spans: list[tuple[float, float]] = []
    start = time.monotonic() + 0.1

    async def one(call: Call, moment: float, measured: bool) -> None:
        await asyncio.sleep(max(0.0, moment - time.monotonic()))
        try:
            status, answer = await asyncio.wait_for(client.post(call), _TIMEOUT_S)
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            outcomes.errors += 1
            return
        outcomes.errors += status != 200
        if measured and status == 200:
            spans.append((moment, time.monotonic()))
            if answer.get("degraded"):
                outcomes.degraded[answer["degraded"]] = outcomes.degraded.get(answer["degraded"], 0) + 1

    # Tasks are made a second ahead, so that millions of requests need not be tasks at once.
    waiting: set[asyncio.Task[None]] = set()
    for i in range(max(len(calls), len(beside))):
        moment = start + i / rate_per_s
        if moment - time.monotonic() > 1:
            await asyncio.sleep(0.5)
        for group, measured, shift in ((calls, True, 0.0), (beside, False, 0.5)):
            if i < len(group):
                task = asyncio.create_task(one(group[i], moment + shift / rate_per_s, measured))
                waiting.add(task)
                task.add_done_callback(waiting.discard)
    await asyncio.gather(*waiting)
    client.close()
    return spans, outcomes
