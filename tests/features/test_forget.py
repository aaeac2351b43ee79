"""Forgotten users are in no byte of state, artifacts, copies and quarantine, tonight or later."""

import json
import shutil
import subprocess
from pathlib import Path

import polars as pl
import pytest

from features import forget, tombstones
from features.build import FeaturesConfig, run
from recsys.contracts import artifact
from recsys.contracts.errors import DataError
from tests.features.test_incremental import HEADER, NOW_MS, S, digest_from_the_files, digest_of

CONFIG = FeaturesConfig(min_count=1, events_per_partition=8)
GONE = ("gone-7f3a", "left-9c21")


def write_day(log: Path, day: int) -> None:
    log.mkdir(exist_ok=True)
    users = ["stays-1", GONE[0], "stays-2", GONE[1], "stays-3"]
    rows = [f"{u},i{(n + day) % 4},{S + day * 86_400 + n},view,,\n" for n, u in enumerate(users * 9)]
    rows.append(f"{GONE[0]},i1,when?,view,,\n")  # bad: has the user
    rows.append(f"{GONE[1]},i1\n")  # bad: not even a row
    (log / f"day-{day}.csv").write_text(HEADER + "".join(rows))


def everything_in(folder: Path) -> str:
    """All bytes of all files, and all texts inside the compressed ones."""
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        found += [str(path), path.read_bytes().decode("latin-1")]
        if path.suffix == ".parquet":
            frame = pl.read_parquet(path)
            found += [str(frame[name].to_list()) for name in frame.columns if frame.schema[name] == pl.String]
    return "\n".join(found)


