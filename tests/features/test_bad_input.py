"""What a shop can get wrong: each case has one clear line, or costs exactly its own rows."""

import gzip
import re
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.build import FeaturesConfig, run
from features.clean import clean
from features.delimited import read_delimited
from features.formats import resolve
from recsys.contracts.errors import ConfigError, DataError
from recsys.pipeline.tables import features_summary

S = 1_600_000_000
NOW_MS = (S + 1000) * 1000
HEADER = "user_id,item_id,timestamp\n"
GOOD = HEADER + "".join(f"u{n},i,{S + n}\n" for n in range(40))


def build(place: Path, content: bytes | str, name: str = "log.csv", **options: object) -> dict[str, int]:
    path = place / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    config = FeaturesConfig.from_mapping(options, "test")
    quarantined: dict[str, int] = run(config, [path], place / "out", now_ms=NOW_MS).metrics["quarantined"]
    return quarantined


CASES = {
    "missing column": (
        f"customer,item_id,timestamp\nu,i,{S}\n",
        {},
        "no column 'user_id'; found customer, item_id, timestamp; map it with --map user=COLUMN",
    ),
    "other delimiter": (f"user_id;item_id\nu;i;{S}\n", {}, "found user_id;item_id; .*set the delimiter"),
    "wrong format": (GOOD, {"format": "rees46"}, "no column 'product_id'.*check --format"),
    "header only": (HEADER, {}, "no usable event in the log; 0 rows read"),
    "pruning": (
        GOOD,
        {"min_count": 500},
        "pruning leaves no item: min_count is 500, the most frequent item reaches 40",
    ),
    "zero bytes": ("", {}, r"file is empty \(0 bytes\)"),
    "blank": (" \n\n", {}, "file holds no text"),
    "UTF-16": (GOOD.encode("utf-16"), {}, "first line is not UTF-8"),
    "latin-1 rows": (
        HEADER.encode() + b"\xe9,i,1600000000\n" * 3,
        {},
        "3 of 3 .*lines 2, 3, 4 .*not UTF-8.*save the file as UTF-8",
    ),
    "dates": (
        HEADER + "u,i,13/09/2020\n" * 3,
        {},
        "3 of 3 rows cannot be read, at most 5% .*does not parse, found '13/09/2020'; give --timestamp-format",
    ),
    "dates in digits": (
        HEADER + "u,i,20101201\n" * 3,
        {},
        "3 of 3 rows .*no epoch number .*, found '20101201'; for dates in digits give .*, such as '%Y%m%d' for",
    ),
    "minutes in digits": (HEADER + "u,i,201012010830\n" * 3, {}, "3 of 3 rows .*is no epoch number"),
    "seconds in digits": (HEADER + "u,i,20101201083000\n" * 3, {}, "3 of 3 rows .*future.*; give --timestamp-format"),
    "date pattern": (HEADER + "u,i,13.09.2020\n" * 3, {"timestamp_format": "%d/%m/%Y"}, "not of the form '%d/%m/%Y'"),
    "half of it ragged": (HEADER + f"u,i,{S}\nu,i\nu\n", {}, "2 of 3 .*2 fields, expected 3"),
    "event types": (
        "user_id,item_id,timestamp,event_type\n" + "".join(f"u,i,{S},{n}\n" for n in range(257)),
        {},
        "257 event types such as '0', at most 256",
    ),
}
"""Content, options, and the message to expect."""


