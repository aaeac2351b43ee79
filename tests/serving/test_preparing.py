"""Sessions that are encoded before a switch: whose, in which order, how many, and what comes in between."""

import threading
from collections.abc import Callable

import httpx
import pytest

from recsys.contracts import artifact
from recsys.contracts.events import Event
from serving.app import create_app
from serving.arms import Arm, Arms
from serving.config import ServeConfig
from serving.live import Releases
from serving.preparing import NotWantedError, Preparer
from tests.serving.conftest import running
from tests.serving.test_live import ADMIN, SECRET, Site, site  # noqa: F401  # a fixture
from tests.serving.test_live_trouble import beside


def warm(releases: Releases, site: Site, num_users: int) -> list[str]:  # noqa: F811
    """Users with a session under the current release, the coldest first."""
    users = [f"u{n}" for n in range(num_users)]
    site.store.append([Event(user_id=user, item_id=f"sku-{n}", timestamp_ms=n) for user in users for n in range(5)])
    for user in users:
        releases.current.sessions.state(user, site.store.glance(user))
    return users


def kept(releases: Releases, name: str) -> list[str]:
    """The last used first."""
    return releases._cache.latest_users({name})


class SlowClock:
    """Time that passes only while something is encoded, or somebody rests."""

    def __init__(self, site: Site) -> None:  # noqa: F811
        self.now = 0.0
        self.rests: list[float] = []
        for engine in site.engines.values():
            engine.encode = self._slow(engine.encode)

    def _slow(self, encode: Callable) -> Callable:
        def encoding(windows):
            self.now += 0.05
            return encode(windows)

        return encoding

    def rest(self, seconds: float) -> None:
        self.rests.append(seconds)
        self.now += seconds


def test_every_kept_session_is_encoded_before_the_switch_however_many_there_are(site: Site) -> None:  # noqa: F811
    releases, clock = site.releases(), SlowClock(site)
    releases.preparer._clock, releases.preparer._rest = (lambda: clock.now), clock.rest
    users = warm(releases, site, 300)
    began = clock.now
    releases.activate("b")
    assert kept(releases, "b") == users[::-1]  # and the hottest leave last
    assert clock.now - began > 300 * 0.05
    assert sum(clock.rests) >= 300 * 0.05 * 0.99  # half of a processor at most


def test_where_time_ends_the_hottest_are_encoded(site: Site) -> None:  # noqa: F811
    releases, clock = site.releases(prepare_s=1.05), SlowClock(site)
    releases.preparer._clock, releases.preparer._rest = (lambda: clock.now), clock.rest
    users = warm(releases, site, 30)
    releases.activate("b")
    assert releases.current.name == "b"
    assert kept(releases, "b") == users[:-12:-1]  # 0.05 s to encode, as much to rest


def test_new_sessions_take_half_of_the_cache_and_leave_half_to_those_that_answer(site: Site) -> None:  # noqa: F811
    tell_size = site.releases()
    warm(tell_size, site, 1)
    size = tell_size._cache.size_bytes
    releases = site.releases(limit_bytes=20 * size)
    users = warm(releases, site, 20)
    releases.activate("b")
    assert kept(releases, "a") == kept(releases, "b") == users[:-11:-1]
    assert releases.roll_back() == "a"
    assert kept(releases, "a") == users[:-11:-1]  # a roll-back finds them


def test_users_who_come_meanwhile_are_encoded_too(site: Site) -> None:  # noqa: F811
    releases = site.releases()
    warm(releases, site, 3)

    def somebody_comes(_: float) -> None:
        if "late" not in kept(releases, "a"):
            site.store.append([Event(user_id="late", item_id="sku-1", timestamp_ms=1)])
            releases.current.sessions.state("late", site.store.glance("late"))

    releases.preparer._rest = somebody_comes
    releases.activate("b")
    assert "late" in kept(releases, "b")


def test_requests_go_first_but_not_for_ever(site: Site) -> None:  # noqa: F811
    clock = SlowClock(site)
    releases = site.releases()
    preparer = Preparer(site.store, releases._cache, lambda: clock.now, clock.rest)
    releases.preparer = preparer
    warm(releases, site, 2)
    preparer.is_busy = lambda: True
    releases.activate("b")
    assert len(kept(releases, "b")) == 2
    assert sum(rest for rest in clock.rests if rest == 0.002) == pytest.approx(2 * 0.25, abs=0.005)  # for each user


