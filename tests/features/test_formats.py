"""Each public format: a tiny file, and its events worked out by hand."""

import gzip
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from features.build import FeaturesConfig, read_events, run
from features.clean import clean
from features.formats import resolve
from recsys.contracts.errors import DataError

S = 1_600_000_000
MS = S * 1000
CONFIG = FeaturesConfig()
Events = list[tuple[str, str, int, str]]


def events_of(place: Path, content: str, name: str = "log.csv", **options: str) -> Events:
    path = place / name
    data = content.encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    frame = read_events(FeaturesConfig.from_mapping(options, "test"), [path])
    return frame.select("user_id", "item_id", "timestamp_ms", "event_type").rows()


def test_generic_reads_csv_with_optional_columns_absent(tmp_path: Path) -> None:
    assert events_of(tmp_path, f"user_id,item_id,timestamp\nu,i,{S}\n") == [("u", "i", MS, "interaction")]


def test_generic_maps_columns_by_option_and_keeps_title_category_and_price(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(f'who;sku;at;what;title;category;price\nu;i;{S};buy;"a; b";c;2.50\nu;j;{S};;;;nan\n')
    config = FeaturesConfig(
        user_column="who", item_column="sku", timestamp_column="at", event_type_column="what", delimiter=";"
    )
    assert read_events(config, [path]).rows() == [
        ("u", "i", MS, "buy", "a; b", "c", 2.5, 0, 2),
        ("u", "j", MS, "interaction", None, None, None, 0, 3),
    ]


@pytest.mark.parametrize("column", ["timestamp_ms", "reason", "left_out", "source", "row", "price"])
def test_a_mapped_column_may_have_a_name_that_we_use_ourselves(tmp_path: Path, column: str) -> None:
    text = f"user_id,item_id,{column}\nu,i,{S}\n"
    assert events_of(tmp_path, text, timestamp_column=column) == [("u", "i", MS, "interaction")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("log.csv.gz", f"user_id,item_id,timestamp\nu,i,{S}\n"),
        ("log.tsv", f"user_id\titem_id\ttimestamp\nu\ti\t{S}\n"),
        ("log.csv", f"\ufeffUser_ID, item_id ,timestamp\r\n u ,i,{S}\r\n"),
        ("log.jsonl", f'{{"user_id": "u", "item_id": "i", "timestamp": {S}, "tags": ["x"]}}\n\n'),
        ("log.jsonl.gz", f'{{"user_id": "u", "item_id": "i", "timestamp": {S}}}\n'),
    ],
)
def test_generic_reads_by_the_ending(tmp_path: Path, name: str, content: str) -> None:
    assert events_of(tmp_path, content, name) == [("u", "i", MS, "interaction")]


