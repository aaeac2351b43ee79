"""The event store as the nightly job's log: nothing twice, nothing missing, the forgotten stay out."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from features import build, event_files, forget
from features.build import FeaturesConfig
from recsys.contracts.artifact import read_manifest
from recsys.contracts.errors import ConfigError, DataError, LockedError
from recsys.contracts.events import Event
from recsys.pipeline import nightly_features, store_log
from recsys.store import EventStore
from recsys.whole_histories import WholeHistories

CONFIG = FeaturesConfig(min_count=1)
DAY_MS = 86_400_000
START_MS = 1_700_000_000_000


class Clock:
    """The store's, which tests move on."""

    def __init__(self) -> None:
        self.seconds = START_MS / 1000

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def source(url: str, clock: Clock) -> EventStore:
    """A store whose events were received long ago."""
    opened = EventStore.open(url, clock)
    yield opened
    opened.close()


def events(day: int, users: tuple[str, ...] = ("ann", "bob", "cleo")) -> list[Event]:
    """Several at one moment, so that the order of arrival counts."""
    return [
        Event(
            user_id=users[n % len(users)],
            item_id=f"sku-{n * 7 % 5}",
            timestamp_ms=START_MS - 100 * DAY_MS + day * DAY_MS + n // 2,
            event_type="purchase" if n % 4 == 3 else "view",
        )
        for n in range(24)
    ]


def digest(features: Path) -> str:
    return str(read_manifest(features).metrics["content_digest"])


def from_files(folder: Path, *days: list[Event]) -> Path:
    """Features built from an export of the same events, a file a night under the names that a store's have."""
    first = 1
    for day in days:
        last = first + len(day) - 1
        rows = [(e.user_id, e.item_id, e.timestamp_ms, e.event_type) for e in day]
        frame = pl.DataFrame(rows, ["user_id", "item_id", "timestamp", "event_type"], orient="row")
        (folder / "export").mkdir(exist_ok=True)
        frame.write_parquet(folder / "export" / f"events-{first:015d}-{last:015d}.parquet")
        first = last + 1
    build.run(CONFIG, [folder / "export"], folder / "from-files")
    return folder / "from-files"


def histories(features: Path) -> dict[str, list[str]]:
    """What each user did, in order."""
    stored = WholeHistories(features)
    names = stored.item_ids()
    return {user: [names[index - 1] for index in history] for user, history in stored.each(None)}


def test_features_of_a_store_equal_those_of_a_file_of_the_same_events(url: str, source: EventStore, tmp_path) -> None:
    source.append(events(0))
    nightly_features.run(CONFIG, [url], tmp_path / "features")
    assert digest(tmp_path / "features") == digest(from_files(tmp_path, events(0)))


def test_each_night_reads_what_is_new_and_nothing_twice(url: str, source: EventStore, tmp_path) -> None:
    out = tmp_path / "features"
    for day in range(3):
        source.append(events(day))
        manifest = nightly_features.run(CONFIG, [url], out)
        assert manifest.metrics["tonight"]["num_events"] == 24
        assert manifest.metrics["why_full"] == ("first build" if day == 0 else None)
    nightly_features.run(CONFIG, [url], out)  # nothing is new
    assert digest(out) == digest(from_files(tmp_path, *(events(day) for day in range(3))))
    assert len(event_files.files(tmp_path / "features-events")) == 3


def test_events_of_the_last_minute_wait_for_the_next_night(source: EventStore, clock: Clock, tmp_path) -> None:
    source.append(events(0))
    clock.seconds += 100
    source.append(events(1))
    now_ms = int(clock.seconds * 1000) + 30_000
    out = tmp_path / "features"
    event_files.folder_of(out).mkdir()
    (first,) = store_log.write_new_events(CONFIG, source, out, now_ms)
    assert len(pl.read_parquet(first)) == 24
    assert store_log.write_new_events(CONFIG, source, out, now_ms) == []
    (second,) = store_log.write_new_events(CONFIG, source, out, now_ms + 60_000)
    assert len(pl.read_parquet(second)) == 24