@pytest.mark.parametrize(("content", "options", "message"), CASES.values(), ids=CASES)
def test_an_unusable_log_is_one_line_and_leaves_nothing(
    tmp_path: Path, content: bytes | str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        build(tmp_path, content, **options)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "log.csv") in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["log.csv"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("log.csv.gz", gzip.compress(GOOD.encode())[:-20], "damaged or half-uploaded gzip"),
        ("log.csv.gz", GOOD.encode(), "damaged or half-uploaded gzip"),
        ("log.parquet", b"PAR1 and no more", "not a sound Parquet file"),
        ("log.jsonl", b"no\njson\nat all\n", "3 of 3 rows .*not a JSON object"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        build(tmp_path, content, name)
    assert not (tmp_path / "out").exists()


def test_missing_sources_and_folders_without_a_log_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=re.escape(f"{tmp_path / 'no'}: no such file or folder")):
        run(FeaturesConfig(), [tmp_path / "no"], tmp_path / "out")
    (tmp_path / "README.md").write_text("nothing here")
    with pytest.raises(DataError, match=r"no event log in this folder; expected files ending in \.csv.*found nothing"):
        run(FeaturesConfig(), [tmp_path], tmp_path / "out")
    with pytest.raises(DataError, match="no event log given"):
        run(FeaturesConfig(), [], tmp_path / "out")


def test_what_is_not_read_in_a_folder_is_named(tmp_path: Path) -> None:
    log = tmp_path / "log"
    (log / "year=2024").mkdir(parents=True)
    (log / "d1.csv").write_text(GOOD)
    (log / "D2.CSV.GZ").write_bytes(gzip.compress(GOOD.replace(",i,", ",j,").encode()))
    others = ["d3.csv.zst", "d4.log", "d5.csv.1", "d6.csv.part"]
    for name in [*others, ".d7.csv", "README.txt"]:
        (log / name).write_text(GOOD)
    manifest = run(FeaturesConfig(), [log], tmp_path / "out", now_ms=NOW_MS)
    assert manifest.metrics["num_events"] == 80
    assert manifest.metrics["passed_over"] == [*others, "year=2024/"]
    assert "not read: 5 in the log's folders, such as d3.csv.zst, d4.log" in features_summary(manifest, tmp_path)
    (log / "d8.log").write_text(GOOD)
    again = run(FeaturesConfig(), [log], tmp_path / "out", now_ms=NOW_MS)  # nothing is new, and that is said
    assert (again.metrics["passed_over"], again.digest) == ([*others, "d8.log", "year=2024/"], manifest.digest)


def test_a_link_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d1.csv").write_text(GOOD)
    (tmp_path / "d2.csv").symlink_to("gone.csv")
    with pytest.raises(DataError, match=r"d2\.csv: a link that leads nowhere, to gone\.csv; mend it"):
        run(FeaturesConfig(), [tmp_path], tmp_path / "out", now_ms=NOW_MS)


def test_an_unknown_format_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="format 'netflix': expected generic or one of gorse, movielens, movielens-ratings, online"
    ):
        build(tmp_path, GOOD, format="netflix")


def test_a_failed_build_leaves_the_older_artifact_as_it_was(tmp_path: Path) -> None:
    build(tmp_path, GOOD)
    before = (tmp_path / "out" / "manifest.json").read_bytes()
    with pytest.raises(DataError):
        build(tmp_path, HEADER)
    assert (tmp_path / "out" / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (f",i,{S}", "user is empty"),
        (f"u,  ,{S}", "item is empty"),
        (f"{'u' * 257},i,{S}", "user is longer than 256"),
        (f"u,{'i' * 257},{S}", "item is longer than 256"),
        ("u,i,", "timestamp is empty"),
        ("u,i,yesterday", "timestamp does not parse"),
        ("u,i,-5", "timestamp before 1970"),
        (f"u,i,{S + 1001 + 2 * 86_400}", "timestamp in the future"),
        ("u,i", "2 fields, expected 3"),
        (f"u,i,{S},x", "4 fields, expected 3"),
        (f'u,"i,{S}', "unclosed quote"),
        (b"\xff,i,1600000000", "not UTF-8"),
    ],
)
@pytest.mark.parametrize("at_the_end", [True, False])
def test_a_bad_row_costs_itself_only(tmp_path: Path, line: str | bytes, reason: str, at_the_end: bool) -> None:
    rows = GOOD.encode().splitlines()
    place = len(rows) if at_the_end else 1
    rows.insert(place, line if isinstance(line, bytes) else line.encode())
    assert build(tmp_path, b"\n".join(rows)) == {reason: 1}
    written = (tmp_path / "out" / "quarantine.csv").read_text().splitlines()
    assert len(written) == 2
    assert written[1].startswith(f"log.csv,{place + 1},")


