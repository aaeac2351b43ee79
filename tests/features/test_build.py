"""The features artifact: what is in it, in which order, and that its reader reads it."""

from pathlib import Path

import polars as pl
import polars.selectors as cs
import pytest

from features.build import FeaturesConfig, run
from features.catalogue import SCHEMA, Catalogue
from recsys import dataset
from recsys.contracts import artifact
from recsys.contracts.artifact import Manifest
from recsys.contracts.protocol import Protocol
from recsys.whole_histories import WholeHistories

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
    config = FeaturesConfig.from_mapping({"min_count": 1, "events_per_partition": 2, **options}, "test")
    return run(config, [place / "log.csv"], place / "out")


def histories_of(artifact_folder: Path) -> dict[str, list[tuple[str, int, str]]]:
    """Per user (item_id, moment, event type), straight from the files."""
    kinds = artifact.read_manifest(artifact_folder).metrics["event_types"]
    users, items = (pl.read_parquet(artifact_folder / f"{name}.parquet") for name in ("users", "items"))
    events = pl.concat([pl.read_parquet(p) for p in sorted(artifact_folder.glob("histories/*/*.parquet"))])
    joined = events.join(users, on="user_index", maintain_order="left").join(
        items, on="item_index", maintain_order="left"
    )
    found: dict[str, list[tuple[str, int, str]]] = {}
    for user, item, moment, kind in joined.select("user_id", "item_id", "timestamp_ms", "event_type").iter_rows():
        found.setdefault(user, []).append((item, moment, kinds[kind]))
    return found


def test_items_are_numbered_as_the_log_brings_them_and_described_by_their_first_and_last_known_values(
    tmp_path: Path,
) -> None:
    build(tmp_path)
    items = pl.read_parquet(tmp_path / "out" / "items.parquet").drop(
        pl.selectors.matches("^(first_)?(title|category|price)_ms$")
    )
    assert items.schema == {
        "item_index": pl.UInt32,
        "item_id": pl.String,
        "num_events": pl.UInt32,
        "num_events_by_type": pl.List(pl.UInt32),
        "first_ms": pl.Int64,
        "last_ms": pl.Int64,
        "title": pl.String,
        "category": pl.String,
        "price": pl.Float64,
        "first_title": pl.String,
        "first_category": pl.String,
        "first_price": pl.Float64,
        "kept": pl.Boolean,
    }
    assert items.rows() == [  # view, buy
        (1, "b", 2, [1, 1], MS + 10_000, MS + 30_000, "Bee", None, 2.5, "Bee", None, 1.5, True),
        (2, "a", 1, [1, 0], MS + 10_000, MS + 10_000, None, None, None, None, None, None, True),
        (3, "c", 2, [1, 1], MS, MS + 20_000, "Sea", None, None, "Sea", None, None, True),
    ]


def test_histories_are_flat_by_user_in_order_of_time_then_file(tmp_path: Path) -> None:
    manifest = build(tmp_path, events_per_partition=3)
    assert manifest.metrics["event_types"] == ["view", "buy"]
    files = sorted((tmp_path / "out" / "histories").glob("*/*"))
    assert [p.relative_to(tmp_path / "out" / "histories").as_posix() for p in files] == [
        "g00000/part-00000.parquet",
        "g00000/part-00001.parquet",  # 5 events, 3 at most in a partition
    ]
    assert pl.read_parquet(files[0]).schema == {
        "user_index": pl.UInt32,
        "timestamp_ms": pl.Int64,
        "source": pl.UInt32,
        "row": pl.UInt32,
        "item_index": pl.UInt32,
        "event_type": pl.UInt8,
    }
    assert histories_of(tmp_path / "out") == {
        "u1": [
            ("b", MS + 10_000, "view"),
            ("a", MS + 10_000, "view"),
            ("c", MS + 20_000, "view"),
            ("b", MS + 30_000, "buy"),
        ],
        "u2": [("c", MS, "buy")],
    }