def test_a_night_that_died_after_writing_files_is_taken_up(url: str, source: EventStore, tmp_path) -> None:
    source.append(events(0))
    (tmp_path / "features-events").mkdir()
    store_log.write_new_events(CONFIG, source, tmp_path / "features")
    nightly_features.run(CONFIG, [url], tmp_path / "features")
    assert digest(tmp_path / "features") == digest(from_files(tmp_path, events(0)))


def test_who_is_forgotten_at_the_endpoint_is_forgotten_by_the_job(url: str, source: EventStore, tmp_path) -> None:
    out = tmp_path / "features"
    source.append(events(0))
    source.append(events(1, users=("bob",)))
    nightly_features.run(CONFIG, [url], out)
    source.forget("bob")
    source.append(events(2, users=("ann",)))
    manifest = nightly_features.run(CONFIG, [url], out)
    assert manifest.metrics["why_full"] is None
    left = [[e for e in day if e.user_id != "bob"] for day in (events(0), events(2, users=("ann",)))]
    assert histories(out) == histories(from_files(tmp_path, *left))
    for path in (tmp_path / "features-events").glob("*.parquet"):
        assert "bob" not in pl.read_parquet(path)["user_id"]
    nightly_features.run(CONFIG, [url], out, full=True)  # also from the files alone
    assert histories(out) == histories(from_files(tmp_path, *left))


def test_what_a_session_did_is_the_user_s_it_was_joined_to_and_the_session_may_go_on(
    url: str, source: EventStore, tmp_path
) -> None:
    out = tmp_path / "features"
    source.append(events(0, users=("session", "ann")))
    nightly_features.run(CONFIG, [url], out)
    source.join("session", "ann")
    source.append(events(1, users=("session",)))
    joined = nightly_features.run(CONFIG, [url], out)
    assert joined.metrics["excluded"] == {"joined": 12}
    whole = [e for e in events(0, users=("session", "ann")) if e.user_id == "ann"]
    moved = [replace(e, user_id="ann") for e in events(0, users=("session", "ann")) if e.user_id == "session"]
    expected = from_files(tmp_path, whole, moved, events(1, users=("session",)))
    assert histories(out) == histories(expected)
    nightly_features.run(CONFIG, [url], out, full=True)
    assert histories(out) == histories(expected)
    source.forget("ann")  # with what was the session's
    nightly_features.run(CONFIG, [url], out)
    assert histories(out) == {"session": histories(expected)["session"]}
    left = pl.concat([pl.read_parquet(path) for path in (tmp_path / "features-events").glob("*.parquet")])
    assert (len(left), left["user_id"].unique().to_list()) == (24, ["session"])


def test_who_was_forgotten_before_the_first_night_is_left_out_of_logs_too(url, source: EventStore, tmp_path) -> None:
    source.append(events(0))
    source.forget("bob")
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\nbob,sku-1,1690000000\ncleo,sku-1,1690000000\n")
    nightly_features.run(CONFIG, [tmp_path / "log.csv", url], tmp_path / "features")
    users = pl.read_parquet(tmp_path / "features" / "users.parquet")["user_id"]
    assert sorted(users) == ["ann", "cleo"]


def test_two_stores_or_a_named_format_are_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2 event stores given; expected one"):
        nightly_features.run(CONFIG, [url, "sqlite:///x.db"], tmp_path / "features")
    with pytest.raises(ConfigError, match="found --format rees46; leave it out"):
        nightly_features.run(FeaturesConfig(format="rees46"), [url], tmp_path / "features")


def users_in_the_files(out: Path) -> list[set[str]]:
    return [set(pl.read_parquet(path)["user_id"]) for path in event_files.files(event_files.folder_of(out))]