class Held:
    """A preparation that stands still after its first user."""

    def __init__(self, releases: Releases) -> None:
        self.stands = threading.Event()
        self.go_on = threading.Event()
        releases.preparer._rest = self._hold

    def _hold(self, _: float) -> None:
        self.stands.set()
        assert self.go_on.wait(30)


def test_a_roll_back_gives_up_what_is_being_prepared(site: Site) -> None:  # noqa: F811
    releases, raised = site.releases(), []
    warm(releases, site, 5)
    held = Held(releases)

    def activate() -> None:
        with pytest.raises(NotWantedError, match="b: not switched to: it was rolled back before it answered"):
            releases.activate("b")
        raised.append(True)

    changing = threading.Thread(target=activate)
    changing.start()
    assert held.stands.wait(30)
    assert (releases.current.name, releases.preparing.num_done, releases.preparing.num_users) == ("a", 1, 5)
    back = beside(lambda: raised.append(releases.roll_back()))
    held.go_on.set()
    back.join(30)
    changing.join(30)
    assert sorted(raised, key=str) == [True, "a"]
    assert (releases.current.name, artifact.current_name(site.folder), releases.preparing) == ("a", "a", None)
    releases.activate("b")  # the next one is prepared again
    assert releases.current.name == "b"


def test_a_pointer_that_moves_on_while_a_worker_follows_it_ends_the_preparation(site: Site) -> None:  # noqa: F811
    releases, failures = site.releases(), []
    warm(releases, site, 5)
    held = Held(releases)
    artifact.set_current(site.folder, "b")
    following = threading.Thread(target=lambda: failures.extend(releases.refresh()))
    following.start()
    assert held.stands.wait(30)
    artifact.set_current(site.folder, "a")
    held.go_on.set()
    following.join(30)
    assert (failures, releases.current.name, len(kept(releases, "b"))) == ([], "a", 1)


def test_an_activation_that_takes_long_says_so_and_how_far_it_is(site: Site) -> None:  # noqa: F811
    config = ServeConfig(tokens=(ADMIN,), deadline_ms=10_000, poll_s=3_600, recall_s=3_600)
    releases = site.releases()
    warm(releases, site, 5)
    app = create_app(config, releases, site.store, releases._cache)
    app.state.endpoint.changes._patience_s = 0.2
    headers = {"Authorization": f"Bearer {SECRET}"}
    with running(app) as address, httpx.Client(base_url=address, headers=headers, timeout=30) as client:
        held = Held(releases)
        asked = client.post("/v1/admin/releases/b/activate")
        progress = {"releases": ["b"], "num_users": 5, "num_done": 1}
        assert (asked.status_code, asked.json()["current"], asked.json()["preparing"]) == (202, "a", progress)
        assert client.get("/v1/status").json()["preparing"] == progress
        assert client.get("/v1/admin/releases").json()["preparing"] == progress
        for refused in (
            client.post("/v1/admin/releases/c/activate"),
            client.put("/v1/admin/arms", json={"arms": [{"name": "x", "release": "c"}]}),
        ):
            assert refused.status_code == 409
            assert "another change is under way: 1 of 5 sessions are encoded for b; wait" in refused.text
        assert client.post("/v1/recommendations", json={"user_id": "u0"}).json()["release"] == "a"
        held.go_on.set()
        with releases._changing:
            pass
        assert client.get("/v1/admin/releases").json()["current"] == "b"
        assert client.get("/v1/status").json()["preparing"] is None


def test_arms_are_prepared_under_the_release_that_each_user_is_dealt_to(site: Site) -> None:  # noqa: F811
    releases = site.releases()
    users = warm(releases, site, 30)
    arms = Arms(arms=[Arm(name="old"), Arm(name="new", release="c")])
    releases.set_arms(arms)
    assert set(kept(releases, "c")) == {user for user in users if arms.arm_of(user).name == "new"}
