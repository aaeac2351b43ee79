"""The event store as the nightly job's log: nothing twice, nothing missing, the forgotten stay out."""

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from features import build
from features.build import FeaturesConfig
from recsys.contracts.artifact import read_manifest
from recsys.contracts.errors import ConfigError
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
    assert len(list((tmp_path / "features-events").iterdir())) == 3


def test_events_of_the_last_minute_wait_for_the_next_night(source: EventStore, clock: Clock, tmp_path) -> None:
    source.append(events(0))
    clock.seconds += 100
    source.append(events(1))
    now_ms = int(clock.seconds * 1000) + 30_000
    (first,) = store_log.write_new_events(CONFIG, source, tmp_path, now_ms)
    assert len(pl.read_parquet(first)) == 24
    assert store_log.write_new_events(CONFIG, source, tmp_path, now_ms) == []
    (second,) = store_log.write_new_events(CONFIG, source, tmp_path, now_ms + 60_000)
    assert len(pl.read_parquet(second)) == 24


def test_a_night_that_died_after_writing_files_is_taken_up(url: str, source: EventStore, tmp_path) -> None:
    source.append(events(0))
    (tmp_path / "features-events").mkdir()
    store_log.write_new_events(CONFIG, source, tmp_path / "features-events")
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
