"""The serving image: built from `deploy/Dockerfile`, looked into, and run."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from recsys.store import EventStore
from tests.conftest import service_program
from tests.serving.test_deploy import DEPLOY
from tests.serving.test_guard import token
from tests.serving.test_proxy import free_port

pytestmark = [pytest.mark.slow, pytest.mark.service]

ROOT = DEPLOY.parent
UID = 10_001
MOST_MB = 900


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
    command = [debootstrap, "--variant=minbase", "--include=python3,python3-venv,ca-certificates", "bookworm"]
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
