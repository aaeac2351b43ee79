"""The endpoint as a process: readiness, the port, and the end."""

import asyncio
import json
import random
import re
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import uvloop

from recsys.contracts.errors import ConfigError
from recsys.pipeline.kill_benchmark import Client, event_ids, user_of
from recsys.store import EventStore
from serving import app
from serving.config import ServeConfig
from tests.serving.conftest import KNOWN, FakeEngine, fake_app, running

SERVER = """
import sys
import threading
from pathlib import Path
from serving import app
from serving.config import ServeConfig
from serving.endpoint import Endpoint
from recsys.runtime.recommender import Recommender
from tests.serving.conftest import FakeEngine, fake_release
engine = FakeEngine()
answers = ("answer", "cold")  # the engine stalls for ever in the threads that answer requests
stalls = lambda: threading.current_thread().name.startswith(answers)
engine.go_on.wait = lambda _: stalls() and threading.Event().wait()
Endpoint.is_behind = lambda *_: False  # however busy this machine is
app.Recommender.load = lambda *_args, **_settings: Recommender(fake_release(engine))
app.run(ServeConfig(port=0, deadline_ms=50), Path("releases"), sys.argv[1])
"""


def test_not_ready_until_warmed_up_though_alive(tmp_path: Path) -> None:
    engine, warm = FakeEngine(), threading.Event()
    engine.warm_up = lambda: warm.wait(30)
    store = EventStore.open(f"sqlite:///{tmp_path / 'store.db'}")
    with (
        running(fake_app(ServeConfig(), engine, store)) as address,
        httpx.Client(base_url=address) as client,
    ):
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").status_code == 503
        warm.set()
        assert any(client.get("/readyz").status_code == 200 for _ in range(10_000))


@pytest.mark.parametrize("kills", [3, pytest.param(100, marks=pytest.mark.slow)])
def test_an_acknowledged_event_survives_kills_under_load(tmp_path: Path, kills: int) -> None:
    """Four clients at once, each asking for recommendations between its events; the kill comes at any moment of it."""
    url, generator = f"sqlite:///{tmp_path / 'store.db'}", random.Random(3)
    acknowledged: list[str] = []
    for n in range(kills):
        with subprocess.Popen([sys.executable, "-c", SERVER, url], stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            address = re.search(r"http://127\.0\.0\.1:(\d+)", process.stderr.readline())
            assert address
            clients = [Client(int(address[1]), f"{n}-{user}", KNOWN) for user in range(4)]
            for client in clients:
                client.start()
            while not all(client.num_answers or not client.is_alive() for client in clients):
                clients[0].join(0.01)
            threading.Timer(generator.uniform(0, 0.3), process.kill).start()
            for client in clients:
                client.join()
        acknowledged += [event_id for client in clients for event_id in client.acknowledged]
    assert len(set(acknowledged)) == len(acknowledged) >= 4 * kills
    store = EventStore.open(url)
    assert set(acknowledged) <= {event_id for user in range(4) for event_id in event_ids(store, user_of(user))}
    store.close()


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_a_stalled_engine_does_not_keep_the_process_from_ending(tmp_path: Path, end: signal.Signals) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    command = [sys.executable, "-c", SERVER, url]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.fullmatch(r"release r1, (http://127\.0\.0\.1:\d+)/console\n", line)
        assert found, line
        event = {"user_id": "ann", "item_id": "sku-1"}
        assert httpx.post(f"{found[1]}/v1/events", json={"events": [event]}, timeout=30).json()["stored"] == 1
        answer = httpx.post(f"{found[1]}/v1/recommendations", json={"user_id": "ann"}, timeout=30).json()
        assert answer["degraded"] == "deadline"
        process.send_signal(end)
        log = process.communicate(timeout=60)[1]
    assert "Traceback" not in log
    (said,) = [line for line in map(json.loads, log.splitlines()) if line["message"] == "answer"]
    told = {name: said[name] for name in ("request_id", "release", "degraded")}
    assert told == {"request_id": answer["request_id"], "release": "r1", "degraded": "deadline"}
    assert "ann" not in log
    assert EventStore.open(url).history("ann") == ["sku-1"]
    with EventStore.open(url)._engine.connect() as connection:
        kept = connection.exec_driver_sql("select request_id, items from impressions").all()
    assert kept == [(answer["request_id"], json.dumps([item["item_id"] for item in answer["items"]]))]


def test_requests_under_way_are_answered_when_the_process_is_told_to_end(tmp_path: Path) -> None:
    """Eight wait for a stalled engine when SIGTERM comes; each is answered at its deadline, and its impression kept."""
    url, num_requests = f"sqlite:///{tmp_path / 'store.db'}", 8
    with subprocess.Popen([sys.executable, "-c", SERVER, url], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        address = re.search(r"http://127\.0\.0\.1:\d+", process.stderr.readline())
        assert address
        events = [{"user_id": f"u{n}", "item_id": "sku-1"} for n in range(num_requests)]
        assert httpx.post(f"{address[0]}/v1/events", json={"events": events}, timeout=30).json()["stored"] == 8

        def ask(n: int) -> httpx.Response:
            body = {"user_id": f"u{n}", "deadline_ms": 3_000}
            return httpx.post(f"{address[0]}/v1/recommendations", json=body, timeout=30)

        with ThreadPoolExecutor(num_requests) as pool:
            waiting = [pool.submit(ask, n) for n in range(num_requests)]
            queued = 0.0
            while queued < num_requests:
                metrics = httpx.get(f"{address[0]}/metrics", timeout=30).text
                queued = sum(map(float, re.findall(r"^recsys_queue_requests\S* (\S+)$", metrics, re.MULTILINE)))
            process.send_signal(signal.SIGTERM)
            answers = [future.result() for future in waiting]
        process.communicate(timeout=60)
    assert [a.status_code for a in answers] == [200] * num_requests
    assert {a.json()["degraded"] for a in answers} == {"deadline"}
    with EventStore.open(url).engine.connect() as connection:
        kept = set(connection.exec_driver_sql("select request_id from impressions").scalars())
    assert kept == {a.json()["request_id"] for a in answers}


def test_a_port_in_use_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            app._listen(ServeConfig(port=port))


def test_a_body_does_not_wait_for_the_acknowledgement_of_its_head() -> None:
    with app._listen(ServeConfig(port=0)) as listening, socket.create_connection(listening.getsockname()):
        connection, _ = listening.accept()
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        connection.close()


def test_many_connections_are_accepted_in_few_turns_of_the_event_loop() -> None:
    """A turn is long where requests are worked on; with one handle each connection took one."""
    num_clients, turns = 64, 0
    accepted: list[asyncio.BaseTransport] = []

    class Noted(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            accepted.append(transport)

    async def accept_all(listening: socket.socket) -> None:
        nonlocal turns
        loop = asyncio.get_running_loop()
        servers = [await loop.create_server(Noted, sock=handle) for handle in app._handles(listening)]
        clients = [socket.create_connection(listening.getsockname()) for _ in range(num_clients)]
        while len(accepted) < num_clients:
            await asyncio.sleep(0)
            turns += 1
        for open_one in (*clients, *accepted, *servers):
            open_one.close()
        await asyncio.sleep(0.01)  # closed in the loop's next turns

    with app._listen(ServeConfig(port=0)) as listening:
        uvloop.run(accept_all(listening))
    assert turns < num_clients / 4