def forget_users(place: Path, *folders: Path) -> forget.Forgotten:
    (place / "who.txt").write_text("\n".join(GONE) + "\n")
    return forget.run(list(folders), place / "who.txt")


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Two nights, and a copy of the first for rollback."""
    write_day(tmp_path / "log", 1)
    run(CONFIG, [tmp_path / "log"], tmp_path / "state" / "features", now_ms=NOW_MS)
    shutil.copytree(tmp_path / "state" / "features", tmp_path / "state" / "rollback" / "night-1")
    write_day(tmp_path / "log", 2)
    run(CONFIG, [tmp_path / "log"], tmp_path / "state" / "features", now_ms=NOW_MS)
    return tmp_path


def test_no_byte_of_a_forgotten_user_is_left_anywhere(shop: Path) -> None:
    assert all(user in everything_in(shop / "state") for user in GONE)
    (shop / "state" / ".features.writing-12345678").mkdir()
    (shop / "state" / ".features.writing-12345678" / "half.csv").write_text(GONE[0])
    removed = forget_users(shop, shop / "state")
    assert list(removed.removed.values()) == [36, 18]
    assert not any(user in everything_in(shop / "state") for user in GONE)
    for place in (shop / "state" / "features", shop / "state" / "rollback" / "night-1"):
        artifact.verify(place, "features")
        assert digest_from_the_files(place) == digest_of(artifact.read_manifest(place))
        numbers = set(pl.read_parquet(place / "users.parquet")["user_index"])
        assert {n for p in place.glob("histories/*/*") for n in pl.read_parquet(p)["user_index"]} == numbers


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("log.csv", b'"ga""ne-77",i1\n'),
        ("log.csv", b'"ga""ne-77,i1,1600000000,view,,\n'),
        ("log.csv", b"ga\xffne-77,i1,1600000000,view,,\n"),
        ("log.json", b'{"user_id":"ga\\u0022ne-77","item_id":\n'),
    ],
)
def test_a_line_that_has_the_user_in_other_words_is_forgotten_too(tmp_path: Path, name: str, line: bytes) -> None:
    row = b'{"user_id":"stays","item_id":"i","timestamp":%d}\n' if name.endswith("json") else b"stays,i,%d,view,,\n"
    start = b"" if name.endswith("json") else HEADER.encode()
    kept = row.replace(b"%d", b'"when?"')
    (tmp_path / name).write_bytes(start + (row % S) * 60 + line + kept)
    run(CONFIG, [tmp_path / name], tmp_path / "out", now_ms=NOW_MS)
    assert "ne-77" in (tmp_path / "out" / "quarantine.csv").read_text()
    assert forget.from_artifact(tmp_path / "out", ['ga"ne-77']) == 0
    assert "ne-77" not in everything_in(tmp_path / "out")
    assert "when?" in (tmp_path / "out" / "quarantine.csv").read_text()


def test_later_nights_and_full_rebuilds_leave_forgotten_users_out(shop: Path) -> None:
    features = shop / "state" / "features"
    forget_users(shop, shop / "state")
    write_day(shop / "log", 3)
    nightly = run(CONFIG, [shop / "log"], features, now_ms=NOW_MS)
    assert not any(user in everything_in(shop / "state") for user in GONE)
    assert nightly.metrics["excluded"]["forgotten"] == 54
    assert (nightly.metrics["num_users"], nightly.metrics["num_events"]) == (3, 81)
    rebuilt = run(CONFIG, [shop / "log"], features, full=True, now_ms=NOW_MS)
    assert not any(user in everything_in(shop / "state") for user in GONE)
    assert digest_of(rebuilt) == digest_of(nightly) == digest_from_the_files(features)
    for key in ("excluded", "quarantined", "num_rows_read", "split_ms", "first_ms", "last_ms"):
        assert rebuilt.metrics[key] == nightly.metrics[key]


@pytest.mark.parametrize(
    "row", [f"stays,i,{S + 9},view,late,\n", f"stays,i,{S + 99},view,,\n", f"stays,i,{S + 99},view,new,\n"]
)
def test_what_a_forgotten_user_s_row_said_about_an_item_is_the_same_at_night_and_in_a_rebuild(
    tmp_path: Path, row: str
) -> None:
    log, out = tmp_path / "log", tmp_path / "out"
    log.mkdir()
    (log / "1.csv").write_text(HEADER + f"stays,i,{S},view,old,\n{GONE[0]},i,{S + 50},view,last,\n")
    run(CONFIG, [log], out, now_ms=NOW_MS)
    forget_users(tmp_path, out)
    (log / "2.csv").write_text(HEADER + row)
    nightly = run(CONFIG, [log], out, now_ms=NOW_MS)
    assert digest_of(run(CONFIG, [log], out, full=True, now_ms=NOW_MS)) == digest_of(nightly)


def test_the_list_holds_keyed_hashes_of_users_known_or_not(shop: Path) -> None:
    (shop / "who.txt").write_text("never-seen\n")
    assert list(forget.run([shop / "state" / "features"], shop / "who.txt").removed.values()) == [0]
    values = json.loads((shop / "state" / "features" / "forgotten.json").read_text())
    assert len(values["users"]) == 1
    assert len(values["key"]) == 64
    (shop / "log" / "day-3.csv").write_text(HEADER + f"never-seen,i1,{S + 3 * 86_400},view,,\n")
    assert run(CONFIG, [shop / "log"], shop / "state" / "features", now_ms=NOW_MS).metrics["excluded"] == {
        "forgotten": 1
    }


def test_who_is_forgotten_stays_out_of_what_is_built_in_the_place_of_an_artifact_that_was_moved_away(
    shop: Path,
) -> None:
    features = shop / "state" / "features"
    forget_users(shop, features)
    command = tombstones.moving_away(features).strip("`")
    subprocess.run(command, shell=True, check=True)
    assert not features.exists()
    manifest = run(CONFIG, [shop / "log"], features, now_ms=NOW_MS)
    assert (manifest.metrics["num_forgotten"], manifest.metrics["num_users"]) == (2, 3)
    assert not any(user in everything_in(features) for user in GONE)


def test_who_was_forgotten_under_the_text_of_a_float_stays_forgotten(tmp_path: Path) -> None:
    log, out = tmp_path / "log.parquet", tmp_path / "out"
    pl.DataFrame({"user_id": [17.0, 18.0, None], "item_id": "i", "timestamp": S}).write_parquet(log)
    run(CONFIG, [log], out, now_ms=NOW_MS)
    assert forget.from_artifact(out, ["17.0"]) == 1  # as the log was read once
    run(CONFIG, [log], out, full=True, now_ms=NOW_MS)
    assert pl.read_parquet(out / "users.parquet")["user_id"].to_list() == ["18"]


def test_a_damaged_list_of_the_forgotten_is_said(shop: Path) -> None:
    (shop / "state" / "features" / "forgotten.json").write_text('{"key": "no"}')
    write_day(shop / "log", 3)
    with pytest.raises(DataError, match=r"forgotten.json: damaged list of forgotten users; put it back from a copy"):
        run(CONFIG, [shop / "log"], shop / "state" / "features", now_ms=NOW_MS)


@pytest.mark.parametrize("older", [None, '{"key": "00", "users": []}'])
def test_a_list_of_the_forgotten_that_is_gone_or_another_is_said(shop: Path, older: str | None) -> None:
    features = shop / "state" / "features"
    forget_users(shop, features)
    (features / "forgotten.json").unlink() if older is None else (features / "forgotten.json").write_text(older)
    shutil.copyfile(shop / "state" / "rollback" / "night-1" / "forgotten.json", f"{features}.forgotten.json")
    write_day(shop / "log", 3)
    for full in (False, True):
        with pytest.raises(DataError, match=r"features/forgotten.json: (missing|altered), expected the list of forgot"):
            run(CONFIG, [shop / "log"], features, full=full, now_ms=NOW_MS)


def test_the_last_user_can_be_forgotten_too(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(HEADER + f"only,i1,{S},view,,\n")
    run(CONFIG, [tmp_path / "log.csv"], tmp_path / "out", now_ms=NOW_MS)
    (tmp_path / "who.txt").write_text("only\n")
    forget.run([tmp_path / "out"], tmp_path / "who.txt")
    assert "only" not in everything_in(tmp_path / "out").replace("only the", "")
    assert artifact.verify(tmp_path / "out", "features").metrics["num_events"] == 0


def test_the_user_file_may_have_a_byte_order_mark_and_ids_with_rare_line_separators(tmp_path: Path) -> None:
    (tmp_path / "who.txt").write_bytes("\ufeffanna\r\nb\u2028b\nc\x85c\n".encode())
    log = tmp_path / "log.jsonl"
    log.write_text("".join(f'{{"user_id": "{u}", "item_id": "i", "timestamp": {S}}}\n'
                           for u in ("anna", "b\\u2028b", "c\\u0085c", "stays")))  # fmt: skip
    run(CONFIG, [log], tmp_path / "out", now_ms=NOW_MS)
    assert list(forget.run([tmp_path / "out"], tmp_path / "who.txt").removed.values()) == [3]
    assert pl.read_parquet(tmp_path / "out" / "users.parquet")["user_id"].to_list() == ["stays"]


def test_ids_are_stripped_as_those_of_logs_are_and_unknown_ones_are_counted(tmp_path: Path) -> None:
    ids = ["x\x1f", "zo\xe9", "zoe\u0301", "U1"]
    (tmp_path / "log.csv").write_text(HEADER + "".join(f"{user},i,{S},view,,\n" for user in ids))
    run(CONFIG, [tmp_path / "log.csv"], tmp_path / "out", now_ms=NOW_MS)
    (tmp_path / "who.txt").write_text("x\x1f\n  zo\xe9 \u3000\nu1\n")
    done = forget.run([tmp_path, tmp_path / "out"], tmp_path / "who.txt")
    assert (list(done.removed.values()), done.num_users, done.num_unknown) == ([2], 3, 1)
    assert pl.read_parquet(tmp_path / "out" / "users.parquet")["user_id"].to_list() == ["zoe\u0301", "U1"]


def test_copies_behind_a_link_are_searched_too(shop: Path) -> None:
    (shop / "state" / "rollback").rename(shop / "disk2")
    (shop / "state" / "rollback").symlink_to(shop / "disk2")
    (shop / "disk2" / "round").symlink_to(shop / "state")
    assert list(forget_users(shop, shop / "state").removed.values()) == [18, 36]
    assert not any(user in everything_in(place) for user in GONE for place in (shop / "state", shop / "disk2"))


def test_users_are_forgotten_where_only_some_files_of_a_night_have_event_ids(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    with_ids = "user_id,item_id,timestamp,event_id\n" + "".join(f"u{n % 2},i{n},{S + n},e{n}\n" for n in range(8))
    (tmp_path / "log" / "a.csv").write_text(with_ids)
    without = "user_id,item_id,timestamp\n" + "".join(f"v{n},i{n},{S + n}\n" for n in range(40))
    (tmp_path / "log" / "b.csv").write_text(without)
    out = tmp_path / "out"
    run(FeaturesConfig(min_count=1, events_per_partition=4), [tmp_path / "log"], out, now_ms=NOW_MS)
    (tmp_path / "who.txt").write_text("u1\n")
    assert list(forget.run([out], tmp_path / "who.txt").removed.values()) == [4]
    assert digest_from_the_files(out) == digest_of(artifact.read_manifest(out))


def test_mistakes_are_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected one user_id a line"):
        forget.run([tmp_path], tmp_path / "no.txt")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match="no user in it"):
        forget.run([tmp_path], tmp_path / "empty.txt")
    (tmp_path / "who.txt").write_text("u\n")
    with pytest.raises(DataError, match="no features artifact here or below"):
        forget.run([tmp_path], tmp_path / "who.txt")
