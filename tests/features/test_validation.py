"""Tomorrow's file is not as it should be: the job stops and says so, or sets exactly the bad rows aside."""

import datetime
import gzip
from pathlib import Path

import polars as pl
import pytest

from features import sources
from features.build import FeaturesConfig, read_events, run
from features.clean import SCHEMA
from recsys.contracts import artifact
from recsys.contracts.errors import DataError, RefusedError
from recsys.pipeline.tables import features_summary

S = 1_600_000_000
NOW_MS = (S + 10**6) * 1000
HEADER = "user_id,item_id,timestamp,event_type\n"
DAY = HEADER + "".join(f"u{n % 9},i{n % 5},{S + n},view\n" for n in range(60))
CONFIG = FeaturesConfig(min_count=1)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A log of one day and its artifact."""
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "day-1.csv").write_text(DAY)
    run(CONFIG, [tmp_path / "log"], tmp_path / "out", now_ms=NOW_MS)
    return tmp_path


NEXT = DAY.replace(f"{S}", f"{S + 86_400}")
REFUSED = {
    "zero bytes": ("day-2.csv", b"", r"day-2.csv: file is empty \(0 bytes\); wait for its upload"),
    "half-uploaded gzip": ("day-2.csv.gz", gzip.compress(NEXT.encode())[:-9], "damaged or half-uploaded gzip"),
    "damaged Parquet": ("day-2.parquet", b"PAR1", "not a sound Parquet file"),
    "not UTF-8": ("day-2.csv", NEXT.replace("u1,", "\xe9,").encode("latin-1"), "rows cannot be read.*UTF-8"),
    "renamed column": (
        "day-2.csv",
        NEXT.replace("item_id", "sku").encode(),
        "timestamp, event_type; the files before it have one: correct the file$",
    ),
    "column gone": (
        "day-2.csv",
        "".join(f"{line.rpartition(',')[0]}\n" for line in NEXT.splitlines()).encode(),
        "the header changed: no column for event_type, which the files before it have.*--full",
    ),
    "future": ("day-2.csv", NEXT.replace(f",{S // 1000}", ",1700000").encode(), "rows cannot be read.*in the future"),
    "one row, and it is bad": (
        "day-2.csv",
        (HEADER + "u,i,x,view\n").encode(),
        "1 of 1 rows cannot be read.*not parse",
    ),
    "a JSON array": (
        "day-2.json",
        b'[{"user_id": "u", "item_id": "i", "timestamp": 1600086400}]\n',
        "1 of 1 rows cannot be read.*not a JSON object.*a JSON array is not read: write one object a line",
    ),
    "6 % bad": ("day-2.csv", (NEXT + "x,\n" * 4).encode(), "4 of 64 rows cannot be read, at most 5% are tolerated"),
}


@pytest.mark.parametrize(("name", "content", "message"), REFUSED.values(), ids=REFUSED)
def test_a_bad_file_stops_the_night_and_leaves_the_artifact(
    shop: Path, name: str, content: bytes, message: str
) -> None:
    before = artifact.verify(shop / "out", "features")
    (shop / "log" / name).write_bytes(content)
    with pytest.raises(RefusedError, match=message) as caught:
        run(CONFIG, [shop / "log"], shop / "out", now_ms=NOW_MS)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    assert artifact.verify(shop / "out", "features") == before
    (shop / "log" / name).write_text(NEXT) if name.endswith(".csv") else (shop / "log" / name).unlink()
    run(CONFIG, [shop / "log"], shop / "out", now_ms=NOW_MS)  # corrected: nothing is in the way


def test_a_missing_column_of_a_first_build_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(DAY.replace("item_id", "sku"))
    with pytest.raises(DataError, match="no column 'item_id'") as caught:
        run(CONFIG, [tmp_path / "log.csv"], tmp_path / "out", now_ms=NOW_MS)
    assert caught.value.exit_code == 2


def test_a_cut_off_last_line_costs_itself(shop: Path) -> None:
    (shop / "log" / "day-2.csv").write_text(NEXT[:-14])
    manifest = run(CONFIG, [shop / "log"], shop / "out", now_ms=NOW_MS)
    assert manifest.metrics["quarantined"] == {"3 fields, expected 4": 1}
    assert manifest.metrics["tonight"]["num_events"] == 59
    written = (shop / "out" / "quarantine.csv").read_text()
    assert written.splitlines()[1].startswith('day-2.csv,61,"3 fields, expected 4"')


@pytest.mark.parametrize("name", ["day-2.csv", "day-2.csv.gz"])
def test_a_line_cut_off_within_its_last_field_stops_the_night(shop: Path, name: str) -> None:
    path = shop / "log" / name
    path.write_bytes(gzip.compress(NEXT[:-3].encode()) if name.endswith(".gz") else NEXT[:-3].encode())
    with pytest.raises(RefusedError, match=rf"{name}: line 61, the last one, has no line break at its end.*--full"):
        run(CONFIG, [shop / "log"], shop / "out", now_ms=NOW_MS)
    manifest = run(CONFIG, [shop / "log"], shop / "out", full=True, now_ms=NOW_MS)
    said = f"note: the last line has no line break in 1 of 2 files, such as {name}: is it cut off?"
    assert said in features_summary(manifest, shop / "out")
    (shop / "log" / "day-3.csv").write_text(NEXT.replace("u1,", "u2,")[:-1])  # accepted
    assert run(CONFIG, [shop / "log"], shop / "out", now_ms=NOW_MS).metrics["tonight"]["num_events"] == 60


def test_a_log_whose_files_end_without_a_line_break_is_as_good(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    for day, text in enumerate((DAY[:-1], DAY.replace("u1", "u2")[:-1], NEXT[:-1], NEXT.replace("u1", "u2"))):
        (tmp_path / "log" / f"{day}.csv").write_text(text)
        if day:
            manifest = run(CONFIG, [tmp_path / "log"], tmp_path / "out", now_ms=NOW_MS)
            assert "note:" not in features_summary(manifest, tmp_path)
    assert (manifest.metrics["num_events"], manifest.metrics["why_full"]) == (240, None)


def test_reordered_and_new_columns_are_read_by_name(shop: Path) -> None:
    rows = "".join(f"view,{S + n},i1,u1,9\n" for n in range(3))
    (shop / "log" / "day-2.csv").write_text("event_type,timestamp,item_id,user_id,rating\n" + rows)
    assert run(CONFIG, [shop / "log"], shop / "out", now_ms=NOW_MS).metrics["tonight"]["num_events"] == 3


def test_full_accepts_a_new_header(shop: Path) -> None:
    name, content, _ = REFUSED["column gone"]
    (shop / "log" / name).write_bytes(content)
    manifest = run(CONFIG, [shop / "log"], shop / "out", full=True, now_ms=NOW_MS)
    assert manifest.metrics["event_types"] == ["view", "interaction"]


WITHOUT_TYPES = "".join(f"{line.rpartition(',')[0]}\n" for line in NEXT.splitlines())


def json_lines(kind: str, num: int = 3) -> str:
    return "".join(f'{{"user_id":"u","item_id":"i1","timestamp":{S + 86_400 + n}{kind}}}\n' for n in range(num))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("day-2.json", json_lines(',"kind":"view"')),
        ("day-2.json.csv", WITHOUT_TYPES),
        ("day-2.parquet", pl.DataFrame(schema={"other": pl.String})),
        ("day-2.parquet", pl.DataFrame(schema={"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64})),
    ],
)
def test_a_night_needs_the_columns_of_the_files_before(shop: Path, name: str, content: str | pl.DataFrame) -> None:
    path = shop / "log" / name
    path.write_text(content) if isinstance(content, str) else content.write_parquet(path)
    with pytest.raises(RefusedError, match=r"no column .*the files before it"):
        run(CONFIG, [shop / "log"], shop / "out", now_ms=NOW_MS)


def test_files_of_a_store_have_columns_of_their_own(shop: Path) -> None:
    (shop / "log" / "day-2.csv").write_text(NEXT.replace("event_type", "event_type,title").replace("view", "view,t"))
    run(CONFIG, [shop / "log"], shop / "out", now_ms=NOW_MS)
    frame = pl.DataFrame({"user_id": ["u"], "item_id": ["i"], "timestamp": [S], "event_type": ["view"]})
    frame.write_parquet(shop / "log" / f"events-{1:015d}-{1:015d}.parquet")
    manifest = run(CONFIG, [shop / "log"], shop / "out", now_ms=NOW_MS)
    assert manifest.metrics["tonight"] == {"num_files": 1, "num_events": 1}


def test_a_parquet_file_without_rows_is_a_day_without_events(shop: Path) -> None:
    names = HEADER.strip().split(",")
    for number, kind in enumerate((pl.Null, pl.String, pl.Int64), start=2):
        pl.DataFrame(schema=dict.fromkeys(names, kind)).write_parquet(shop / "log" / f"day-{number}.parquet")
    manifest = run(CONFIG, [shop / "log"], shop / "out", now_ms=NOW_MS)
    assert manifest.metrics["tonight"] == {"num_files": 3, "num_events": 0}


def test_a_json_log_may_leave_descriptions_out_and_that_disarms_nothing(shop: Path) -> None:
    (shop / "log" / "day-2.csv").write_text(NEXT.replace("event_type", "event_type,title").replace("view", "view,t"))
    run(CONFIG, [shop / "log"], shop / "out", now_ms=NOW_MS)
    (shop / "log" / "day-3.json").write_text(json_lines(',"event_type":"view"'))
    manifest = run(CONFIG, [shop / "log"], shop / "out", now_ms=NOW_MS)
    assert manifest.metrics["tonight"]["num_events"] == 3
    (shop / "log" / "day-4.csv").write_text(NEXT)
    with pytest.raises(RefusedError, match="no column for title, which the files before it have"):
        run(CONFIG, [shop / "log"], shop / "out", now_ms=NOW_MS)


def test_a_full_build_names_files_that_lack_a_column_and_only_full_accepts_more_of_them(tmp_path: Path) -> None:
    log, out = tmp_path / "log", tmp_path / "out"
    log.mkdir()
    (log / "d1.csv").write_text(DAY)
    (log / "d2.csv").write_text(WITHOUT_TYPES)
    manifest = run(CONFIG, [log], out, now_ms=NOW_MS)
    assert [entry.get("lacks") for entry in manifest.metrics["source_files"]] == [None, ["event_type"]]
    assert "no column for event_type in 1 of 2 files, such as d2.csv; a later" in features_summary(manifest, out)
    (log / "d3.csv").write_text(WITHOUT_TYPES.replace("u1,", "u2,"))
    with pytest.raises(RefusedError, match=r"d3\.csv: the header changed: no column for event_type.*--full"):
        run(CONFIG, [log], out, now_ms=NOW_MS)
    assert run(CONFIG, [log], out, full=True, now_ms=NOW_MS).metrics["optional_fields"] == ["event_type"]
    for name, content in (("d4.csv", NEXT.replace("u1,", "u3,")), ("d5.csv", WITHOUT_TYPES.replace("u1,", "u4,"))):
        (log / name).write_text(content)  # both kinds are this log's
        assert run(CONFIG, [log], out, now_ms=NOW_MS).metrics["why_full"] is None


def test_quarantine_adds_up_over_nights(shop: Path) -> None:
    for night in (2, 3):
        (shop / "log" / f"day-{night}.csv").write_text(NEXT + f"u,i,night {night},view\n")
        manifest = run(CONFIG, [shop / "log"], shop / "out", now_ms=NOW_MS)
    assert manifest.metrics["quarantined"] == {"timestamp does not parse": 2}
    lines = (shop / "out" / "quarantine.csv").read_text().splitlines()
    assert [line.split(",")[:3] for line in lines[1:]] == [
        ["day-2.csv", "62", "timestamp does not parse"],
        ["day-3.csv", "62", "timestamp does not parse"],
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (f"u,i,{S},{'v' * 65},1", "event type is longer than 64"),
        (f"u,i,{S},view,cheap", "price does not parse"),
        (f"u,i,{S},view,-5", "price is negative or infinite"),
        (f"u,i,{S},view,1e999", "price is negative or infinite"),
        (f"u,i,{S},view,-inf", "price is negative or infinite"),
    ],
)
def test_optional_fields_are_checked_too(tmp_path: Path, line: str, reason: str) -> None:
    """nan is how some programs write a missing price."""
    header = HEADER.rstrip() + ",price\n"
    (tmp_path / "log.csv").write_text(header + f"u,i,{S},view,2.5\nu,i,{S},view,nan\n" * 40 + line + "\n")
    manifest = run(CONFIG, [tmp_path / "log.csv"], tmp_path / "out", now_ms=NOW_MS)
    assert manifest.metrics["quarantined"] == {reason: 1}


@pytest.mark.parametrize("block_bytes", [1, 40, 1000, 10_000])
@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz"])
def test_blocks_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int, name: str) -> None:
    quoted = f'u,"i,\n1",{S},view\n\nu,"j,{S},view\nshort,row\n'
    text = DAY + quoted + DAY.removeprefix(HEADER) + quoted + DAY.removeprefix(HEADER)
    data = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    monkeypatch.setattr(sources, "BLOCK_BYTES", block_bytes)
    manifest = run(CONFIG, [tmp_path / name], tmp_path / "out", now_ms=NOW_MS)
    assert manifest.metrics["quarantined"] == {"2 fields, expected 4": 2, "unclosed quote": 2}
    assert manifest.metrics["num_events"] == 3 * 60 + 2
    quarantine = pl.read_csv(tmp_path / "out" / "quarantine.csv")
    assert sorted(quarantine["line"]) == [65, 66, 130, 131]
    assert "i,\n1" in pl.read_parquet(tmp_path / "out" / "items.parquet")["item_id"].to_list()


def test_parquet_parts_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moments = [S + n if n != 17 else 2_000_000_000 for n in range(50)]
    frame = pl.DataFrame({"user_id": range(50), "item_id": "i", "timestamp": moments})
    frame.write_parquet(tmp_path / "log.parquet")
    monkeypatch.setattr(sources, "BATCH_ROWS", 7)
    manifest = run(CONFIG, [tmp_path / "log.parquet"], tmp_path / "out", now_ms=NOW_MS)
    assert manifest.metrics["num_events"] == 49
    assert pl.read_csv(tmp_path / "out" / "quarantine.csv").select("line", "reason").rows() == [
        (18, "timestamp in the future")
    ]


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz"])
def test_a_hopeless_file_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", 5_000)
    monkeypatch.setattr("features.clean.HOPELESS_ROWS", 100)
    rows = "".join(f"u{n},i,when?,{n * 7919 % 99991}\n" for n in range(20_000)).encode()
    (tmp_path / name).write_bytes(
        gzip.compress(HEADER.encode() + rows) if name.endswith("z") else HEADER.encode() + rows
    )
    with pytest.raises(
        RefusedError, match=r"of the first [\d,]+ rows cannot be read, at most 5%.*lines 2, 3, 4 "
    ) as said:
        run(CONFIG, [tmp_path / name], tmp_path / "out", now_ms=NOW_MS)
    assert int(str(said.value).partition(": ")[2].split(" of ")[0].replace(",", "")) < 10_000


def test_bad_rows_up_front_are_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", 500)
    monkeypatch.setattr("features.clean.HOPELESS_ROWS", 10)
    good = DAY.removeprefix(HEADER) * 10
    (tmp_path / "log.csv").write_text(HEADER + f"u,i,when?,{'v' * 20}\n" * 29 + good)
    manifest = run(CONFIG, [tmp_path / "log.csv"], tmp_path / "out", now_ms=NOW_MS)
    assert (manifest.metrics["num_events"], manifest.metrics["quarantined"]) == (600, {"timestamp does not parse": 29})
    assert len((tmp_path / "out" / "quarantine.csv").read_text().splitlines()) == 30


def test_a_line_without_an_end_is_not_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", 1_000)
    monkeypatch.setattr(sources, "MAX_LINE_BYTES", 1 << 20)
    (tmp_path / "log.csv").write_text(DAY + "x" * (3 << 20))
    with pytest.raises(RefusedError, match=r"log.csv: line 62 is longer than 1 MiB; expected one row a line"):
        run(CONFIG, [tmp_path / "log.csv"], tmp_path / "out", now_ms=NOW_MS)


def test_a_pattern_for_texts_leaves_columns_of_moments_alone(tmp_path: Path) -> None:
    moments = [datetime.datetime(2024, 2, 3, n, tzinfo=datetime.UTC) for n in range(3)]
    pl.DataFrame({"user_id": ["u"] * 3, "item_id": ["i"] * 3, "timestamp": moments}).write_parquet(
        tmp_path / "b.parquet"
    )
    (tmp_path / "a.csv").write_text("user_id,item_id,timestamp\nu,i,02/02/2024\n")
    config = FeaturesConfig(timestamp_format="%d/%m/%Y", min_count=1)
    manifest = run(config, [tmp_path / "a.csv", tmp_path / "b.parquet"], tmp_path / "out", now_ms=int(2e12))
    assert (manifest.metrics["num_events"], manifest.metrics["quarantined"]) == (4, {})
    assert manifest.metrics["last_ms"] == int(moments[-1].timestamp() * 1000)


def test_a_parquet_file_without_rows_is_read_and_its_columns_are_checked(shop: Path) -> None:
    columns = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64, "event_type": pl.String}
    place = shop / "log" / "day-2.parquet"
    pl.DataFrame(schema=columns).write_parquet(place)
    events = read_events(CONFIG, [place])
    assert (len(events), events.schema) == (0, pl.Schema(SCHEMA))
    manifest = run(CONFIG, [shop / "log"], shop / "out", now_ms=NOW_MS)
    assert manifest.metrics["tonight"] == {"num_files": 1, "num_events": 0}
    pl.DataFrame(schema={"user": pl.String}).write_parquet(shop / "log" / "day-3.parquet")
    with pytest.raises(RefusedError, match=r"day-3.parquet: no column 'user_id'; found user; the files before it"):
        run(CONFIG, [shop / "log"], shop / "out", now_ms=NOW_MS)
