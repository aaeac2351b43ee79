"""Changes of releases and arms that come at once, or fail half-way: the rest goes on, and no label is wrong."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from recsys.contracts import artifact
from recsys.contracts.errors import ArtifactError, ConfigError, StoreError
from recsys.contracts.events import Event
from recsys.runtime.recommender import Recommender
from serving.arms import ARMS_DOCUMENT, Arm, Arms
from serving.live import Releases
from tests.serving.test_live import Site, site  # noqa: F401  # a fixture

NEW = Arms(arms=[Arm(name="old"), Arm(name="new", release="c")])
USERS = [f"u{n}" for n in range(20)]


def beside(work: Callable[[], object]) -> threading.Thread:
    """A thread that does `work`, once it is done or surely waits for somebody else."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(0.3)
    return thread


def users_of(arm: str) -> list[str]:
    return [user for user in USERS if NEW.arm_of(user).name == arm]


def make_hot(releases: Releases, site: Site) -> None:  # noqa: F811
    """Every user has five events and a session under the current release."""
    site.store.append([Event(user_id=u, item_id=f"sku-{n}", timestamp_ms=n) for u in USERS for n in range(5)])
    for user in USERS:
        releases.current.sessions.state(user, site.store.glance(user))


def test_a_poll_in_the_middle_of_an_activation_does_not_switch_back(
    site: Site,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    releases, polls, true = site.releases(), [], artifact.set_current

    def moved_after_a_poll(folder: Path, name: str) -> None:
        polls.append(beside(releases.refresh))
        true(folder, name)
        polls.append(beside(releases.refresh))

    monkeypatch.setattr(artifact, "set_current", moved_after_a_poll)
    releases.activate("b")
    for poll in polls:
        poll.join(30)
    assert (artifact.current_name(site.folder), releases.current.name) == ("b", "b")


def test_a_pointer_that_cannot_be_moved_leaves_the_release_before(
    site: Site,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    releases = site.releases()

    def refuse(folder: Path, _: str) -> None:
        raise ArtifactError(f"{folder}: not written: no space left")

    monkeypatch.setattr(artifact, "set_current", refuse)
    with pytest.raises(ArtifactError, match="no space left"):
        releases.activate("b")
    assert releases.current.name == "a"


def test_an_activation_while_arms_are_set_does_not_take_their_release_away(site: Site) -> None:  # noqa: F811
    releases, true, others = site.releases(), site.store.write_document, []

    def written_after_an_activation(name, change):
        others.append(beside(lambda: releases.activate("b")))
        return true(name, change)

    site.store.write_document = written_after_an_activation
    releases.set_arms(NEW)
    others[0].join(30)
    assert releases.current.name == "b"
    assert {(arm, by.name) for arm, by in map(releases.route, USERS)} == {("old", "b"), ("new", "c")}


def test_users_of_an_arm_whose_release_is_gone_are_in_no_arm_and_the_rest_goes_on(site: Site) -> None:  # noqa: F811
    releases = site.releases()
    arms = [Arm(name="x", release="gone"), Arm(name="new", release="c"), Arm(name="old")]
    site.store.write_document(ARMS_DOCUMENT, lambda _: Arms(arms=arms).model_dump())
    artifact.set_current(site.folder, "b")
    for _ in range(2):
        (failure,) = releases.refresh()  # said every time: the release may come
        assert isinstance(failure, ConfigError)
        assert str(failure) == "no release gone here; list them first"
    assert releases.has_caught_up
    assert {(arm, by.name) for arm, by in map(releases.route, USERS)} == {("all", "b"), ("new", "c"), ("old", "b")}
    (site.folder / "c").rename(site.folder / "gone")
    site.engines["gone"] = site.engines["c"]
    assert releases.refresh() == []
    assert {arm for arm, _ in map(releases.route, USERS)} == {"x", "new", "old"}


def test_a_broken_release_of_an_arm_is_tried_once_and_a_passing_trouble_again(site: Site) -> None:  # noqa: F811
    releases, true, loads = site.releases(), site.load, []

    def flaky(path: Path) -> Recommender:
        loads.append(path.name)
        if path.name == "b" and loads.count("b") == 1:
            raise StoreError("store: locked")
        return true(path)

    releases._load = flaky
    site.store.write_document(ARMS_DOCUMENT, lambda _: Arms(arms=[Arm(name="x", release="broken")]).model_dump())
    artifact.set_current(site.folder, "b")
    assert [type(failure) for failure in releases.refresh()] == [StoreError, ArtifactError]
    assert [releases.refresh(), releases.refresh()] == [[], []]
    assert releases.current.name == "b"
    assert loads == ["b", "broken", "b"]


def test_a_store_that_cannot_be_read_does_not_keep_a_worker_from_following_current(
    site: Site,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    releases = site.releases()
    make_hot(releases, site)
    artifact.set_current(site.folder, "b")

    def gone(*_: object) -> None:
        raise StoreError("store: not read: busy")

    with monkeypatch.context() as broken:
        broken.setattr(site.store, "glance", gone)
        broken.setattr(site.store, "document", gone)
        assert [type(failure) for failure in releases.refresh()] == [StoreError, StoreError]
    assert (releases.current.name, releases.has_caught_up) == ("b", False)
    assert releases.refresh() == []
    assert releases.has_caught_up


@pytest.mark.parametrize("who", ["the worker that was asked", "another worker"])
def test_an_experiment_does_not_begin_cold(site: Site, who: str) -> None:  # noqa: F811
    asked, other = site.releases(), site.releases()
    releases = asked if who == "the worker that was asked" else other
    make_hot(releases, site)
    asked.set_arms(NEW)
    other.refresh()
    encoded = site.engines["c"].encoded
    assert encoded.count(5) == len(users_of("new")) > 0  # and nobody of the other arm
    for user in users_of("new"):
        arm, by = releases.route(user)
        assert (arm, by.name, by.sessions.state(user, site.store.glance(user))[1]) == ("new", "c", "unchanged")


def test_sessions_are_encoded_for_a_bounded_time_only(site: Site) -> None:  # noqa: F811
    releases = site.releases(prepare_s=0)
    make_hot(releases, site)
    releases.set_arms(NEW)
    releases.activate("b")
    assert [site.engines[name].encoded.count(5) for name in "bc"] == [0, 0]
    assert {(arm, by.name) for arm, by in map(releases.route, USERS)} == {("old", "b"), ("new", "c")}


def test_nobody_goes_by_old_rules_while_another_request_reads_the_new_ones(
    site: Site,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here, there, go_on, held = site.releases(), site.releases(), threading.Event(), []
    there.set_rules(there.rules.model_copy(update={"denied": ["sku-3"]}))
    revision, true = site.store.glance("ann").revision, site.store.document

    def slow(name: str) -> object:
        go_on.wait(30)
        return true(name)

    def request() -> None:
        here.follow(revision)
        held.append(here.rules.denied)

    monkeypatch.setattr(site.store, "document", slow)
    requests = [beside(request), beside(request)]
    go_on.set()
    for each in requests:
        each.join(30)
    assert held == [["sku-3"], ["sku-3"]]
