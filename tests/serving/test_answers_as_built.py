"""A release that does not answer here as when it was built: whole by its digests, and yet not fit to serve."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from recsys.contracts import artifact
from recsys.runtime.consistency import REFERENCE_FILE, Reference
from serving.app import load_app
from serving.config import ServeConfig
from serving.live import Releases
from tests.serving.conftest import running

SECRET = "s3cret"
ADMIN = {"name": "ops", "sha256": hashlib.sha256(SECRET.encode()).hexdigest(), "scopes": ["read", "write", "admin"]}


def put(release: Path, place: Path, turned: bool) -> None:
    """A signed copy of a release; `turned` has a reference whose vectors point the other way."""
    made = artifact.verify(release, "release")
    with artifact.writing(place, "release") as writer:
        for name, entry in made.files.items():
            writer.link(release, name, entry)
        if turned:
            reference = Reference.load(release / REFERENCE_FILE)
            (writer.folder / REFERENCE_FILE).unlink()  # a hard link: what it points to must stay as it is
            writer._linked.pop(REFERENCE_FILE)
            replace(reference, vectors_ND=-reference.vectors_ND).save(writer.folder / REFERENCE_FILE)
        writer.commit(parents=made.parents, config=made.config, metrics=made.metrics)
    artifact.verify(place, "release")


@pytest.fixture
def folder(ring_releases: Path, tmp_path: Path) -> Path:
    """Releases `good`, and `turned`, which is current."""
    release = artifact.resolve_release(ring_releases)
    for name in ("good", "turned"):
        put(release, tmp_path / "releases" / name, turned=name == "turned")
    artifact.set_current(tmp_path / "releases", "turned")
    return tmp_path / "releases"


@contextmanager
def served(folder: Path, poll_s: float = 3_600) -> Iterator[tuple[httpx.Client, Releases]]:
    """A real server once it has warmed up, or tried to."""
    config = ServeConfig(tokens=(ADMIN,), deadline_ms=10_000, poll_s=poll_s, recall_s=3_600, num_threads=1)
    app, releases = load_app(config, folder, f"sqlite:///{folder.parent / 'store.db'}")
    headers = {"Authorization": f"Bearer {SECRET}"}
    with running(app) as address, httpx.Client(base_url=address, headers=headers, timeout=30) as client:
        assert app.state.endpoint.warmed.wait(60)
        yield client, releases


def num_failures(client: httpx.Client) -> float:
    text = client.get("/metrics").text
    return float(
        next(line for line in text.splitlines() if line.startswith("recsys_release_failures_total")).split()[1]
    )


def test_the_first_release_keeps_the_server_from_being_ready_until_a_fit_one_is_activated(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with served(folder) as (client, _):
        answer = client.get("/readyz")
        assert (answer.status_code, answer.json()) == (
            503,
            {"status": "the release failed its check; the log says how", "release": "turned"},
        )
        assert client.get("/healthz").status_code == 200
        assert "turned: openvino does not answer here as openvino did when the release was built" in caplog.text
        assert num_failures(client) == 1
        event = {"user_id": "ann", "item_id": "sku-1"}
        assert client.post("/v1/events", json={"events": [event]}).json()["stored"] == 1
        assert client.post("/v1/admin/releases/turned/activate").status_code == 409  # not by asking again either
        assert client.post("/v1/admin/releases/good/activate").json()["current"] == "good"
        assert client.get("/readyz").json() == {"status": "ready", "release": "good"}


def test_a_later_release_is_refused_and_the_one_before_goes_on(folder: Path) -> None:
    artifact.set_current(folder, "good")
    with served(folder) as (client, releases):
        refused = client.post("/v1/admin/releases/turned/activate")
        assert refused.status_code == 409
        assert "does not answer here as openvino did when the release was built" in refused.text
        arms = {"arms": [{"name": "old"}, {"name": "new", "release": "turned"}]}
        assert client.put("/v1/admin/arms", json=arms).status_code == 409
        assert (artifact.current_name(folder), releases.loaded) == ("good", ["good"])
        assert client.get("/readyz").json() == {"status": "ready", "release": "good"}
        answer = client.post("/v1/recommendations", json={"events": [{"item_id": "sku-1"}]}).json()
        assert (answer["release"], answer["source"]) == ("good", "model")


def test_a_moved_pointer_to_one_is_not_followed_but_counted_and_logged(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    artifact.set_current(folder, "good")
    with served(folder, poll_s=0.05) as (client, releases):
        artifact.set_current(folder, "turned")
        assert any(num_failures(client) == 1 for _ in range(10_000))
        assert releases.current.name == "good"
        assert "turned: openvino does not answer here as" in caplog.text
        assert client.get("/readyz").status_code == 200