def test_a_second_run_is_refused_while_the_first_writes_files(
    url: str, source: EventStore, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.append(events(0))
    write, refused = event_files.write, []

    def second_run_at_this_moment(*arguments: Any) -> Path:
        with pytest.raises(LockedError, match="features-events: another run is at work") as caught:
            nightly_features.run(CONFIG, [url], tmp_path / "features")
        refused.append(caught.value)
        return write(*arguments)

    monkeypatch.setattr(event_files, "write", second_run_at_this_moment)
    nightly_features.run(CONFIG, [url], tmp_path / "features")
    assert len(refused) == 1
    assert digest(tmp_path / "features") == digest(from_files(tmp_path, events(0)))


def test_files_that_hold_the_same_events_are_refused(url: str, source: EventStore, tmp_path) -> None:
    source.append(events(0))
    nightly_features.run(CONFIG, [url], tmp_path / "features")
    (whole,) = event_files.files(tmp_path / "features-events")
    shutil.copy(whole, whole.with_name(f"events-{5:015d}-{30:015d}.parquet"))
    with pytest.raises(
        DataError, match=r"-0{13}30.parquet: holds events of events-0{14}1-0{13}24.parquet again"
    ) as caught:
        nightly_features.run(CONFIG, [url], tmp_path / "features")
    assert "\n" not in str(caught.value)
    whole.unlink()
    for command in re.findall("`(.*?)`", str(caught.value)):
        subprocess.run(command, shell=True, check=True)
    nightly_features.run(CONFIG, [url], tmp_path / "features")
    assert (tmp_path / "features.old").exists()


def test_a_session_joined_after_a_first_night_that_failed_counts_once(url: str, source: EventStore, tmp_path) -> None:
    source.append(events(0, users=("session",)))
    with pytest.raises(DataError, match="pruning leaves no item"):
        nightly_features.run(FeaturesConfig(min_count=500), [url], tmp_path / "features")
    source.join("session", "ann")
    nightly_features.run(CONFIG, [url], tmp_path / "features")
    assert {user: len(history) for user, history in histories(tmp_path / "features").items()} == {"ann": 24}


def test_who_was_forgotten_after_a_first_night_that_failed_is_in_no_file(
    url: str, source: EventStore, tmp_path
) -> None:
    out = tmp_path / "features"
    source.append(events(0))
    with pytest.raises(DataError, match="pruning leaves no item"):
        nightly_features.run(FeaturesConfig(min_count=500), [url], out)
    source.forget("bob")
    nightly_features.run(CONFIG, [url], out)
    assert users_in_the_files(out) == [{"ann", "cleo"}]


def test_forgetting_by_command_cleans_the_files_beside_the_artifact_too(url: str, source: EventStore, tmp_path) -> None:
    out = tmp_path / "features"
    source.append(events(0))
    nightly_features.run(CONFIG, [url], out)
    (tmp_path / "features-events" / ".events-half-written.parquet").write_bytes(b"bob")
    (tmp_path / "who.txt").write_text("bob\n")
    assert list(forget.run([out], tmp_path / "who.txt").removed.values()) == [8]
    assert users_in_the_files(out) == [{"ann", "cleo"}]
    assert not list((tmp_path / "features-events").glob(".*"))
    source.append(events(1, users=("ann",)))
    assert nightly_features.run(CONFIG, [url], out).metrics["why_full"] is None  # the file is known as it is now


def test_a_forgotten_user_who_is_in_a_file_again_is_removed_at_night(url: str, source: EventStore, tmp_path) -> None:
    out = tmp_path / "features"
    source.append(events(0))
    nightly_features.run(CONFIG, [url], out)
    forget.from_artifact(out, ["bob"])  # the tombstones know the user, the files have not been cleaned
    source.forget("bob")
    assert nightly_features.run(CONFIG, [url], out).metrics["why_full"] is None
    assert users_in_the_files(out) == [{"ann", "cleo"}]


def test_who_is_forgotten_while_events_are_read_is_in_no_file(
    url: str, source: EventStore, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.append(events(0))
    read = store_log.event_rows

    def forgotten_at_this_moment(*arguments: Any) -> Iterator[list[Any]]:
        for rows in read(*arguments):
            source.forget("bob")
            yield rows

    monkeypatch.setattr(store_log, "event_rows", forgotten_at_this_moment)
    nightly_features.run(CONFIG, [url], tmp_path / "features")
    assert users_in_the_files(tmp_path / "features") == [{"ann", "cleo"}]
    assert set(histories(tmp_path / "features")) == {"ann", "cleo"}


def test_who_was_forgotten_by_command_and_comes_back_is_in_no_file(url: str, source: EventStore, tmp_path) -> None:
    out = tmp_path / "features"
    source.append(events(0))
    nightly_features.run(CONFIG, [url], out)
    (tmp_path / "who.txt").write_text("bob\n")
    forget.run([out], tmp_path / "who.txt")
    for day in (1, 2):
        source.append(events(day, users=("bob",)))
        nightly_features.run(CONFIG, [url], out)
    assert users_in_the_files(out) == [{"ann", "cleo"}, set(), set()]
    assert event_files.last_number(event_files.folder_of(out)) == 72
    source.append(events(3, users=("ann",)))
    assert nightly_features.run(CONFIG, [url], out).metrics["why_full"] is None
    before = histories(out)
    nightly_features.run(CONFIG, [url], out, full=True)  # empty files are no trouble
    assert histories(out) == before


def test_files_of_a_store_lie_beside_what_a_link_leads_to(url: str, source: EventStore, tmp_path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "features")
    for day in range(2):
        source.append(events(day))
        nightly_features.run(CONFIG, [url], tmp_path / "out")
    assert (tmp_path / "out").is_symlink()
    assert sorted(p.name for p in (tmp_path / "disk").iterdir()) == ["features", "features-events"]
    assert digest(tmp_path / "out") == digest(from_files(tmp_path, events(0), events(1)))


def test_what_a_dead_run_has_put_aside_is_there_before_the_store_is_read(
    url: str, source: EventStore, tmp_path
) -> None:
    out = tmp_path / "features"
    source.append(events(0, users=("session", "ann")))
    nightly_features.run(CONFIG, [url], out)
    forget.from_artifact(out, ["ann"])
    out.rename(tmp_path / ".features.older")
    source.join("session", "cleo")
    source.append(events(1, users=("ann",)))
    assert nightly_features.run(CONFIG, [url], out).metrics["why_full"] is None
    assert set(histories(out)) == {"cleo"}
    assert users_in_the_files(out)[-1] == {"cleo"}


def test_what_a_killed_run_left_half_written_is_removed(url: str, source: EventStore, tmp_path) -> None:
    source.append(events(0))
    (tmp_path / "features-events").mkdir()
    (tmp_path / "features-events" / ".events-half-written.parquet").write_bytes(b"PAR1")
    nightly_features.run(CONFIG, [url], tmp_path / "features")
    assert not list((tmp_path / "features-events").glob(".*"))


def test_a_store_in_the_place_of_another_is_noticed_before_its_events_are_read(tmp_path: Path, clock: Clock) -> None:
    database, out = tmp_path / "shop.db", tmp_path / "features"
    url = f"sqlite:///{database}"
    store = EventStore.open(url, clock)
    store.append(events(0))
    nightly_features.run(CONFIG, [url], out)
    store.close()
    database.rename(tmp_path / "older.db")
    replaced = EventStore.open(url, clock)
    for day in range(1, 3):  # the numbers of the first day's are those of the other store's
        replaced.append(events(day))
    before = digest(out)
    with pytest.raises(DataError, match=r"holds events of store \w{12}, but the store given is \w{12}") as caught:
        nightly_features.run(CONFIG, [url], out)
    assert "\n" not in str(caught.value)
    assert (digest(out), len(event_files.files(event_files.folder_of(out)))) == (before, 1)
    nightly_features.run(CONFIG, [f"sqlite:///{tmp_path / 'older.db'}"], out)  # the one it was is still welcome
    for command in re.findall("`(.*?)`", str(caught.value)):
        subprocess.run(command, shell=True, check=True)
    assert nightly_features.run(CONFIG, [url], out).metrics["num_events"] == 48
    replaced.close()


def test_files_from_before_stores_had_an_id_are_taken_over(url: str, source: EventStore, tmp_path) -> None:
    source.append(events(0))
    nightly_features.run(CONFIG, [url], tmp_path / "features")
    (tmp_path / "features-events" / "events-store-id").unlink()
    source.append(events(1))
    assert nightly_features.run(CONFIG, [url], tmp_path / "features").metrics["tonight"]["num_events"] == 24
    assert (tmp_path / "features-events" / "events-store-id").read_text() == f"{source.identity()}\n"
