"""The proxy before several workers: Debian's nginx with the configuration of `deploy/`."""

import concurrent.futures
import contextlib
import getpass
import itertools
import json
import multiprocessing
import os
import re
import signal
import socket
import string
import subprocess
import threading
from collections.abc import Iterable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import httpx
import pytest

from recsys.runtime.recommender import Recommender
from serving import app
from serving.arrival import MAX_BODY_BYTES
from serving.config import ServeConfig
from serving.shedding import usual_head
from tests.conftest import service_program
from tests.serving.conftest import FakeEngine, fake_release

pytestmark = pytest.mark.service

TEMPLATE = Path(__file__).parents[2] / "deploy" / "nginx.conf.template"
RETRIED = "proxy_read_timeout 500ms;"
BURST = 40
"""Requests that one address may send to a worker, ever."""
MAIN = """
user $user;
daemon off;
pid $folder/pid;
error_log stderr crit;
events {}
http {
    client_body_temp_path $folder/body;
    proxy_temp_path $folder/proxy;
    fastcgi_temp_path $folder/fastcgi;
    scgi_temp_path $folder/scgi;
    uwsgi_temp_path $folder/uwsgi;
    include $folder/recsys.conf;
}
"""


def work(name: str, port: int, store_url: str) -> None:
    """A worker over a release of that name."""
    app.Recommender.load = lambda *_args, **_settings: Recommender(fake_release(FakeEngine(), name))
    settings = ServeConfig(port=port, deadline_ms=10_000, requests_per_s=1e-6, burst=BURST, proxies=["127.0.0.1"])
    app.run(settings, Path("releases"), store_url)


class Site:
    """A proxy and its workers. Clients are told apart by addresses of loopback; the proxy's own is 127.0.0.1."""

    def __init__(self, url: str, workers: dict[str, BaseProcess], urls: dict[str, str], log: Path) -> None:
        self.url = url
        self.workers = workers
        self.urls = urls
        self.log = log

    def client(self, source: str, url: str | None = None) -> httpx.Client:
        transport = httpx.HTTPTransport(local_address=source, retries=8)
        return httpx.Client(base_url=url or self.url, transport=transport, timeout=30)


def ask(client: httpx.Client, user: str, **headers: str) -> httpx.Response:
    """Recommendations of a user whom the proxy is told of, too; the worker is the answer's `release`."""
    return client.post("/v1/recommendations", json={"user_id": user}, headers={"X-Recsys-User": user, **headers})


PORTS = itertools.count(10_000 + 20 * os.getpid() % 20_000)
"""Below those that the kernel gives to whoever asks for any; tests beside these in other processes begin elsewhere."""


def free_port() -> int:
    """A port that nobody else takes meanwhile."""
    for port in PORTS:
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            break
    return port


@contextlib.contextmanager
def proxied(folder: Path, urls: Iterable[str]) -> Iterator[str]:
    """URL of nginx before these workers; its files lie in the folder."""
    nginx, port = service_program("nginx", "nginx-light", [Path("/usr/sbin")]), free_port()
    servers = [f"server {url.removeprefix('http://')} max_fails=3 fail_timeout=1s;" for url in urls]
    values = {"RECSYS_LISTEN": f"127.0.0.1:{port}", "RECSYS_WORKERS": " ".join(servers)}
    text = re.sub(r"\$\{(RECSYS_\w+)\}", lambda name: values[name[1]], TEMPLATE.read_text())
    assert RETRIED in text
    text = text.replace(RETRIED, "proxy_read_timeout 30s;")  # this machine may be busy
    (folder / "recsys.conf").write_text(text.replace("/dev/stdout", str(folder / "access.log")))
    (folder / "nginx.conf").write_text(string.Template(MAIN).substitute(folder=folder, user=getpass.getuser()))
    with subprocess.Popen([nginx, "-c", folder / "nginx.conf"]) as proxy:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            proxy.terminate()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("proxy")
    with contextlib.ExitStack() as stack:
        processes = multiprocessing.get_context("forkserver")
        processes.set_forkserver_preload([__name__])  # what workers import is imported once
        ports = {name: free_port() for name in ("r0", "r1", "r2")}
        urls = {name: f"http://127.0.0.1:{each}" for name, each in ports.items()}
        url = stack.enter_context(proxied(folder, urls.values()))
        workers: dict[str, BaseProcess] = {}
        for name, each in ports.items():
            workers[name] = processes.Process(target=work, args=(name, each, f"sqlite:///{folder / 'store.db'}"))
            workers[name].start()
            stack.callback(workers[name].join)
            stack.callback(workers[name].kill)
        site = Site(url, workers, urls, folder / "access.log")
        for url in (*urls.values(), site.url):
            with site.client("127.0.0.9", url) as client:
                assert any(client.get("/readyz").status_code == 200 for _ in range(10_000))
        yield site


def test_what_shops_call_is_answered(site: Site) -> None:
    ids = ["plain", "a%2Fb", "%2E%2E", "a%2F%2E%2E%2Fb", "%C3%A9"]
    with site.client("127.0.0.2") as client:
        events = [{"user_id": user, "item_id": "sku-1"} for user in ("plain", "a/b", "..", "a/../b", "é")]
        assert client.post("/v1/events", json={"events": events}).json()["stored"] == 5
        assert ask(client, "plain").json()["source"] == "model"
        batch = {"requests": [{"user_id": "plain"}]}
        assert len(client.post("/v1/recommendations:batch", json=batch).json()["answers"]) == 1
        assert client.get("/v1/items/sku-1/similar?k=3").status_code == 200
        assert [len(client.get(f"/v1/users/{user}/history").json()["events"]) for user in ids] == [1] * 5
        assert [client.delete(f"/v1/users/{user}").json()["events"] for user in ids] == [1] * 5