@pytest.mark.parametrize("whole", ["2020-09-13 12:26:40", "2020-09-13T12:26:40.5Z", "2020-09-13 12:26", "2020-09-13"])
def test_a_moment_that_ends_in_a_field_of_one_digit_is_cut_short(tmp_path: Path, whole: str) -> None:
    assert build(tmp_path, HEADER + f"u,i,{whole}\n" * 40, min_count=1) == {}
    cut = whole.removesuffix(".5Z")[:-1]
    assert build(tmp_path, HEADER + f"u,i,{whole}\n" * 40 + f"u,i,{cut}\n") == {"timestamp does not parse": 1}


@pytest.mark.parametrize("half", ['"title": "cut \\ud83d"', '"title": ["\\uDE00"]', '"\\ud83d": 1'])
def test_half_a_character_in_json_costs_its_line_only(tmp_path: Path, half: str) -> None:
    rows = [
        f'{{"user_id": "u{n}", "item_id": "i", "timestamp": {S + n}, "title": "\\ud83d\\ude00"}}' for n in range(40)
    ]
    rows.insert(1, f'{{"user_id": "u", "item_id": "i", "timestamp": {S}, {half}}}')
    assert build(tmp_path, "\n".join(rows), "log.jsonl") == {"not UTF-8": 1}
    assert "log.jsonl,2,not UTF-8," in (tmp_path / "out" / "quarantine.csv").read_text()


@pytest.mark.parametrize(("number", "is_epoch"), [(0, False), (631_151_999, False), (631_152_000, True)])
@pytest.mark.parametrize("scale", [1, 1_000, 1_000_000])
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_numbers_are_epochs_from_1990_on(tmp_path: Path, number: int, is_epoch: bool, scale: int, ending: str) -> None:
    frame = pl.DataFrame({"user_id": "u", "item_id": "i", "timestamp": [number * scale, S]})
    path = tmp_path / f"log.{ending}"
    frame.write_csv(path) if ending == "csv" else frame.write_parquet(path)
    result = clean(path, 0, resolve(FeaturesConfig()), FeaturesConfig(), NOW_MS)
    assert result.events["timestamp_ms"].to_list() == ([number * 1000] if is_epoch else []) + [S * 1000]
    assert result.quarantine["reason"].to_list() == (
        [] if is_epoch else ["timestamp is no epoch number (it would be before 1990)"]
    )


@pytest.mark.parametrize("unit", [1, 1_000])
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_moment_that_is_no_number_costs_its_row_only(tmp_path: Path, unit: int, ending: str) -> None:
    moments = [S * float(unit) + n for n in range(20)]
    frame = pl.DataFrame({"user_id": "u", "item_id": "i", "timestamp": [*moments, float("nan")]})
    path = tmp_path / f"log.{ending}"
    frame.write_csv(path) if ending == "csv" else frame.write_parquet(path)
    result = clean(path, 0, resolve(FeaturesConfig()), FeaturesConfig(), NOW_MS)
    assert result.events["timestamp_ms"].to_list() == [int(moment * 1000 / unit) for moment in moments]
    assert result.quarantine["reason"].to_list() == ["timestamp does not parse"]


def test_dates_that_are_written_as_dates_and_numbers_under_a_pattern_may_be_before_1990(tmp_path: Path) -> None:
    assert build(tmp_path, HEADER + f"u,i,1985-05-05\nu,i,{S}\n", min_count=1) == {}
    assert build(tmp_path, HEADER + "u,i,19850505\n", min_count=1, timestamp_format="%Y%m%d") == {}
    assert build(tmp_path, HEADER + "u,i,12\nu,i,15\n", min_count=1, timestamp_format="%s") == {}


