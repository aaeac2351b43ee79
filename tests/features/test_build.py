"""The features artifact: what is in it, in which order, and that its reader reads it."""

from pathlib import Path

import polars as pl
import pytest

from features.build import FeaturesConfig, run
from recsys import dataset
from recsys.contracts import artifact
from recsys.contracts.artifact import Manifest
from recsys.dataset import Protocol

S = 1_600_000_000
MS = S * 1000

# u2 comes first in time; b and a share a moment, so the order of the file decides.
LOG = f"""user_id,item_id,timestamp,event_type,title,price
u1,b,{S + 10},view,Bee,1.5
u1,a,{S + 10},view,,
u2,c,{S},buy,,
u1,c,{S + 20},view,Sea,
u1,b,{S + 30},buy,,2.5
u2,b,oops,buy,,
"""


def build(place: Path, text: str = LOG, **options: object) -> Manifest:
    (place / "log.csv").write_text(text)
    config = FeaturesConfig.from_mapping({"min_count": 1, "num_partitions": 3, **options}, "test")
    return run(config, [place / "log.csv"], place / "out")


def test_items_are_numbered_by_first_appearance_and_described_by_their_last_known_values(tmp_path: Path) -> None:
    build(tmp_path, split_quantile=0.75)  # T is the fourth of five moments: S + 20
    items = pl.read_parquet(tmp_path / "out" / "items.parquet")
    assert items.schema == {
        "item_index": pl.UInt32,
        "item_id": pl.String,
        "num_events": pl.UInt32,
        "num_events_before_split": pl.UInt32,
        "first_ms": pl.Int64,
        "last_ms": pl.Int64,
        "title": pl.String,
        "category": pl.String,
        "price": pl.Float64,
    }
    assert items.rows() == [
        (1, "c", 2, 1, MS, MS + 20_000, "Sea", None, None),
        (2, "b", 2, 1, MS + 10_000, MS + 30_000, "Bee", None, 2.5),
        (3, "a", 1, 1, MS + 10_000, MS + 10_000, None, None, None),
    ]


def test_histories_are_one_row_a_user_in_order_of_time_then_file(tmp_path: Path) -> None:
    manifest = build(tmp_path)
    assert manifest.metrics["event_types"] == ["buy", "view"]
    folder = tmp_path / "out" / "histories"
    assert sorted(p.name for p in folder.iterdir()) == [f"part-0000{n}.parquet" for n in range(3)]
    histories = pl.read_parquet(folder / "*.parquet").sort("user_id")
    assert histories.schema == {
        "user_id": pl.String,
        "item_index": pl.List(pl.UInt32),
        "timestamp_ms": pl.List(pl.Int64),
        "event_type": pl.List(pl.UInt8),
    }
    assert histories.rows() == [
        ("u1", [2, 3, 1, 2], [MS + 10_000, MS + 10_000, MS + 20_000, MS + 30_000], [1, 1, 1, 0]),
        ("u2", [1], [MS], [0]),
    ]


def test_metrics_account_for_every_row(tmp_path: Path) -> None:
    text = LOG + f"u3,b,{S + 40},buy,,\nu3,a,{S + 50},buy,,\n"
    manifest = build(tmp_path, text, min_count=2, split_quantile=0.99)  # T = S + 40: before it c c b b a
    assert artifact.verify(tmp_path / "out", "features") == manifest
    assert manifest.parents == {}
    assert manifest.config["min_count"] == 2
    metrics = manifest.metrics
    found = {key: metrics[key] for key in ("num_rows_read", "num_events", "num_users", "num_items", "num_items_kept")}
    assert found == {"num_rows_read": 8, "num_events": 7, "num_users": 3, "num_items": 3, "num_items_kept": 2}
    assert (metrics["excluded"], metrics["quarantined"]) == ({}, {"timestamp does not parse": 1})
    assert (metrics["first_ms"], metrics["last_ms"], metrics["has_timestamps"]) == (MS, MS + 50_000, True)
    assert metrics["source_files"] == [{"name": "log.csv", "size_bytes": len(text)}]


def test_the_quarantine_is_there_with_its_header_when_nothing_is_in_it(tmp_path: Path) -> None:
    build(tmp_path, LOG.replace("oops", str(S)))
    assert (tmp_path / "out" / "quarantine.csv").read_text() == "file,line,reason,row\n"


@pytest.mark.parametrize(("quantile", "split"), [(0.9, 9), (0.5, 5), (0.55, 5)])
def test_the_split_is_the_lower_quantile_of_the_moments(tmp_path: Path, quantile: float, split: int) -> None:
    text = "user_id,item_id,timestamp\n" + "".join(f"u,i,{S + n}\n" for n in range(11))  # positions 0 … 10
    assert build(tmp_path, text, split_quantile=quantile).metrics["split_ms"] == MS + split * 1000


def test_there_is_no_split_where_all_events_share_one_moment(tmp_path: Path) -> None:
    manifest = build(tmp_path, f"user_id,item_id,timestamp\nu,i,{S}\nu,j,{S}\n")
    assert manifest.metrics["split_ms"] is None
    items = pl.read_parquet(tmp_path / "out" / "items.parquet")
    assert items["num_events_before_split"].to_list() == [1, 1]


def test_a_log_without_times_has_no_split_and_counts_all_events(tmp_path: Path) -> None:
    metrics = build(tmp_path, "u a b a\n", format="sequences").metrics
    assert (metrics["has_timestamps"], metrics["split_ms"], metrics["first_ms"]) == (False, None, None)
    assert pl.read_parquet(tmp_path / "out" / "items.parquet")["num_events"].to_list() == [2, 1]


def test_a_user_stays_in_one_partition_whatever_else_is_in_the_log(tmp_path: Path) -> None:
    def part_of_u1() -> list[str]:
        files = sorted((tmp_path / "out" / "histories").iterdir())
        return [path.name for path in files if "u1" in pl.read_parquet(path)["user_id"].to_list()]

    build(tmp_path)
    first = part_of_u1()
    build(tmp_path, f"user_id,item_id,timestamp\nu9,b,{S}\nu1,z,{S - 1}\nu8,a,{S}\n")
    assert part_of_u1() == first == ["part-00002.parquet"]  # zlib.crc32(b"u1") = 1112514422 = 3 · 370838140 + 2


def test_the_same_log_gives_the_same_files(tmp_path: Path) -> None:
    first, second = build(tmp_path), build(tmp_path)
    assert first.files == second.files


def test_the_dataset_reads_what_was_built(tmp_path: Path) -> None:
    build(tmp_path, split_quantile=0.75)
    data = dataset.load(tmp_path / "out", Protocol.TIME)
    assert [item.item_id for item in data.vocabulary.items] == ["c", "b", "a"]
    fitted = {user: data.fit[n].tolist() for n, user in enumerate(data.fit.user_ids)}
    assert fitted == {"u1": [2, 3], "u2": [1]}  # before T = S + 20
    assert dataset.user_item_ids(tmp_path / "out", "u1") == ["b", "a", "c", "b"]
