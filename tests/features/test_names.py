"""A name is a name: what looks like a pattern of names is the file or folder that is called so."""

from pathlib import Path

import polars as pl
import pytest

from features import event_files, forget
from features.build import FeaturesConfig, run
from recsys import dataset
from recsys.contracts.protocol import Protocol
from recsys.pipeline import recommend_all
from recsys.whole_histories import WholeHistories
from tests.features.test_incremental import NOW_MS, S, digest_from_the_files, digest_of

CONFIG = FeaturesConfig(min_count=1, events_per_partition=20, count_period_days=365)


def write_day(path: Path, letter: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [(f"{letter}{n % 7}", f"i{n % 9}", S + n * 60) for n in range(60)]
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_parquet(path)


@pytest.mark.parametrize("name", ["out[1]", "out*", "[out] (a copy)?"])
def test_brackets_and_stars_in_names_are_no_patterns(tmp_path: Path, name: str) -> None:
    log, out = tmp_path / "log [old]", tmp_path / name
    for file, letter in (("day1", "a"), ("day2", "b")):
        write_day(log / f"{file}.parquet", letter)
    run(CONFIG, [log], out, now_ms=NOW_MS)
    write_day(log / "day[12].parquet", "c")
    (tmp_path / f".{name}.writing-0badcafe").mkdir()
    (tmp_path / ".out1.writing-0badcafe").mkdir()  # of another artifact
    manifest = run(CONFIG, [log], out, now_ms=NOW_MS)
    assert manifest.metrics["tonight"] == {"num_files": 1, "num_events": 60}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([".out1.writing-0badcafe", "log [old]", name])
    (tmp_path / "who.txt").write_text("a1\n")
    assert list(forget.run([out], tmp_path / "who.txt").removed.values()) == [9]
    data = dataset.load(out, Protocol.FINAL)
    assert data.fit.user_ids == [f"{letter}{n}" for letter in "abc" for n in range(7) if (letter, n) != ("a", 1)]
    assert len(WholeHistories(out).of("b1") or ()) == 9
    assert digest_from_the_files(out) == digest_of(data.manifest)


def test_the_files_of_a_store_and_answers_in_batch_may_be_in_such_a_folder(tmp_path: Path) -> None:
    place = tmp_path / "out[1]-events"
    write_day(place / "events-000000000000001-000000000000060.parquet", "a")
    assert event_files.without(place, ["a1"])
    assert not event_files.without(place, ["a1"])
    frame = pl.DataFrame({"user_id": ["u"]})
    recommend_all._write(iter([frame, frame]), tmp_path / "[1]" / "answers[12].parquet")
    assert pl.read_parquet(tmp_path / "[1]" / "answers[12].parquet", glob=False)["user_id"].to_list() == ["u", "u"]