def test_metrics_account_for_every_row(tmp_path: Path) -> None:
    text = LOG + f"u3,b,{S + 40},buy,,\nu3,a,{S + 50},buy,,\n"
    manifest = build(tmp_path, text, min_count=2, split_quantile=0.99)
    assert artifact.verify(tmp_path / "out", "features") == manifest
    assert manifest.parents == {}
    assert manifest.config["min_count"] == 2
    metrics = manifest.metrics
    found = {key: metrics[key] for key in ("num_rows_read", "num_events", "num_users", "num_items", "num_items_kept")}
    assert found == {"num_rows_read": 8, "num_events": 7, "num_users": 3, "num_items": 3, "num_items_kept": 3}
    assert (metrics["excluded"], metrics["quarantined"]) == ({}, {"timestamp does not parse": 1})
    assert (metrics["first_ms"], metrics["last_ms"], metrics["has_timestamps"]) == (MS, MS + 50_000, True)
    assert (metrics["split_ms"], metrics["why_full"]) == (MS + 40_000, "first build")
    (source,) = metrics["source_files"]
    assert source == {
        "name": "log.csv",
        "size_bytes": len(text),
        "mtime_ns": (tmp_path / "log.csv").stat().st_mtime_ns,
        "sha256": artifact.sha256_of(tmp_path / "log.csv"),
        "num_rows": 8,
        "num_events": 7,
        "open_end": False,
    }


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


def test_a_log_without_times_has_no_split_and_counts_all_events(tmp_path: Path) -> None:
    metrics = build(tmp_path, "u a b a\n", format="sequences").metrics
    assert (metrics["has_timestamps"], metrics["split_ms"], metrics["first_ms"]) == (False, None, None)
    assert pl.read_parquet(tmp_path / "out" / "items.parquet")["num_events"].to_list() == [2, 1]


def test_a_user_is_in_the_partition_of_its_bucket(tmp_path: Path) -> None:
    build(tmp_path, "user_id,item_id,timestamp\n" + "".join(f"u{n},i,{S}\n" for n in range(64)), events_per_partition=8)
    users = pl.read_parquet(tmp_path / "out" / "users.parquet")
    assert len(list((tmp_path / "out" / "histories" / "g00000").iterdir())) == 8
    for number in range(8):
        stored = pl.read_parquet(tmp_path / "out" / "histories" / "g00000" / f"part-{number:05d}.parquet")
        assert set(stored["user_index"]) == set(users.filter(pl.col("bucket") % 8 == number)["user_index"])


def test_the_same_log_gives_the_same_files(tmp_path: Path) -> None:
    first, second = build(tmp_path), build(tmp_path)
    assert first.digest == second.digest  # nothing is new, so nothing was written
    (tmp_path / "other").mkdir()
    third = build(tmp_path / "other")
    varying = {"report.html", "forgotten.json"}  # times; a random key
    assert {n: f for n, f in first.files.items() if n not in varying} == {
        n: f for n, f in third.files.items() if n not in varying
    }


def test_the_dataset_reads_what_was_built(tmp_path: Path) -> None:
    build(tmp_path, split_quantile=0.75)
    data = dataset.load(tmp_path / "out", Protocol.TIME)
    assert [item.item_id for item in data.vocabulary.items] == ["b", "a", "c"]
    fitted = {user: data.fit[n].tolist() for n, user in enumerate(data.fit.user_ids)}
    assert fitted == {"u1": [1, 2], "u2": [3]}  # before T = S + 20
    assert WholeHistories(tmp_path / "out").of("u1") == ["b", "a", "c", "b"]


def test_a_night_keeps_first_descriptions_whatever_the_order_of_files(tmp_path: Path) -> None:
    header = "user_id,item_id,timestamp,event_type,title,price\n"
    log = tmp_path / "log"
    log.mkdir()
    for name, moment, title, price in (
        ("b", S + 100, "Bee", 2),
        ("c", S + 200, "Big bee", 3),
        ("a", S, "Small bee", 1),
    ):
        (log / f"{name}.csv").write_text(f"{header}u1,x,{moment},view,{title},{price}\n")
        run(FeaturesConfig(min_count=1), [log], tmp_path / "out")
    row = pl.read_parquet(tmp_path / "out" / "items.parquet").row(0, named=True)
    assert (row["first_title"], row["first_price"], row["first_title_ms"]) == ("Small bee", 1, MS)
    assert (row["title"], row["price"], row["title_ms"]) == ("Big bee", 3, MS + 200_000)