def test_generic_reads_parquet_with_real_datetimes_and_ignores_nested_and_binary_columns(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    moment = pl.from_epoch(pl.Series("timestamp", [S]), time_unit="s").dt.replace_time_zone("UTC")
    frame = pl.DataFrame({"user_id": [7], "item_id": ["i"], "tags": [["x"]], "blob": [b"\xff"]}).with_columns(moment)
    frame.write_parquet(path)
    assert read_events(FeaturesConfig(), [path]).rows() == [
        ("7", "i", MS, "interaction", None, None, None, 0, 1),
    ]


@pytest.mark.parametrize("field", ["user_id", "item_id", "timestamp"])
@pytest.mark.parametrize(
    "value", [timedelta(days=1), [1], {"a": 1}, b"\xff"], ids=["duration", "list", "struct", "binary"]
)
def test_a_column_that_is_of_no_use_by_its_type_is_named_as_missing_and_why(tmp_path: Path, field: str, value) -> None:
    pl.DataFrame({"user_id": ["u"], "item_id": ["i"], "timestamp": [S]} | {field: [value]}).write_parquet(
        tmp_path / "log.parquet"
    )
    with pytest.raises(DataError, match=f"no column '{field}'; found .*lists, structs, binary data and durations"):
        read_events(FeaturesConfig(), [tmp_path / "log.parquet"])


@pytest.mark.parametrize("kind", [pl.Float64, pl.Float32])
def test_whole_numbers_of_typed_files_are_read_as_a_csv_has_them(tmp_path: Path, kind: type[pl.DataType]) -> None:
    names = ("user_id", "item_id", "event_type", "title", "category", "event_id")
    whole = {name: pl.Series([17850.0, None if name in names[2:] else 3.0, 2.5], dtype=kind) for name in names}
    frame = pl.DataFrame({**whole, "timestamp": [float(S), S + 1.0, S + 2.0], "price": [2.0, 1.5, None]})
    frame.write_parquet(tmp_path / "log.parquet")
    frame.write_ndjson(tmp_path / "log.jsonl")
    (tmp_path / "log.csv").write_text(
        "user_id,item_id,event_type,title,category,event_id,timestamp,price\n"
        f"17850,17850,17850,17850,17850,17850,{S},2\n3,3,,,,,{S + 1},1.5\n2.5,2.5,2.5,2.5,2.5,2.5,{S + 2},\n"
    )
    paths = [tmp_path / f"log.{ending}" for ending in ("parquet", "jsonl", "csv")]
    parquet, lines, text = (clean(path, 0, resolve(CONFIG), CONFIG, MS * 2).events.drop("row") for path in paths)
    assert text["user_id"].to_list() == ["17850", "3", "2.5"]
    assert_frame_equal(parquet, text)
    assert_frame_equal(lines, text)


def test_what_is_not_a_number_is_no_id_and_large_numbers_have_all_their_digits(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user_id": [float("nan"), 2.0**60, -0.0], "item_id": ["i", "i", "i"], "timestamp": [S] * 3})
    frame.write_parquet(tmp_path / "log.parquet")
    (tmp_path / "log.jsonl").write_text(
        "".join(
            f'{{"user_id": {u}, "item_id": "i", "timestamp": {S}}}\n' for u in ("NaN", "1152921504606846976.0", "0")
        )
    )
    for name in ("log.parquet", "log.jsonl"):
        result = clean(tmp_path / name, 0, resolve(CONFIG), CONFIG, MS * 2)
        assert result.events["user_id"].to_list() == ["1152921504606846976", "0"]
        assert result.quarantine["reason"].to_list() == ["user is empty"]


def test_a_pattern_reads_dates_in_digits_that_a_typed_file_has_as_floats(tmp_path: Path) -> None:
    pl.DataFrame({"user_id": "u", "item_id": "i", "timestamp": [20200913.0]}).write_parquet(tmp_path / "log.parquet")
    events = read_events(FeaturesConfig(timestamp_format="%Y%m%d"), [tmp_path / "log.parquet"])
    assert events["timestamp_ms"].to_list() == [1_599_955_200_000]


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("1600000000", MS),
        ("1600000000.25", MS + 250),
        ("1600000000250", MS + 250),
        ("1600000000250000", MS + 250),
        ("1.6e9", MS),
        ("2020-09-13", MS - (12 * 3600 + 26 * 60 + 40) * 1000),
        ("2020-09-13 12:26", MS - 40_000),
        ("2020-09-13 12:26:40", MS),
        ("2020-09-13 12:26:40 UTC", MS),
        ("2020-09-13T12:26:40Z", MS),
        ("2020-09-13T12:26:40.250Z", MS + 250),
        ("2020-09-13T14:26:40+02:00", MS),
        ("2020-09-13T14:26+02:00", MS - 40_000),
        ("2020-09-13 14:26+02", MS - 40_000),
        ("2020-09-13T10:26-0200", MS - 40_000),
        ("2020-09-13T07:26:40-0500", MS),
        ("2020-09-13 14:26:40+02", MS),
        ("2020-09-13 12:26:40 +00:00", MS),
    ],
)
def test_timestamps_are_recognised(tmp_path: Path, text: str, milliseconds: int) -> None:
    assert events_of(tmp_path, f"user_id,item_id,timestamp\nu,i,{text}\n")[0][2] == milliseconds


def test_timestamp_format_rules_where_it_is_given(tmp_path: Path) -> None:
    text = "user_id,item_id,timestamp\nu,i,13/09/2020 12:26:40\n"
    assert events_of(tmp_path, text, timestamp_format="%d/%m/%Y %H:%M:%S")[0][2] == MS


