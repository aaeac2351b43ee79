"""The serving image: built from `deploy/Dockerfile`, looked into, and run, by itself and by `deploy/compose.yaml`."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from recsys.store import EventStore
from tests.conftest import service_program
from tests.serving.test_deploy import DEPLOY
from tests.serving.test_guard import token
from tests.serving.test_proxy import free_port

pytestmark = [pytest.mark.slow, pytest.mark.service]

ROOT = DEPLOY.parent
UID = 10_001
MOST_MB = 900
STAND_INS = {
    "nginx": r"""#!/bin/sh
set -e
rm -f /etc/nginx/sites-enabled/*
for template in /etc/nginx/templates/*.template; do
  envsubst '$RECSYS_LISTEN $RECSYS_WORKERS' < "$template" > "/etc/nginx/conf.d/$(basename "$template" .template)"
done
exec nginx -g "daemon off;"
""",
    "postgres": r"""#!/bin/sh
set -e
cd /var/lib/postgresql/data
mkdir -p /var/run/postgresql
chown postgres . /var/run/postgresql
if [ ! -s PG_VERSION ]; then
  (umask 077; printf %s "$POSTGRES_PASSWORD" > /var/run/postgresql/word; chown postgres /var/run/postgresql/word)
  su postgres -c "$BIN/initdb -D . -U $POSTGRES_USER -E UTF8 -A scram-sha-256 --pwfile /var/run/postgresql/word"
  echo "host all all all scram-sha-256" >> pg_hba.conf
  su postgres -c "$BIN/pg_ctl -D . -w -o '-c listen_addresses=' start"
  sleep 3  # the official image makes its database meanwhile, and listens on its socket only
  PGPASSWORD=$POSTGRES_PASSWORD $BIN/createdb -U "$POSTGRES_USER" "$POSTGRES_DB"
  su postgres -c "$BIN/pg_ctl -D . -w stop"
fi
exec su postgres -c "exec $BIN/postgres -D . -c listen_addresses='*'"
""",
}
"""Entries of images on our base, for those of compose.yaml that a registry would give: as much of them as it uses."""


class Builder:
    """buildah without a daemon, a registry or namespaces; everything it keeps lies under `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        places = ["--root", folder / "store", "--runroot", folder / "run", "--storage-driver", "vfs"]
        self.command = [service_program("buildah", "buildah"), *places]

    def __call__(self, verb: str, *arguments: object) -> str:
        command = [str(part) for part in (*self.command, verb, *arguments)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1_200)
        assert done.returncode == 0, done.stdout
        return done.stdout.strip()

    def build(self, name: str, context: Path, dockerfile: str, *options: object) -> None:
        (self.folder / "Dockerfile").write_text(dockerfile)
        how = ["--isolation", "chroot", "--network", "host", "--format", "docker", "--pull-never", *options]
        self("bud", *how, "-f", self.folder / "Dockerfile", "-t", f"localhost/{name}", context)

    def files(self, name: str) -> tuple[str, Path]:
        """A container of the image, and its root folder."""
        container = self("from", "--pull-never", f"localhost/{name}")
        return container, Path(self("mount", container))


def pip_options(folder: Path) -> list[str]:
    """Mounts that make the build install from where pip does here: a mirror, a folder of wheels, a certificate."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    settings = dict(re.findall(r"^(?:global|:env:)\.([\w-]+)=(.+)$", listed, re.MULTILINE))
    values = {name: ast.literal_eval(value) for name, value in settings.items()}
    (folder / "pip.conf").write_text("\n".join(["[global]", *(f"{name} = {value}" for name, value in values.items())]))
    named = " ".join(values.values())
    indexes = {Path(path).parent for path in re.findall(r"file://(\S+)", named)}  # files lie beside the index
    others = {Path(path) for path in re.findall(r"(?:^|\s)(/\S+)", named)}
    found = sorted(str(path) for path in indexes | others if path.exists())
    mounts = [f"{folder / 'pip.conf'}:/etc/pip.conf:ro", *(f"{path}:{path}:ro" for path in found)]
    return [option for mount in mounts for option in ("--volume", mount)]


@pytest.fixture(scope="module")
def builder() -> Iterator[Builder]:
    if os.geteuid() != 0:
        pytest.skip("building an image on a base of debootstrap's needs root")
    with tempfile.TemporaryDirectory(prefix="recsys-image-") as folder:  # gigabytes: not kept
        yield Builder(Path(folder))


@pytest.fixture(scope="module")
def image(builder: Builder) -> tuple[str, Path]:
    """(container, root folder), on Debian with its Python: no registry is asked for the usual base."""
    debootstrap, base = service_program("debootstrap", "debootstrap", [Path("/usr/sbin")]), builder.folder / "base"
    base.mkdir()
    packages = "python3,python3-venv,ca-certificates,nginx-light,gettext-base,postgresql"  # those of the stand-ins, too
    command = [debootstrap, "--variant=minbase", f"--include={packages}", "bookworm"]
    done = subprocess.run([*command, base / "root"], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout
    builder.build("base", base, "FROM scratch\nCOPY root /\n")
    shutil.rmtree(base)
    options = ["--build-arg", "BASE=localhost/base", *pip_options(builder.folder)]
    builder.build("recsys", ROOT, (DEPLOY / "Dockerfile").read_text(), *options)
    return builder.files("recsys")


def test_only_what_is_installed_is_sent_to_the_builder(builder: Builder) -> None:
    builder.build("context", ROOT, "FROM scratch\nCOPY . /\n")
    _, sent = builder.files("context")
    packages = {"recsys", "features", "optimize", "serving"}
    assert {path.name for path in sent.iterdir()} == {"pyproject.toml", "README.md", "constraints.txt", *packages}
    assert not [path for path in sent.rglob("*") if path.name == "__pycache__" or path.suffix == ".pyc"]


def test_the_image_holds_what_serves_and_no_torch(image: tuple[str, Path]) -> None:
    _, root = image
    installed = {path.name for path in (root / "opt/recsys/lib/python3.11/site-packages").iterdir()}
    assert installed >= {"recsys", "serving", "openvino", "psycopg"}
    assert installed.isdisjoint({"torch", "transformers", "pytest", "pip", "setuptools", "tests"})
    assert not (root / "build").exists()
    size_mb = sum(path.lstat().st_size for path in (root / "opt/recsys").rglob("*")) / 1e6
    print(f"/opt/recsys: {size_mb:.0f} MB")
    assert size_mb < MOST_MB


def test_the_image_answers_and_drains(image: tuple[str, Path], builder: Builder, ring_releases: Path) -> None:
    container, _ = image
    described: dict[str, Any] = json.loads(builder("inspect", container))["Docker"]["config"]
    assert (described["User"], described["StopSignal"]) == ("recsys", "SIGTERM")
    state, settings, port = builder.folder / "state", builder.folder / "serve.toml", free_port()
    state.mkdir()
    shutil.chown(state, UID)
    shop = token("shop", "read", "write")
    settings.write_text(f"[[serve.tokens]]\nname = 'shop'\nsha256 = '{shop['sha256']}'\nscopes = ['read', 'write']\n")
    mounts = [f"{ring_releases}:/releases:ro", f"{settings}:/etc/recsys/serve.toml:ro", f"{state}:/state"]
    options = [
        "--isolation",
        "chroot",
        "--network",
        "host",
        *(f"--volume={mount}" for mount in mounts),
        container,
        "--",
    ]
    store = ["--store", "sqlite:////state/events.db", "--port", str(port)]
    command = [*builder.command, "run", *options, *described["Entrypoint"], *store]
    with (
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as run,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):
        assert run.stderr is not None
        try:
            assert any(f"http://0.0.0.0:{port}/console" in line for line in run.stderr)
            (serving,) = (each for each in psutil.Process(run.pid).children(recursive=True) if is_endpoint(each))
            assert set(serving.uids()) == {UID}
            assert any(client.get("/readyz").status_code == 200 for _ in range(10_000))
            probe = [part.replace("8000", str(port)) for part in described["Healthcheck"]["Test"][1:]]
            builder("run", "--isolation", "chroot", "--network", "host", container, "--", *probe)
            client.headers["Authorization"] = "Bearer secret of shop"
            told = client.post("/v1/events", json={"events": [{"user_id": "ann", "item_id": "sku-1"}]})
            assert told.json()["stored"] == 1
            answer = client.post("/v1/recommendations", json={"user_id": "ann", "deadline_ms": 5_000}).json()
            assert (answer["source"], answer["degraded"], len(answer["items"])) == ("model", None, 10)
            serving.terminate()
            log = run.communicate(timeout=60)[1]
        finally:
            if run.poll() is None:
                for each in [*psutil.Process(run.pid).children(recursive=True), run]:
                    each.kill()
    assert f'"request_id": "{answer["request_id"]}"' in log
    assert "Traceback" not in log
    with EventStore.open(f"sqlite:///{state / 'events.db'}").engine.connect() as connection:
        kept = connection.exec_driver_sql("select request_id from impressions").scalars().all()
    assert kept == [answer["request_id"]]


def is_endpoint(process: psutil.Process) -> bool:
    return process.cmdline()[:3] == ["/opt/recsys/bin/python3", "/opt/recsys/bin/recsys", "serve"]


@pytest.fixture(scope="module")
def docker(builder: Builder, image: tuple[str, Path]) -> Iterator[list[str | Path]]:
    """The client's command, of a daemon of our own that has the images of compose.yaml."""
    daemon = service_program("dockerd", "docker.io", [Path("/usr/sbin")])
    folder = builder.folder / "docker"
    folder.mkdir()
    places = ["--data-root", folder / "data", "--exec-root", folder / "exec", "--pidfile", folder / "pid"]
    options = ["--host", f"unix://{folder / 'socket'}", "--bridge", "none", "--default-ulimit", "nofile=4096:4096"]
    client: list[str | Path] = [service_program("docker", "docker.io"), "--host", f"unix://{folder / 'socket'}"]
    with (folder / "log").open("wb") as log, subprocess.Popen([daemon, *places, *options], stderr=log) as run:
        try:
            wait_until(lambda: (folder / "socket").exists() or run.poll() is not None)
            for service, entry in STAND_INS.items():
                context = builder.folder / service
                context.mkdir()
                (context / "entry").write_text(entry)
                (context / "entry").chmod(0o755)
                path = (
                    "ENV BIN=/usr/lib/postgresql/15/bin PATH=/usr/lib/postgresql/15/bin:/usr/sbin:/usr/bin:/sbin:/bin"
                )
                builder.build(
                    service, context, f'FROM localhost/base\nCOPY entry /entry\n{path}\nENTRYPOINT ["/entry"]\n'
                )
            services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"].values()
            for name in {service["image"] for service in services}:
                archive, tag = builder.folder / "image.tar", name if ":" in name else f"{name}:latest"
                builder("push", f"localhost/{name.partition(':')[0]}", f"docker-archive:{archive}:{tag}")
                told(*client, "load", "--quiet", "--input", archive)
                archive.unlink()
            yield client
        finally:
            run.terminate()


def told(*command: object, **of_run: Any) -> str:
    """What a command says; it succeeds."""
    command = tuple(map(str, command))
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600, **of_run)
    assert done.returncode == 0, done.stdout
    return done.stdout.strip()


def wait_until(is_there: Callable[[], bool], most_s: float = 60) -> None:
    deadline = time.monotonic() + most_s
    while not is_there():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_compose_starts_a_shop_that_outlives_a_worker(
    docker: list[str | Path], ring_releases: Path, tmp_path: Path
) -> None:
    """By docker-compose and a real daemon; nginx and PostgreSQL are Debian's, in images of ours."""
    compose_program = service_program("docker-compose", "docker-compose")
    place, ports = tmp_path / "deploy", {number: free_port() for number in (8000, 8001, 8002)}
    shutil.copytree(DEPLOY, place)
    zeros = {"shop": "0" * 64, "operator": "0" * 63 + "1"}
    settings = (place / "serve.toml").read_text()
    for name, zero in zeros.items():
        settings = settings.replace(zero, token(name)["sha256"])
    (place / "serve.toml").write_text(settings)
    composed = (place / "compose.yaml").read_text()
    for number, port in ports.items():
        composed = re.sub(rf'"((127\.0\.0\.1:)?){number}:', rf'"\g<1>{port}:', composed)
    (place / "compose.yaml").write_text(composed)
    variables = {"RELEASES": str(ring_releases), "POSTGRES_PASSWORD": "a word", "DOCKER_HOST": str(docker[-1])}
    how: dict[str, Any] = {"cwd": place, "env": os.environ | variables}
    compose = [compose_program, "--project-name", "recsys-test"]

    def client(number: int, name: str) -> httpx.Client:
        of_token = {"Authorization": f"Bearer secret of {name}"}
        return httpx.Client(base_url=f"http://127.0.0.1:{ports[number]}", headers=of_token, timeout=30)

    try:
        told(*compose, "up", "--detach", "--no-build", **how)
        with client(8000, "shop") as shop, client(8001, "shop") as first, client(8002, "operator") as second:
            wait_until(lambda: shop.get("/readyz").status_code == 200)
            events = {"events": [{"user_id": "ann", "item_id": "sku-1"}]}
            assert shop.post("/v1/events", json=events).json()["stored"] == 1
            asked = {"user_id": "ann", "deadline_ms": 5_000}
            answers = [each.post("/v1/recommendations", json=asked).json() for each in (shop, first, second)]
            assert [(answer["source"], answer["degraded"]) for answer in answers] == [("model", None)] * 3
            assert [shop.get(path).status_code for path in ("/metrics", "/v1/admin/releases", "/console")] == [404] * 3
            assert second.get("/v1/admin/releases").status_code == 200
            told(*docker, "kill", "recsys-test_worker-1_1")
            assert {shop.post("/v1/recommendations", json=asked).status_code for _ in range(20)} == {200}
        told(*compose, "stop", "worker-2", **how)
        state = json.loads(told(*docker, "inspect", "recsys-test_worker-2_1"))[0]["State"]
        assert (state["Status"], state["ExitCode"]) == ("exited", 0)
        assert "Traceback" not in told(*compose, "logs", "--no-color", "worker-1", "worker-2", **how)
    finally:
        told(*compose, "down", "--volumes", **how)
