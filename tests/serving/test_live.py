"""Releases that change while requests are answered: switched, rolled back, side by side, unseen."""

import gc
import hashlib
import time
from pathlib import Path

import httpx
import pytest

from recsys.contracts import artifact
from recsys.contracts.errors import ArtifactError, ConfigError
from recsys.runtime.recommender import Recommender
from recsys.store import EventStore
from serving.app import create_app
from serving.arms import Arm, Arms
from serving.config import ServeConfig
from serving.live import Releases
from serving.sessions import SessionCache
from tests.serving.conftest import FakeEngine, fake_release, running

SECRET = "s3cret"
ADMIN = {"name": "ops", "sha256": hashlib.sha256(SECRET.encode()).hexdigest(), "scopes": ["read", "write", "admin"]}


class Site:
    """A folder of releases a, b and broken; a is current."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "releases"
        for name in ("a", "b", "c", "broken"):
            (self.folder / name).mkdir(parents=True)
            (self.folder / name / artifact.MANIFEST_NAME).write_text("{}")
        artifact.set_current(self.folder, "a")
        self.store = EventStore.open(f"sqlite:///{folder / 'store.db'}")
        self.engines = {name: FakeEngine() for name in "abc"}

    def load(self, path: Path) -> Recommender:
        if path.name == "broken":
            raise ArtifactError(f"{path}: truncated or altered")
        return Recommender(fake_release(self.engines[path.name], path.name))

    def releases(self, limit_bytes: int = 10**8, **settings) -> Releases:
        cache = SessionCache(limit_bytes)
        return Releases(self.load(self.folder / "a"), self.store, cache, self.folder, self.load, **settings)


@pytest.fixture
def site(tmp_path: Path):
    made = Site(tmp_path)
    yield made
    made.store.close()


@pytest.fixture
def client(site: Site):
    config = ServeConfig(tokens=(ADMIN,), deadline_ms=10_000, poll_s=3_600, recall_s=3_600)
    releases = site.releases()
    with (
        running(create_app(config, releases, site.store, releases._cache)) as address,
        httpx.Client(base_url=address, headers={"Authorization": f"Bearer {SECRET}"}, timeout=30) as opened,
    ):
        yield opened


def ask(client: httpx.Client, **body) -> dict:
    response = client.post("/v1/recommendations", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def test_the_hottest_sessions_are_encoded_before_the_switch(client: httpx.Client, site: Site) -> None:
    client.post("/v1/events", json={"events": [{"user_id": "ann", "item_id": f"sku-{n}"} for n in range(5)]})
    ask(client, user_id="ann")
    client.post("/v1/admin/releases/b/activate")
    encoded = list(site.engines["b"].encoded)
    assert 5 in encoded
    assert ask(client, user_id="ann")["release"] == "b"
    assert site.engines["b"].encoded == encoded  # the request found it encoded


def test_a_broken_release_is_refused_and_the_old_one_goes_on(client: httpx.Client, site: Site) -> None:
    response = client.post("/v1/admin/releases/broken/activate")
    assert (response.status_code, "truncated or altered" in response.text) == (409, True)
    assert client.post("/v1/admin/releases/none/activate").status_code == 409
    assert client.post("/v1/admin/releases/..%2Fa/activate").status_code in {404, 422}
    assert client.post("/v1/admin/rollback").status_code == 409
    assert client.get("/v1/admin/releases").json() == {
        "current": "a",
        "loaded": ["a"],
        "releases": ["a", "b", "broken", "c"],
        "preparing": None,
    }
    assert ask(client, events=[{"item_id": "sku-1"}])["release"] == "a"


def test_a_worker_follows_the_pointer_that_another_process_moved(site: Site) -> None:
    releases = site.releases()
    artifact.set_current(site.folder, "b")
    releases.refresh()
    assert releases.current.name == "b"
    artifact.set_current(site.folder, "broken")
    assert [type(failure) for failure in releases.refresh()] == [ArtifactError]
    assert releases.refresh() == []  # it is not tried again every second
    assert releases.current.name == "b"
    artifact.set_current(site.folder, "a")
    assert releases.refresh() == []
    artifact.set_current(site.folder, "broken")
    assert len(releases.refresh()) == 1  # somebody wants it anew


@pytest.mark.parametrize(
    ("moves", "before"),
    [
        (["nightly b"], "a"),
        (["api c", "nightly b"], "c"),
        (["nightly b", "api c"], "b"),
        (["nightly b", "nightly b"], "a"),
        (["api b", "api a"], "b"),
        (["nightly broken"], "a"),
    ],
)
def test_one_call_rolls_back_to_the_release_before_whoever_moved_current(
    site: Site, moves: list[str], before: str
) -> None:
    releases, other_worker = site.releases(), site.releases()
    for move in moves:
        who, name = move.split()
        if who == "api":
            releases.activate(name)
        else:
            artifact.set_current(site.folder, name)  # as `recsys nightly --activate` does
            releases.refresh()
    assert other_worker.roll_back() == before
    releases.refresh()
    assert (releases.current.name, artifact.current_name(site.folder)) == (before, before)


def test_a_roll_back_that_cannot_be_changes_nothing(site: Site) -> None:
    releases = site.releases()
    with pytest.raises(ConfigError, match="no release was current before this one; activate one of the list"):
        releases.roll_back()
    for name in ("broken", "b"):
        artifact.set_current(site.folder, name)
    releases.refresh()
    with pytest.raises(ArtifactError, match="truncated or altered"):
        releases.roll_back()
    assert (releases.current.name, artifact.current_names(site.folder)) == ("b", ["b", "broken", "a"])


def test_night_after_night_only_the_last_two_releases_stay_in_memory(site: Site) -> None:
    releases = site.releases()
    for name in ("b", "c", "a", "b"):
        releases.activate(name)
        assert len(releases.loaded) == 2
    assert releases.loaded == ["a", "b"]
    assert releases.roll_back() == "a"
    assert releases.roll_back() == "c"
    releases.set_arms(Arms(arms=[Arm(name="x", release="b")]))
    releases.activate("a")
    assert releases.loaded == ["a", "b", "c"]  # an arm still answers by b


def test_arms_share_users_and_change_weights_while_running(client: httpx.Client) -> None:
    def share_of_b() -> float:
        answers = [ask(client, user_id=f"u{n}", k=1) for n in range(200)]
        assert {(a["arm"], a["release"]) for a in answers} <= {("old", "a"), ("new", "b")}
        return sum(a["release"] == "b" for a in answers) / 200

    for weight, low, high in ((1, 0.38, 0.62), (9, 0.82, 0.97), (0, 0, 0)):
        body = {"arms": [{"name": "old"}, {"name": "new", "release": "b", "weight": weight}]}
        assert client.put("/v1/admin/arms", json=body).status_code == 200
        assert low <= share_of_b() <= high


@pytest.mark.parametrize(
    "body",
    [
        {"arms": []},
        {"arms": [{"name": "x", "weight": 0}]},
        {"arms": [{"name": "x"}, {"name": "x"}]},
        {"arms": [{"name": "shadow"}]},
        {"arms": [{"name": "all"}, {"name": "x"}]},
        {"arms": [{"name": "all", "release": "b"}]},
        {"arms": [{"name": "x", "release": "../../etc"}]},
    ],
)
def test_arms_that_make_no_sense_are_refused(client: httpx.Client, body: dict) -> None:
    assert client.put("/v1/admin/arms", json=body).status_code == 422


def test_arms_of_a_release_that_cannot_be_loaded_change_nothing(client: httpx.Client) -> None:
    body = {"arms": [{"name": "x", "release": "broken"}]}
    assert client.put("/v1/admin/arms", json=body).status_code == 409
    assert client.get("/v1/admin/arms").json()["arms"] == [{"name": "all", "release": None, "weight": 1.0}]


def test_a_shadow_answers_unseen_and_is_counted_apart(client: httpx.Client, site: Site) -> None:
    client.put("/v1/admin/arms", json={"arms": [{"name": "all"}], "shadow": "b"})
    client.post("/v1/events", json={"events": [{"user_id": "ann", "item_id": "sku-1"}]})
    answer = ask(client, user_id="ann", k=2)
    assert answer["release"] == "a"
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        site.store.attribution.update(1_000)
        counted = site.store.attribution.totals()
        if len(counted) == 2:
            break
    assert {key: counts.answers for key, counts in counted.items()} == {("a", "all"): 1, ("b", "shadow"): 1}


def test_another_worker_takes_over_rules_with_the_next_request(site: Site) -> None:
    here, there = site.releases(), site.releases()
    here.set_rules(here.rules.model_copy(update={"denied": ["sku-3"]}))
    there.follow(site.store.glance("ann").revision)
    assert there.rules.denied == ["sku-3"]
    here.set_availability({"sku-1": False, "sku-2": False})
    here.set_availability({"sku-1": True})
    there.follow(site.store.glance("ann").revision)
    assert (there.rules.denied, there.rules.unavailable) == (["sku-3"], ["sku-2"])


def test_a_server_of_one_release_says_that_it_cannot_switch(site: Site) -> None:
    alone = Releases(site.load(site.folder / "a"), site.store, SessionCache(0))
    assert alone.names() == ["a"]
    with pytest.raises(ConfigError, match="started with one release"):
        alone.activate("b")
    with pytest.raises(ConfigError, match="no release b here"):
        alone.set_arms(Arms(arms=[Arm(name="x", release="b")]))


def test_a_release_is_loaded_without_looks_for_garbage_and_kept_out_of_later_ones(site: Site, monkeypatch) -> None:
    releases, was_enabled, true = site.releases(), [], site.load

    def load(path: Path) -> Recommender:
        was_enabled.append(gc.isenabled())
        return true(path)

    monkeypatch.setattr(releases, "_load", load)
    before = gc.get_freeze_count()
    releases.activate("b")
    assert (was_enabled, gc.isenabled()) == ([False], True)
    assert gc.get_freeze_count() > before
    gc.unfreeze()
    with pytest.raises(ArtifactError):
        releases.activate("broken")
    assert gc.isenabled()