def test_one_bad_row_of_a_tiny_file_is_tolerated_and_two_are_not(tmp_path: Path) -> None:
    tiny = HEADER + f"u,i,{S}\n" * 5
    assert build(tmp_path, tiny + "u,i,x\n", min_count=1) == {"timestamp does not parse": 1}
    with pytest.raises(DataError, match="2 of 7 rows"):
        build(tmp_path, tiny + "u,i,x\n" * 2, min_count=1)


@pytest.mark.parametrize("line", [f"ann-secret,i,{S},x", "ann-secret,i,when?", f"ann-secret,,{S}", '"ann-secret,i'])
def test_a_refusal_names_no_user(tmp_path: Path, line: str) -> None:
    with pytest.raises(DataError, match="2 of 2 rows cannot be read") as refused:
        build(tmp_path, HEADER + f"{line}\n" * 2)
    assert "secret" not in str(refused.value)


def test_event_types_that_are_chosen_have_to_be_there(tmp_path: Path) -> None:
    log = HEADER.replace("\n", ",event_type\n") + f"u,i,{S},view\n" * 9 + f"u,i,{S},purchase\n"
    with pytest.raises(DataError, match="is of target_types, purchse; expected one of view, purchase; correct the set"):
        build(tmp_path, log, target_types=["purchse"])
    (tmp_path / "log.csv").write_text(log)
    config = FeaturesConfig(target_types=("purchase", "cart"), event_weights={"viewed": 2})
    said = features_summary(run(config, [tmp_path / "log.csv"], tmp_path / "out", now_ms=NOW_MS), tmp_path)
    assert "note: target_types names cart, of which there is no event so far" in said
    assert "note: event_weights names viewed" in said


def test_an_object_is_no_id(tmp_path: Path) -> None:
    rows = f'{{"user_id": "u", "item_id": "i", "timestamp": {S}}}\n' * 40
    rows += f'{{"user_id": {{"id": 0}}, "item_id": "i", "timestamp": {S}}}\n'
    assert build(tmp_path, rows, "log.jsonl") == {"user is empty": 1}


def test_blank_lines_are_neither_rows_nor_errors() -> None:
    raw = read_delimited(b"a,b\n1,2\n\n3,4\n\n\n", ",", ())
    assert (raw.rows.rows(), raw.bad) == ([(2, "1", "2"), (4, "3", "4")], [])


def test_two_unclosed_quotes_do_not_hide_the_lines_between_them() -> None:
    raw = read_delimited(b'a,b\n1,"x\n2,y\n3,"z\n4,w\n', ",", ())
    assert raw.rows.rows() == [(3, "2", "y"), (5, "4", "w")]
    assert raw.bad == [(2, "unclosed quote", '1,"x'), (4, "unclosed quote", '3,"z')]


def test_a_quoted_field_may_hold_separators_quotes_and_line_breaks() -> None:
    raw = read_delimited(b'a,b\n"1,1","x\n\ny"\n\n2,"6"" pan"\n', ",", ())
    assert (raw.rows.rows(), raw.bad) == ([(2, "1,1", "x\n\ny"), (6, "2", '6" pan')], [])


LINES = (f"u,i,{S}", f"v,j,{S}", f'"w",i,{S}', "u,i", "u", f"u,i,{S},9", f",i,{S}", "u,i,x", f'u,"i,{S}', f"\xe9,i,{S}")
NUM_GOOD_KINDS = 3


@given(st.lists(st.sampled_from(LINES), min_size=1, max_size=30))
def test_every_line_is_an_event_or_in_quarantine(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    path = tmp_path_factory.mktemp("log") / "log.csv"
    path.write_bytes((HEADER + "\n".join(lines)).encode("latin-1"))
    config = FeaturesConfig(max_bad_share=1)
    result = clean(path, 0, resolve(config), config, NOW_MS)
    assert len(result.events) == sum(line in LINES[:NUM_GOOD_KINDS] for line in lines)
    assert result.num_rows == len(lines) == len(result.events) + len(result.quarantine)
