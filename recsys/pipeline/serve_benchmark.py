"""Latency of a real server process over HTTP, for the users with the longest histories."""

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from recsys.contracts.errors import StoreError
from recsys.pipeline.progress import bar
from recsys.store import EventStore

START_TIMEOUT_S = 60.0
ANSWER_TIMEOUT_S = 10.0


def run(releases: Path, store_url: str, num_requests: int) -> dict[str, Any]:
    """Start `recsys serve` on loopback, ask, and stop it.

    Cold: the first request of each user after the start. Warm: `num_requests` more, in turns. One request
    at a time, so the figures are service times without queueing. The deadline is set out of the way, so
    that every answer is the model's.

    Raises:
        StoreError: the store has no user, or the server did not start.
    """
    store = EventStore.open(store_url)
    users = store.most_active(min(num_requests, 200))
    lengths = [len(store.history(user)) for user in users[:50]]
    store.close()
    if not users:
        raise StoreError(f"store {store_url}: no events; fill it with `recsys store import`")
    with _server(releases, store_url) as (port, process, ready_s), bar("ask") as advance:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_TIMEOUT_S)
        cold = [_ask(connection, user) for user in users]
        warm = []
        for i in range(num_requests):
            warm.append(_ask(connection, users[i % min(50, len(users))]))
            advance("warm", i + 1, num_requests)
        connection.close()
        peak = _peak_mb(process.pid)
    return {
        "requests": len(cold) + len(warm),
        "history_events": {"longest": max(lengths), "median_of_50_longest": int(np.median(lengths))},
        "cold": _summary(cold),
        "warm": _summary(warm),
        "ready_s": round(ready_s, 2),
        "peak_mb": round(peak, 1),
    }


@contextlib.contextmanager
def _server(releases: Path, store_url: str) -> Iterator[tuple[int, subprocess.Popen[bytes], float]]:
    """A server process that is ready; it is stopped at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "recsys", "serve", str(releases), "--store", store_url, "--port", str(port)]
    started = time.monotonic()
    process = subprocess.Popen([*command, "--deadline-ms", "10000"], stderr=subprocess.DEVNULL)  # noqa: S603
    try:
        while not _is_ready(port):
            if process.poll() is not None or time.monotonic() - started > START_TIMEOUT_S:
                raise StoreError(
                    f"the server did not start; run `recsys serve {releases} --store {store_url}` to see why"
                )
            time.sleep(0.05)
        yield port, process, time.monotonic() - started
    finally:
        process.terminate()
        process.wait(timeout=30)


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == http.HTTPStatus.OK
    except OSError:
        return False
    finally:
        connection.close()


def _ask(connection: http.client.HTTPConnection, user_id: str) -> float:
    """Milliseconds from sending the request to the last byte of a model's answer."""
    body = json.dumps({"user_id": user_id, "k": 10})
    started = time.perf_counter()
    connection.request("POST", "/v1/recommendations", body, {"Content-Type": "application/json"})
    answer = json.loads(connection.getresponse().read())
    elapsed = (time.perf_counter() - started) * 1000
    if answer.get("degraded"):
        raise StoreError(f"the server answered degraded ({answer['degraded']}); figures would not be the model's")
    return elapsed


def _peak_mb(pid: int) -> float:
    """Highest resident memory so far, in 10^6 bytes."""
    status = Path(f"/proc/{pid}/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    return float(psutil.Process(pid).memory_info().rss) / 1e6


def _summary(milliseconds: list[float]) -> dict[str, float]:
    p50, p90, p99 = np.percentile(milliseconds, [50, 90, 99])
    return {
        "requests": len(milliseconds),
        "p50_ms": round(float(p50), 2),
        "p90_ms": round(float(p90), 2),
        "p99_ms": round(float(p99), 2),
        "max_ms": round(max(milliseconds), 2),
    }