@pytest.mark.parametrize(
    "path",
    [
        "/metrics",
        "/v1/admin/rules",
        "/v1/status",
        "/console",
        "/docs",
        "/openapi.json",
        "/healthz",
        "/",
        "//metrics",
        "/%6Detrics",
        "/v1/%61dmin/rules",
        "/v1/users/../../metrics",
        "/v1/users/..%2F..%2Fmetrics",
        "/v1/users/x/../../admin/rules",
        "/metrics/../v1/events",
        "/v1/recommendations/../../metrics",
    ],
)
def test_what_operators_call_is_not_there(site: Site, path: str) -> None:
    with socket.create_connection(("127.0.0.1", httpx.URL(site.url).port), timeout=30) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert re.match(rb"HTTP/1.1 40[45] ", answer), answer
    assert b"recsys_" not in answer


def test_a_named_user_stays_with_one_worker(site: Site) -> None:
    users = [f"user-{n}" for n in range(16)]
    with site.client("127.0.0.3") as client:
        once, again = ([ask(client, user).json()["release"] for user in users] for _ in range(2))
    assert once == again
    assert set(once) == set(site.workers)


def test_what_the_proxy_sends_may_be_answered_unread(tmp_path: Path) -> None:
    """In one piece, with nothing unusual: where a worker is behind, it must be able to shed."""
    with (
        socket.create_server(("127.0.0.1", 0)) as worker,
        proxied(tmp_path, [f"http://127.0.0.1:{worker.getsockname()[1]}"]) as url,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
        httpx.Client(base_url=url, transport=httpx.HTTPTransport(retries=8), timeout=30) as client,
    ):
        asking = pool.submit(ask, client, "ann")
        connection, _ = worker.accept()
        with connection:
            found = usual_head(connection.recv(65_536))
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            assert asking.result().status_code == 200
    assert found is not None
    assert json.loads(found[1])["user_id"] == "ann"
    assert dict(found[0])[b"x-forwarded-for"] == b"127.0.0.1"


def test_the_largest_body_is_the_servers(site: Site) -> None:
    body = b"[" + b" " * (MAX_BODY_BYTES["/v1/events"] - 2) + b"]"
    with site.client("127.0.0.4") as client:
        for content, status in ((body, 422), (body + b" ", 413)):
            headers = {"Content-Type": "application/json"}
            assert client.post("/v1/events", content=content, headers=headers).status_code == status


def test_each_client_has_its_own_rate_and_cannot_speak_for_another(site: Site) -> None:
    with site.client("127.0.0.5") as client, site.client("127.0.0.6") as other:
        found = [ask(client, "ann", **{"X-Forwarded-For": f"203.0.113.{n}"}).status_code for n in range(BURST + 1)]
        assert found == [200] * BURST + [429]
        home = ask(other, "ann").json()["release"]
    with site.client("127.0.0.7", site.urls[home]) as direct:  # past the proxy its word counts for nothing
        assert ask(direct, "ann", **{"X-Forwarded-For": "127.0.0.5"}).status_code == 200


def test_the_log_names_no_user(site: Site) -> None:
    with site.client("127.0.0.8") as client:
        assert ask(client, "secret-user").status_code == 200
        assert client.delete("/v1/users/secret-user").status_code == 200
    assert re.search(r"^\S+ (POST|DELETE) 200 [\d.]+ 127\.0\.0\.1:\d+ 200 [\d.]+$", site.log.read_text(), re.MULTILINE)
    assert "secret" not in site.log.read_text()


def test_a_worker_may_end_and_one_may_be_killed_without_a_failed_answer(site: Site) -> None:
    """The last: one worker is left."""
    ended = threading.Event()

    def keep_asking(thread: int) -> set[int]:
        statuses = set()
        for n in itertools.count(1):
            with site.client(f"127.1.{thread}.{n}") as client:
                statuses |= {ask(client, f"user-{user}").status_code for user in range(BURST)}
            if ended.is_set():
                break
        return statuses

    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        asking = [pool.submit(keep_asking, thread) for thread in range(4)]
        site.workers["r0"].terminate()
        site.workers["r0"].join(30)
        ended.set()
        assert set.union(*(each.result() for each in asking)) == {200}

        doomed = site.workers["r1"]
        with site.client("127.0.2.1") as client:
            users = [f"user-{n}" for n in range(BURST)]
            theirs = [user for user in users if ask(client, user).json()["release"] == "r1"]
        os.kill(doomed.pid, signal.SIGSTOP)
        with site.client("127.0.2.2") as client:
            told = {"events": [{"user_id": "ann", "item_id": "sku-1"}]}
            asked = [pool.submit(ask, client, user) for user in theirs]
            telling = pool.submit(client.post, "/v1/events", json=told, headers={"X-Recsys-User": theirs[0]})
            assert not concurrent.futures.wait([*asked, telling], timeout=0.5).done  # all lie before the stopped worker
            doomed.kill()
            assert {(answer.result().status_code, answer.result().json()["release"]) for answer in asked} == {
                (200, "r2")
            }
            assert telling.result().status_code == 502  # who told may tell again, with ids
