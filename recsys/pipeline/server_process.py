"""`recsys serve` as a process of its own, for benchmarks."""

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from recsys.contracts.errors import StoreError

_START_TIMEOUT_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Server:
    """An endpoint that is ready."""

    process: "subprocess.Popen[bytes]"
    port: int
    ready_s: float
    """Seconds from starting the process to its being ready."""


@contextlib.contextmanager
def started(releases: Path, store_url: str) -> Iterator[Server]:
    """A server on loopback with its defaults; told to end afterwards.

    Raises:
        StoreError: it did not start.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "recsys", "serve", str(releases), "--store", store_url, "--port", str(port)]
    began = time.monotonic()
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)  # noqa: S603
    try:
        while answering(port) is None:
            if process.poll() is not None or time.monotonic() - began > _START_TIMEOUT_S:
                raise StoreError(
                    f"the server did not start; run `recsys serve {releases} --store {store_url}` to see why"
                )
            time.sleep(0.02)
        yield Server(process, port, time.monotonic() - began)
    finally:
        process.terminate()
        process.wait(timeout=30)


def answering(port: int) -> str | None:
    """The release that answers at a port; None while nobody is ready there."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        return str(json.loads(response.read())["release"]) if response.status == http.HTTPStatus.OK else None
    except OSError:
        return None
    finally:
        connection.close()