@pytest.mark.parametrize("value", ["abc", "", "-1 pcs", "nan", "1e999"])
@pytest.mark.parametrize("format_name", ["movielens-ratings", "online-retail", "online-retail-returns"])
def test_what_decides_on_the_event_type_has_to_be_a_number(tmp_path: Path, format_name: str, value: str) -> None:
    if format_name == "movielens-ratings":
        path, name, start = tmp_path / "ratings.dat", "rating", ""
        rows = [f"u::i::{number}::1600000000\n" for number in ["2"] * 20 + [value]]
    else:
        path, name, start = tmp_path / "day.csv", "Quantity", "InvoiceNo,StockCode,Quantity,InvoiceDate,CustomerID\n"
        rows = [f"1,71053,{number},2020-09-13 12:26,17850\n" for number in ["2"] * 20 + [value]]
    path.write_text(start + "".join(rows))
    metrics = run(FeaturesConfig(format=format_name), [path], tmp_path / "out").metrics
    assert (metrics["num_events"], metrics["quarantined"]) == (20, {f"{name} is no number": 1})


def test_online_retail_leaves_out_guests_then_cancellations_then_what_is_no_goods(tmp_path: Path) -> None:
    path = tmp_path / "day.csv"
    path.write_text(
        "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"
        '1,85123a,"HEART, WHITE",6,2020-09-13 12:26:40,2.55,17850.0,UK\n'
        "C2,71053,LANTERN,-1,2020-09-13 12:26:40,3.39,17850,UK\n"
        "3,71053,LANTERN,-1,2020-09-13 12:26:40,3.39,17850,UK\n"
        "C4,71053,LANTERN,-1,2020-09-13 12:26:40,3.39,,UK\n"
        "5,POST,POSTAGE,1,2020-09-13 12:26:40,18.00,17850,UK\n"
    )
    config = FeaturesConfig(format="online-retail", min_count=1)
    manifest = run(config, [path], tmp_path / "out")
    assert manifest.metrics["excluded"] == {"cancellation": 2, "guest": 1, "not goods": 1}
    assert read_events(config, [path]).rows() == [("17850", "85123A", MS, "purchase", "HEART, WHITE", None, 2.55, 0, 2)]


def test_online_retail_with_returns_keeps_cancellations_as_events_of_their_own_type(tmp_path: Path) -> None:
    path = tmp_path / "day.csv"
    path.write_text(
        "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"
        "1,85123A,HEART,6,2020-09-13 12:26:40,2.55,17850,UK\n"
        "C2,85123A,HEART,-1,2020-09-13 12:26:40,2.55,17850,UK\n"
        "C3,85123A,HEART,-1,2020-09-13 12:26:40,2.55,,UK\n"
        "C4,POST,POSTAGE,-1,2020-09-13 12:26:40,18.00,17850,UK\n"
    )
    config = FeaturesConfig(format="online-retail-returns", min_count=1)
    assert read_events(config, [path])["event_type"].to_list() == ["purchase", "return"]
    assert run(config, [path], tmp_path / "out").metrics["excluded"] == {"guest": 1, "not goods": 1}


def test_movielens_ratings_below_three_stars_are_dislikes(tmp_path: Path) -> None:
    content = "".join(f"1::{10 + stars}::{stars}::{S}\n" for stars in (1, 2, 3, 5))
    events = events_of(tmp_path, content, "ratings.dat", format="movielens-ratings")
    assert [event[3] for event in events] == ["dislike", "dislike", "like", "like"]


def test_taobao_names_behaviours_and_sets_the_cut_off_last_line_aside(tmp_path: Path) -> None:
    path = tmp_path / "UserBehavior.csv"
    path.write_text(f"1,10,3,pv,{S}\n1,11,3,fav,{S}\n1,12,3,cart,{S}\n2,10,3,buy,{S}\n2,13,4,pv")
    config = FeaturesConfig(format="taobao", min_count=1)
    assert read_events(config, [path])["event_type"].to_list() == ["view", "favourite", "cart", "purchase"]
    manifest = run(config, [path], tmp_path / "out")
    assert manifest.metrics["quarantined"] == {"4 fields, expected 5": 1}
    quarantine = (tmp_path / "out" / "quarantine.csv").read_text()
    assert quarantine == 'file,line,reason,row\nUserBehavior.csv,5,"4 fields, expected 5","2,13,4,pv"\n'