def test_features_of_before_go_on_with_the_descriptions_that_they_have(tmp_path: Path) -> None:
    first = build(tmp_path)
    table = tmp_path / "out" / "items.parquet"
    pl.read_parquet(table).select(~cs.starts_with("first_title", "first_category", "first_price")).write_parquet(table)
    with artifact.writing(tmp_path / "older", "features") as writer:
        for name in first.files:
            (writer.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (writer.folder / name).write_bytes((tmp_path / "out" / name).read_bytes())
        writer.commit(parents={}, config=first.config, metrics=first.metrics)
    assert dataset.load(tmp_path / "older", Protocol.TIME).vocabulary.items[0].price == 2.5
    (tmp_path / "more.csv").write_text(LOG.splitlines()[0] + f"\nu1,b,{S + 99},buy,Bumblebee,9\n")
    run(
        FeaturesConfig.from_mapping(dict(first.config), "test"),
        [tmp_path / "log.csv", tmp_path / "more.csv"],
        tmp_path / "older",
    )
    assert dataset.load(tmp_path / "older", Protocol.TIME).vocabulary.items[0].price == 2.5  # 9 is from after the cut
    row = pl.read_parquet(tmp_path / "older" / "items.parquet").row(0, named=True)
    assert (row["title"], row["price"], row["first_title"], row["first_price"]) == ("Bumblebee", 9, "Bee", 2.5)


def test_before_the_cut_nothing_is_known_of_what_an_item_is_called_after_it(tmp_path: Path) -> None:
    """The cut is among the last events: a is first called something there, d is first seen there."""
    rows = [f"u{n % 3},{'ab'[n % 2]},{S + n},view,{'' if n % 2 == 0 else 'Bee'},{n}" for n in range(20)]
    rows += [f"u1,a,{S + 20},view,Late,50", f"u1,d,{S + 21},view,Dee,60"]
    build(tmp_path, "user_id,item_id,timestamp,event_type,title,price\n" + "\n".join(rows) + "\n")
    past, live = (dataset.load(tmp_path / "out", protocol) for protocol in (Protocol.TIME, Protocol.FINAL))
    assert [(item.item_id, item.title, item.price) for item in past.vocabulary.items] == [
        ("a", None, 0),
        ("b", "Bee", 1),
    ]
    assert past.split_ms is not None
    assert [(item.item_id, item.title, item.price) for item in past.new_items(past.split_ms)] == [("d", "Dee", 60)]
    assert [item.title for item in live.vocabulary.items] == ["Late", "Bee", "Dee"]


def test_what_a_file_of_titles_says_is_corrected_by_any_event_in_whatever_night() -> None:
    known = pl.DataFrame({"item_index": [1], "item_id": ["x"], "title": ["File"], "first_title": ["File"]})
    items = pl.concat([pl.DataFrame(schema=SCHEMA), known.cast({"item_index": pl.UInt32})], how="diagonal")
    catalogue = Catalogue(items)
    columns = {"title": pl.String, "category": pl.String, "price": pl.Float64}
    catalogue.number(
        pl.DataFrame([("x", "Said", None, None, 9)], ["item_id", *columns, "timestamp_ms"], orient="row").cast(columns)
    )
    assert catalogue._said_of("title", "first_title", "first").row(0) == (1, "Said", 9)
    assert catalogue._said_of("title", "title", "last").row(0) == (1, "Said", 9)


def test_what_was_sent_back_counts_for_no_new_item(tmp_path: Path) -> None:
    rows = [f"u{n % 3},a,{S + n},buy,,1" for n in range(20)] + [
        f"u1,d,{S + 12},return,Dee,60",
        f"u2,d,{S + 12},buy,Dee,60",
    ]
    text = "user_id,item_id,timestamp,event_type,title,price\n" + "\n".join(rows) + "\n"
    build(tmp_path, text, min_count=5, split_quantile=0.95)
    data = dataset.load(tmp_path / "out", Protocol.TIME)
    assert data.split_ms is not None
    assert [(item.item_id, item.num_events, item.num_recent) for item in data.new_items(data.split_ms)] == [("d", 1, 1)]