def test_rees46_title_is_brand_and_kind_and_category_falls_back_to_its_id(tmp_path: Path) -> None:
    path = tmp_path / "oct.csv"
    path.write_text(
        "event_time,event_type,product_id,category_id,category_code,brand,price,user_id,user_session\n"
        "2020-09-13 12:26:40 UTC,view,1,77,appliances.water_heater,aqua,33.20,9,s\n"
        "2020-09-13 12:26:40 UTC,cart,2,78,,shiseido,35.79,9,s\n"
        "2020-09-13 12:26:40 UTC,purchase,3,79,,,1.00,9,s\n"
    )
    assert read_events(FeaturesConfig(format="rees46"), [path]).rows() == [
        ("9", "1", MS, "view", "aqua water heater", "appliances.water_heater", 33.2, 0, 2),
        ("9", "2", MS, "cart", "shiseido", "78", 35.79, 0, 3),
        ("9", "3", MS, "purchase", None, "79", 1.0, 0, 4),
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("ratings.dat", f"1::10::5::{S}\n"),
        ("ratings_part.dat.gz", f"1::10::5::{S}\n"),
        ("ratings.csv", f"userId,movieId,rating,timestamp\n1,10,5.0,{S}\n"),
        ("u.data", f"1\t10\t5\t{S}\n"),
    ],
)
def test_movielens_reads_each_of_its_layouts(tmp_path: Path, name: str, content: str) -> None:
    assert events_of(tmp_path, content, name, format="movielens") == [("1", "10", MS, "interaction")]


def test_movielens_folder_gives_ratings_with_titles_in_latin_1(tmp_path: Path) -> None:
    (tmp_path / "ratings.dat").write_text(f"1::10::5::{S}\n")
    (tmp_path / "movies.dat").write_bytes("10::Misérables, Les (1995)::Drama|Musical\n".encode("latin-1"))
    (tmp_path / "users.dat").write_text("1::F::1::10::48067\n")
    frame = read_events(FeaturesConfig(format="movielens"), [tmp_path])
    assert frame.select("item_id", "title", "category").rows() == [("10", "Misérables, Les (1995)", "Drama|Musical")]


@pytest.mark.parametrize(
    ("known_as", "name", "content", "event_type"),
    [
        ("rectools", "log.csv", f"user_id,item_id,weight,datetime\nu,i,1,{S}\n", "interaction"),
        ("recbole", "a.inter", f"user_id:token\titem_id:token\ttimestamp:float\nu\ti\t{S}.0\n", "interaction"),
        ("gorse", "log.csv", "feedback_type,user_id,item_id,time_stamp\nlike,u,i,2020-09-13T12:26:40Z\n", "like"),
        (
            "gorse",
            "log.jsonl",
            '{"FeedbackType":"like","UserId":"u","ItemId":"i","Timestamp":"2020-09-13T12:26:40Z"}\n',
            "like",
        ),
        ("personalize", "log.csv", f"USER_ID,ITEM_ID,TIMESTAMP,EVENT_TYPE\nu,i,{S},click\n", "click"),
        ("personalize", "log.csv", f"userId,itemId,timestamp,eventType\nu,i,{S},click\n", "click"),
    ],
)
def test_formats_of_other_tools(tmp_path: Path, known_as: str, name: str, content: str, event_type: str) -> None:
    assert events_of(tmp_path, content, name, format=known_as) == [("u", "i", MS, event_type)]


def test_sequences_and_pairs_have_an_order_and_no_times(tmp_path: Path) -> None:
    expected = [("u", "a", 0, "interaction"), ("u", "b", 1, "interaction"), ("v", "a", 2, "interaction")]
    assert events_of(tmp_path, "u a b\nv a\n", "s.txt", format="sequences") == expected
    assert events_of(tmp_path, "u a\nu  b\nv\ta\n", "p.txt.gz", format="pairs") == expected


def test_a_folder_is_read_in_order_of_names_without_readme_and_hidden_files(tmp_path: Path) -> None:
    for name, user in (("b.csv", "second"), ("a.csv", "first"), (".c.csv", "no"), ("README.txt", "no")):
        (tmp_path / name).write_text(f"user_id,item_id,timestamp\n{user},i,{S}\n")
    frame = read_events(FeaturesConfig(), [tmp_path])
    assert frame.select("user_id", "source", "row").rows() == [("first", 0, 2), ("second", 1, 2)]


def test_the_second_file_of_a_log_without_times_comes_after_the_first(tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_text("u a\nu b\n")
    (tmp_path / "2.txt").write_text("u c\n")
    frame = read_events(FeaturesConfig(format="pairs"), [tmp_path])
    assert frame.sort("timestamp_ms")["item_id"].to_list() == ["a", "b", "c"]
