"""Night after night gives what one rebuild gives, and touches only what it has to."""

import datetime
import gzip
import json
import random
from pathlib import Path
from typing import Any
from unittest import mock

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features import digest, forget, spill
from features.build import FeaturesConfig, run
from features.numbering import CONTENT_HASH
from features.totals import Totals
from recsys import dataset
from recsys.contracts import artifact
from recsys.contracts.artifact import Manifest
from recsys.contracts.errors import ArtifactError, DataError
from recsys.contracts.ids import Vocabulary
from recsys.contracts.protocol import Protocol
from recsys.event_table import source_rank
from recsys.histories import bucket_of_user, generations, read_partition
from recsys.pipeline.tables import features_summary
from tests.features.test_build import histories_of
from tests.features.test_real_logs import REAL_DATA

S = 1_600_000_000
DAY = 86_400
NOW_MS = (S + 400 * DAY) * 1000
HEADER = "user_id,item_id,timestamp,event_type,title,event_id\n"
Row = tuple[int, int, int, str, str, int]


def digest_of(manifest: Manifest) -> str:
    return str(manifest.metrics["content_digest"])


def digest_from_the_files(place: Path) -> str:
    """The content digest computed anew from what is stored, partition by partition."""
    manifest = artifact.verify(place, "features")
    items, users = (pl.read_parquet(place / f"{name}.parquet", glob=False) for name in ("items", "users"))
    names = [entry["name"] for entry in manifest.metrics["source_files"]]
    users = users.with_columns(
        pl.Series(CONTENT_HASH, digest.string_hashes(users["user_id"], "user"))
    )  # not those kept
    totals = Totals(items["item_id"], manifest.metrics["event_types"], names)
    layout = generations(place)
    most = max(generation.num_partitions for generation in layout)
    bucket, rank = bucket_of_user(users), source_rank(manifest)
    for number in range(most):
        totals.add(read_partition(place, layout, number, most, bucket, rank), users)
    counted = items["num_events_by_type"].list.sum()
    assert counted.to_list() == totals.by_type.sum(axis=1)[1:].tolist() == items["num_events"].to_list()
    assert dict(users.select("user_index", "num_events").rows()) == dict(totals.users().rows())
    return digest.content_digest(totals.content_sum, items)


def views(place: Path) -> list[Any]:
    """What training reads, by the shop's ids."""
    found = []
    for protocol in (Protocol.LAST_OUT, Protocol.FINAL):
        data = dataset.load(place, protocol, min_count=1)
        names = [item.item_id for item in data.vocabulary.items]
        kinds = data.manifest.metrics["event_types"]
        assert data.fit.event_types is not None
        events = zip(data.fit.tokens, data.fit.timestamps_ms, data.fit.event_types, strict=True)
        found.append(
            (data.fit.user_ids, data.fit.offsets.tolist(), [(names[i - 1], int(t), kinds[k]) for i, t, k in events])
        )
    return found


rows = st.tuples(
    st.integers(0, 5),  # user
    st.integers(0, 6),  # item
    st.integers(-30, 3),  # hours before the end of the day: late events, and ties
    st.sampled_from(["view", "cart", "purchase", ""]),
    st.sampled_from(["", "", "red", "blue"]),
    st.sampled_from([0, 0, 1, 2, 3]),  # event id, 0 for none
)


def line(day: int, row: Row) -> str:
    user, item, hour, kind, title, event_id = row
    return f"u{user},i{item},{S + day * DAY + hour * 3600},{kind},{title},{f'e{event_id}' if event_id else ''}\n"


def write_day(folder: Path, day: int, content: list[Row], name: str | None = None) -> None:
    folder.mkdir(exist_ok=True)
    (folder / (name or f"day-{day:03d}.csv")).write_text(HEADER + "".join(line(day, row) for row in content))


@settings(max_examples=25, deadline=None)
@given(
    days=st.lists(st.lists(rows, min_size=1, max_size=8), min_size=1, max_size=6),
    cuts=st.sets(st.integers(1, 5)),
    drop_copies=st.booleans(),
    events_per_partition=st.sampled_from([1, 3, 1000]),
    most_in_memory=st.sampled_from([0, 5, 1000]),
)
def test_a_log_cut_at_any_days_gives_what_a_rebuild_gives(
    tmp_path_factory: pytest.TempPathFactory,
    days: list[list[Row]],
    cuts: set[int],
    drop_copies: bool,
    events_per_partition: int,
    most_in_memory: int,
) -> None:
    place = tmp_path_factory.mktemp("log")
    config = FeaturesConfig(min_count=1, drop_copies=drop_copies, events_per_partition=events_per_partition)
    with mock.patch.object(spill, "MAX_BYTES_IN_MEMORY", 40 * most_in_memory):
        for day, content in enumerate(days):
            write_day(place / "log", day, content)
            if day + 1 in cuts or day + 1 == len(days):
                nightly = run(config, [place / "log"], place / "nightly", now_ms=NOW_MS)
    rebuilt = run(config, [place / "log"], place / "rebuilt", now_ms=NOW_MS)
    assert digest_of(nightly) == digest_of(rebuilt) == digest_from_the_files(place / "nightly")
    assert digest_from_the_files(place / "rebuilt") == digest_of(rebuilt)
    assert views(place / "nightly") == views(place / "rebuilt")
    same = ("num_rows_read", "num_events", "num_users", "excluded", "quarantined", "split_ms", "first_ms", "last_ms")
    assert {key: nightly.metrics[key] for key in same} == {key: rebuilt.metrics[key] for key in same}
    kept = run(config, [place / "log"], place / "nightly", full=True, now_ms=NOW_MS)
    assert digest_of(kept) == digest_of(nightly)


invoices = st.tuples(
    st.sampled_from(["17850", "17850.0", "13047", ""]),  # user, none for a guest
    st.sampled_from(["71053", "85123a", "22752", "POST"]),
    st.integers(-30, 3),  # hours before the end of the day
    st.sampled_from(["", "", "C"]),  # a cancellation by its number
    st.sampled_from(["6", "1", "1", "0", "-2"]),  # or by its quantity
)


def invoice_line(day: int, number: int, row: tuple[str, str, int, str, str]) -> str:
    user, item, hour, cancelled, quantity = row
    return f"{cancelled}{day}{number},{item},LANTERN {hour},{quantity},{S + day * DAY + hour * 3600},2.55,{user}\n"


@settings(max_examples=15, deadline=None)
@given(
    days=st.lists(st.lists(invoices, min_size=1, max_size=8), min_size=1, max_size=5),
    cuts=st.sets(st.integers(1, 4)),
    format_name=st.sampled_from(["online-retail", "online-retail-returns"]),
    order=st.randoms(),
)
def test_cancellations_cut_at_any_days_give_what_a_rebuild_gives(
    tmp_path_factory: pytest.TempPathFactory,
    days: list[list[tuple[str, str, int, str, str]]],
    cuts: set[int],
    format_name: str,
    order: random.Random,
) -> None:
    place = tmp_path_factory.mktemp("log")
    log = place / "log"
    log.mkdir()
    header = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID\n"
    sale = invoice_line(0, 9, ("17850", "71053", 0, "", "1"))  # so that there is an event from the first night on
    config = FeaturesConfig(format=format_name, min_count=1)
    arrival = list(enumerate(days))
    order.shuffle(arrival)
    for night, (day, content) in enumerate(arrival, start=1):
        lines = "".join(invoice_line(day, number, row) for number, row in enumerate(content))
        (log / f"{day}.csv").write_text(header + sale + lines)
        if night in cuts or night == len(days):
            nightly = run(config, [log], place / "nightly", now_ms=NOW_MS)
    rebuilt = run(config, [log], place / "rebuilt", now_ms=NOW_MS)
    assert digest_of(nightly) == digest_of(rebuilt) == digest_from_the_files(place / "nightly")
    assert views(place / "nightly") == views(place / "rebuilt")
    same = ("num_rows_read", "num_events", "num_users", "excluded", "quarantined", "split_ms")
    assert {key: nightly.metrics[key] for key in same} == {key: rebuilt.metrics[key] for key in same}
    returned = sum(bool(user) and item != "POST" and (cancelled == "C" or int(quantity) <= 0)
                   for content in days for user, item, _, cancelled, quantity in content)  # fmt: skip
    kinds = dict(zip(nightly.metrics["event_types"], counts_of_types(place / "nightly"), strict=True))
    assert kinds.get("return", 0) == (returned if format_name.endswith("returns") else 0)


def counts_of_types(place: Path) -> list[int]:
    counts = pl.read_parquet(place / "items.parquet")["num_events_by_type"].to_list()
    return [sum(by_type) for by_type in zip(*counts, strict=True)]


@settings(max_examples=15, deadline=None)
@given(days=st.lists(st.lists(rows, min_size=1, max_size=6), min_size=2, max_size=5), order=st.randoms())
def test_files_that_arrive_in_any_order_give_the_same(
    tmp_path_factory: pytest.TempPathFactory, days: list[list[Row]], order: random.Random
) -> None:
    place = tmp_path_factory.mktemp("log")
    config = FeaturesConfig(min_count=1, drop_copies=True)
    arrival = list(enumerate(days))
    order.shuffle(arrival)
    for day, content in arrival:
        write_day(place / "log", day, content)
        nightly = run(config, [place / "log"], place / "nightly", now_ms=NOW_MS)
    rebuilt = run(config, [place / "log"], place / "rebuilt", now_ms=NOW_MS)
    assert digest_of(nightly) == digest_of(rebuilt) == digest_from_the_files(place / "nightly")
    assert views(place / "nightly") == views(place / "rebuilt")


def a_shop(place: Path, num_days: int = 3) -> FeaturesConfig:
    """Three quiet days, built night by night."""
    config = FeaturesConfig(min_count=2)
    for day in range(num_days):
        write_day(place / "log", day, [(u, (u + day) % 4, 0, "view", "", 0) for u in range(6)] * 4)
        run(config, [place / "log"], place / "out", now_ms=NOW_MS)
    return config


def test_nothing_new_leaves_the_artifact_as_it_is(tmp_path: Path) -> None:
    config = a_shop(tmp_path)
    before = (tmp_path / "out").stat().st_ino
    (tmp_path / "log" / "day-000.csv").touch()  # another time, the same content
    published = artifact.read_manifest(tmp_path / "out")
    (tmp_path / ".out.lock").write_text("process 7")
    found = run(config, [tmp_path / "log"], tmp_path / "out", now_ms=NOW_MS)
    assert (tmp_path / "out").stat().st_ino == before
    assert (published.metrics["up_to_date"], found.metrics["up_to_date"]) == (False, True)
    assert found.metrics["tonight"] == {"num_files": 0, "num_events": 0}
    assert found.metrics["died_before"].startswith("process 7 ended without finishing")
    said = features_summary(found, tmp_path / "out")
    assert f"\ntonight: nothing new; the artifact of {published.created_at} stays\n" in said
    assert "added" not in said


def test_an_item_that_crosses_the_threshold_rewrites_no_history(tmp_path: Path) -> None:
    config = a_shop(tmp_path, 5)  # generations of 4 days and of 1
    write_day(tmp_path / "log", 5, [(0, 6, 0, "view", "", 0)])
    run(config, [tmp_path / "log"], tmp_path / "out", now_ms=NOW_MS)
    items = pl.read_parquet(tmp_path / "out" / "items.parquet")
    assert items.filter(item_id="i6")["kept"].to_list() == [False]
    inodes = {p.name: p.stat().st_ino for p in (tmp_path / "out").glob("histories/*/*")}
    files = {str(p.relative_to(tmp_path)): p.stat().st_ino for p in (tmp_path / "out").glob("histories/*/*")}
    write_day(tmp_path / "log", 6, [(1, 6, 0, "view", "", 0)])
    run(config, [tmp_path / "log"], tmp_path / "out", now_ms=NOW_MS)
    items = pl.read_parquet(tmp_path / "out" / "items.parquet")
    assert items.filter(item_id="i6")["kept"].to_list() == [True]
    kept = {str(p.relative_to(tmp_path)): p.stat().st_ino for p in (tmp_path / "out").glob("histories/*/*")}
    assert inodes
    assert "out/histories/g00006/part-00000.parquet" in files
    assert files["out/histories/g00006/part-00000.parquet"] == kept["out/histories/g00006/part-00000.parquet"]


def test_only_new_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = a_shop(tmp_path)
    write_day(tmp_path / "log", 3, [(0, 0, 0, "view", "", 0)])
    read: list[str] = []
    from features import sources

    original = sources.read
    monkeypatch.setattr(sources, "read", lambda path, layout: (read.append(path.name), original(path, layout))[1])
    manifest = run(config, [tmp_path / "log"], tmp_path / "out", now_ms=NOW_MS)
    assert read == ["day-003.csv"]
    assert (manifest.metrics["why_full"], manifest.metrics["tonight"]) == (None, {"num_files": 1, "num_events": 1})


def test_a_night_may_be_given_its_new_file_alone(tmp_path: Path) -> None:
    config = a_shop(tmp_path)
    write_day(tmp_path / "log", 3, [(0, 0, 0, "view", "", 0)])
    alone = run(config, [tmp_path / "log" / "day-003.csv"], tmp_path / "out", now_ms=NOW_MS)
    whole = run(config, [tmp_path / "log"], tmp_path / "whole", now_ms=NOW_MS)
    assert digest_of(alone) == digest_of(whole)
    assert alone.metrics["absent_files"] == 3


def test_a_copied_or_renamed_file_is_not_read_twice(tmp_path: Path) -> None:
    config = a_shop(tmp_path)
    events = artifact.read_manifest(tmp_path / "out").metrics["num_events"]
    (tmp_path / "log" / "zz.csv").write_bytes((tmp_path / "log" / "day-001.csv").read_bytes())
    manifest = run(config, [tmp_path / "log"], tmp_path / "out", now_ms=NOW_MS)
    assert manifest.metrics["num_events"] == events
    assert manifest.metrics["source_files"][-1]["copy_of"] == "day-001.csv"


def test_a_log_that_was_read_and_compressed_since_is_not_read_twice(tmp_path: Path) -> None:
    config = a_shop(tmp_path)
    events = artifact.read_manifest(tmp_path / "out").metrics["num_events"]
    rotated = tmp_path / "log" / "day-001.csv"
    rotated.with_name("day-001.csv.gz").write_bytes(gzip.compress(rotated.read_bytes()))
    rotated.unlink()
    write_day(tmp_path / "log", 3, [(0, 0, 0, "view", "", 0)])
    manifest = run(config, [tmp_path / "log"], tmp_path / "out", now_ms=NOW_MS)
    assert manifest.metrics["num_events"] == events + 1
    copies = {entry["name"]: entry.get("copy_of") for entry in manifest.metrics["source_files"]}
    assert copies["day-001.csv.gz"] == "day-001.csv"
    assert digest_from_the_files(tmp_path / "out") == digest_of(manifest)


def rotate(file: Path, name: str) -> None:
    """Compress a file, or rename it."""
    content = file.read_bytes()
    file.unlink()
    file.with_name(name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)


@pytest.mark.parametrize("name", ["day-000.csv.gz", "zz.csv", "aa.csv"])
@pytest.mark.parametrize("night_before", [True, False])
def test_a_rotated_file_is_not_missing_in_a_rebuild(tmp_path: Path, name: str, night_before: bool) -> None:
    config = a_shop(tmp_path)
    log, out = tmp_path / "log", tmp_path / "out"
    rotate(log / "day-000.csv", name)
    if night_before:
        manifest = run(config, [log], out, now_ms=NOW_MS)
        assert (manifest.metrics["why_full"], manifest.metrics["absent_files"]) == (None, 0)
    with (log / "day-001.csv").open("a") as file:
        file.write((log / "day-001.csv").read_text().splitlines()[-1] + "\n")
    rebuilt = run(config, [log], out, now_ms=NOW_MS)
    assert rebuilt.metrics["why_full"] == "day-001.csv changed since it was read"
    asked = run(config, [log], out, full=True, now_ms=NOW_MS)
    assert [e["name"] for e in asked.metrics["source_files"]] == sorted(path.name for path in log.iterdir())
    assert digest_of(asked) == digest_of(rebuilt) == digest_of(run(config, [log], tmp_path / "other", now_ms=NOW_MS))
    with pytest.raises(DataError, match=r"1 files read before are missing, such as 'day-002\.csv', and no file has"):
        (log / "day-002.csv").unlink()
        run(config, [log], out, full=True, now_ms=NOW_MS)


def test_a_file_without_rows_may_go_away_before_a_rebuild(tmp_path: Path) -> None:
    config, log, out = a_shop(tmp_path), tmp_path / "log", tmp_path / "out"
    write_day(log, 3, [])
    run(config, [log], out, now_ms=NOW_MS)
    (log / "day-003.csv").unlink()
    write_day(log, 4, [(0, 0, 0, "view", "", 0)])
    assert run(config, [log], out, now_ms=NOW_MS).metrics["absent_files"] == 0
    rebuilt = run(config, [log], out, full=True, now_ms=NOW_MS)
    assert digest_of(rebuilt) == digest_of(run(config, [log], tmp_path / "other", now_ms=NOW_MS))


def test_a_late_file_with_originals_is_named(tmp_path: Path) -> None:
    config, log, out = FeaturesConfig(min_count=1), tmp_path / "log", tmp_path / "out"
    for day in (1, 3, 5):
        write_day(log, day, [(0, day, 0, "view", "", 0), (day, 1, 0, "view", "", 7)])
    run(config, [log], out, now_ms=NOW_MS)
    write_day(log, 2, [(0, 2, 0, "view", "", 7)])
    write_day(log, 4, [(5, 2, 0, "view", "", 7), (4, 2, 0, "view", "", 7)])
    rotate(log / "day-001.csv", "day-001.csv.gz")
    manifest = run(config, [log], out, now_ms=NOW_MS)
    assert manifest.metrics["why_full"] == "day-004.csv has the original of an event that was read before"
    write_day(log, 0, [(3, 2, 0, "view", "", 7)])
    (log / "day-005.csv").unlink()
    with pytest.raises(DataError, match=r"needed .day-000.csv has the original .* such as 'day-005.csv'"):
        run(config, [log], out, now_ms=NOW_MS)


def test_a_copy_that_comes_before_its_original_gives_what_a_rebuild_gives(tmp_path: Path) -> None:
    config = a_shop(tmp_path)
    (tmp_path / "log" / "aa.csv").write_bytes((tmp_path / "log" / "day-001.csv").read_bytes())
    manifest = run(config, [tmp_path / "log"], tmp_path / "out", now_ms=NOW_MS)
    assert "a copy of a file comes before it" in manifest.metrics["why_full"]
    assert digest_of(manifest) == digest_of(run(config, [tmp_path / "log"], tmp_path / "other", now_ms=NOW_MS))
    again = run(config, [tmp_path / "log"], tmp_path / "out", now_ms=NOW_MS)
    assert again.metrics["up_to_date"]


def test_a_file_that_changed_leads_to_a_full_rebuild_that_says_so(tmp_path: Path) -> None:
    config = a_shop(tmp_path)
    write_day(tmp_path / "log", 1, [(0, 0, 0, "view", "", 0)] * 3)
    manifest = run(config, [tmp_path / "log"], tmp_path / "out", now_ms=NOW_MS)
    assert manifest.metrics["why_full"] == "day-001.csv changed since it was read"
    assert digest_of(manifest) == digest_of(run(config, [tmp_path / "log"], tmp_path / "other", now_ms=NOW_MS))


def test_a_full_rebuild_that_would_lose_events_is_refused(tmp_path: Path) -> None:
    config = a_shop(tmp_path)
    (tmp_path / "log" / "day-000.csv").unlink()
    with pytest.raises(
        DataError, match=r"full rebuild is needed \(asked for\) but 1 files read before are missing"
    ) as refused:
        run(config, [tmp_path / "log"], tmp_path / "out", full=True, now_ms=NOW_MS)
    out = tmp_path / "out"
    assert f"do without: `cp {out}/forgotten.json {out}.forgotten.json && mv {out} {out}.old`" in str(refused.value)


def test_a_reading_setting_that_changes_rebuilds_and_a_pruning_setting_does_not(tmp_path: Path) -> None:
    config = a_shop(tmp_path)
    again = run(config.model_copy(update={"min_count": 9}), [tmp_path / "log"], tmp_path / "out", now_ms=NOW_MS)
    assert (again.metrics["why_full"], again.config["min_count"]) == (None, 9)
    again = run(config.model_copy(update={"drop_copies": True}), [tmp_path / "log"], tmp_path / "out", now_ms=NOW_MS)
    assert again.metrics["why_full"] == "drop_copies changed"


def read_by_older_rules(place: Path) -> None:
    """Make an artifact as a program wrote it that read values of typed files otherwise."""
    metrics = artifact.read_manifest(place).metrics
    write_metrics(place, metrics | {"fingerprint": metrics["fingerprint"] | {"reading_rules": 1}})


def write_metrics(place: Path, metrics: dict[str, Any]) -> None:
    manifest = artifact.read_manifest(place)
    with artifact.writing(place, "features") as writer:
        for name, entry in manifest.files.items():
            writer.link(place, name, entry)
        writer.commit(parents={}, config=manifest.config, metrics=metrics)


def test_an_artifact_of_a_program_that_noted_less_about_files_is_read_on(tmp_path: Path) -> None:
    config, log, out = a_shop(tmp_path), tmp_path / "log", tmp_path / "out"
    (log / "day-001b.csv").write_text(f"user_id,item_id,timestamp\nu1,i1,{S}")
    metrics = run(config, [log], out, now_ms=NOW_MS, full=True).metrics
    del metrics["optional_fields"], metrics["passed_over"], metrics["pruning"]["min_count"], metrics["linked"]
    entries = [{k: v for k, v in e.items() if k not in ("open_end", "lacks")} for e in metrics["source_files"]]
    fields = ["item_id", "timestamp", "user_id"]  # what all files had
    write_metrics(out, metrics | {"fields": fields, "source_files": entries})
    assert "events" in features_summary(run(config, [log], out, now_ms=NOW_MS), out)
    (log / "day-003.csv").write_text(f"user_id,item_id,timestamp\nu1,i1,{S + 1}")
    manifest = run(config, [log], out, now_ms=NOW_MS)
    assert (manifest.metrics["why_full"], manifest.metrics["tonight"]["num_events"]) == (None, 1)


@pytest.mark.parametrize("column", ["user_id", "item_id", "event_type", "title", "category", "event_id"])
def test_other_rules_for_typed_files_lead_to_one_rebuild(tmp_path: Path, column: str) -> None:
    (tmp_path / "log").mkdir()
    rows = pl.DataFrame({"user_id": ["u"], "item_id": ["i"], "timestamp": [S]}).with_columns(
        pl.lit("1.0").alias(column)
    )
    rows.write_parquet(tmp_path / "log" / "a.parquet")
    config, out = FeaturesConfig(min_count=1), tmp_path / "out"
    run(config, [tmp_path / "log"], out, now_ms=NOW_MS)
    read_by_older_rules(out)
    forget.from_artifact(out, ["somebody"])  # reads nothing: what is there is as it was read
    assert run(config, [tmp_path / "log"], out, now_ms=NOW_MS).metrics["why_full"] == "reading_rules changed"
    rows.with_columns(timestamp=S + 1).write_parquet(tmp_path / "log" / "b.parquet")
    assert run(config, [tmp_path / "log"], out, now_ms=NOW_MS).metrics["why_full"] is None


def test_other_rules_for_typed_files_rebuild_nothing_where_no_id_is_a_float(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    rows = pl.DataFrame({"user_id": ["1.0.0"], "item_id": [10], "title": ["Type 1.0"], "timestamp": [S]})
    rows.write_parquet(tmp_path / "log" / "a.parquet")
    config, out = FeaturesConfig(min_count=1), tmp_path / "out"
    run(config, [tmp_path / "log"], out, now_ms=NOW_MS)
    read_by_older_rules(out)
    (tmp_path / "log" / "a.parquet").unlink()  # rotated away: a rebuild would be refused
    rows.with_columns(timestamp=S + 1).write_parquet(tmp_path / "log" / "b.parquet")
    manifest = run(config, [tmp_path / "log"], out, now_ms=NOW_MS)
    assert (manifest.metrics["why_full"], manifest.metrics["num_events"]) == (None, 2)
    assert manifest.metrics["fingerprint"]["reading_rules"] == 2


def test_other_rules_for_typed_files_leave_a_log_of_texts_alone(tmp_path: Path) -> None:
    config = a_shop(tmp_path)
    write_day(tmp_path / "log", 3, [(0, 0, 0, "1.0", "", 0)])
    run(config, [tmp_path / "log"], tmp_path / "out", now_ms=NOW_MS)
    read_by_older_rules(tmp_path / "out")
    write_day(tmp_path / "log", 4, [(0, 0, 0, "view", "", 0)])
    assert run(config, [tmp_path / "log"], tmp_path / "out", now_ms=NOW_MS).metrics["why_full"] is None


def test_an_item_keeps_its_number_through_rebuilds_unless_renumbered(tmp_path: Path) -> None:
    def numbers(place: str) -> dict[str, int]:
        return dict(pl.read_parquet(tmp_path / place / "items.parquet").select("item_id", "item_index").rows())

    config = a_shop(tmp_path)
    first = numbers("out")
    write_day(tmp_path / "log", -1, [(0, 5, 0, "view", "", 0)] * 3, "day--01.csv")  # sorts before all, new item
    run(config, [tmp_path / "log"], tmp_path / "out", now_ms=NOW_MS)
    assert numbers("out") == first | {"i5": 5}
    run(config, [tmp_path / "log"], tmp_path / "out", full=True, now_ms=NOW_MS)
    assert numbers("out") == first | {"i5": 5}
    write_day(tmp_path / "log", -1, [(0, 4, 0, "view", "", 0)] * 3, "day--01.csv")  # i5 is gone
    again = run(config, [tmp_path / "log"], tmp_path / "out", now_ms=NOW_MS)
    assert numbers("out") == first | {"i5": 5, "i4": 6}
    fresh = run(config, [tmp_path / "log"], tmp_path / "fresh", now_ms=NOW_MS)
    assert digest_of(again) == digest_of(fresh)
    renumbered = run(config, [tmp_path / "log"], tmp_path / "out", renumber=True, now_ms=NOW_MS)
    assert numbers("out") == numbers("fresh") != first | {"i5": 5, "i4": 6}
    assert digest_of(renumbered) == digest_of(fresh)


def test_an_event_type_keeps_its_number_through_rebuilds_unless_renumbered(tmp_path: Path) -> None:
    config, log, out = FeaturesConfig(min_count=1), tmp_path / "log", tmp_path / "out"
    write_day(log, 1, [(0, 0, 0, "view", "", 0), (0, 1, 0, "cart", "", 0)])
    run(config, [log], out, now_ms=NOW_MS)
    write_day(log, 0, [(0, 2, 0, "cart", "", 0), (0, 3, 0, "purchase", "", 0)])  # sorts before the other
    nightly = run(config, [log], out, now_ms=NOW_MS)
    full = run(config, [log], out, full=True, now_ms=NOW_MS)
    assert full.metrics["event_types"] == nightly.metrics["event_types"] == ["view", "cart", "purchase"]
    assert digest_of(full) == digest_of(nightly) == digest_from_the_files(out)
    write_day(log, 1, [(0, 1, 0, "cart", "", 0)])  # no view is left
    kept = run(config, [log], out, now_ms=NOW_MS)
    assert kept.metrics["event_types"] == ["view", "cart", "purchase"]
    renumbered = run(config, [log], out, renumber=True, now_ms=NOW_MS)
    assert renumbered.metrics["event_types"] == ["cart", "purchase"]
    assert digest_of(renumbered) == digest_of(kept) == digest_from_the_files(out)


def test_yesterdays_vocabulary_reads_todays_histories(tmp_path: Path) -> None:
    config = a_shop(tmp_path)
    yesterday = dataset.load(tmp_path / "out", Protocol.FINAL)
    write_day(tmp_path / "log", 3, [(0, 6, 0, "view", "", 0)] * 5 + [(0, 1, 0, "view", "", 0)])
    run(config, [tmp_path / "log"], tmp_path / "out", now_ms=NOW_MS)
    today = dataset.load(tmp_path / "out", Protocol.FINAL, vocabulary=yesterday.vocabulary)
    assert today.vocabulary is yesterday.vocabulary
    assert today.fit[0].tolist() == [*yesterday.fit[0].tolist(), yesterday.vocabulary.tokens(["i1"])[0]]  # i6: unknown
    other = Vocabulary(
        yesterday.vocabulary.items[1:] + dataset.load(tmp_path / "out", Protocol.FINAL).vocabulary.items[-1:]
    )
    wrong = Vocabulary([item.__class__(item_id="x", item_index=1, num_events=1) for item in other.items[:1]])
    with pytest.raises(ArtifactError, match="item 1 is not 'x' as in the vocabulary given"):
        dataset.load(tmp_path / "out", Protocol.FINAL, vocabulary=wrong)


def test_one_event_id_counts_once_even_over_nights(tmp_path: Path) -> None:
    config = FeaturesConfig(min_count=1)
    write_day(tmp_path / "log", 0, [(0, 0, 0, "view", "", 1), (0, 1, 1, "view", "", 1), (1, 1, 1, "view", "", 1)])
    run(config, [tmp_path / "log"], tmp_path / "out", now_ms=NOW_MS)
    write_day(tmp_path / "log", 1, [(0, 2, 0, "view", "", 1), (0, 3, 0, "view", "", 2)])
    manifest = run(config, [tmp_path / "log"], tmp_path / "out", now_ms=NOW_MS)
    found = {user: [item for item, _, _ in events] for user, events in histories_of(tmp_path / "out").items()}
    assert found == {"u0": ["i0", "i3"], "u1": ["i1"]}
    assert manifest.metrics["excluded"] == {"duplicate": 2}


def test_copies_across_files_are_left_out_when_asked_and_repeats_within_one_are_kept(tmp_path: Path) -> None:
    same: Row = (0, 0, 0, "view", "", 0)
    write_day(tmp_path / "log", 1, [same, same])
    write_day(tmp_path / "log", 1, [same, (0, 1, 0, "view", "", 0)], "day-001-again.csv")
    kept = run(FeaturesConfig(min_count=1), [tmp_path / "log"], tmp_path / "all", now_ms=NOW_MS)
    asked = run(FeaturesConfig(min_count=1, drop_copies=True), [tmp_path / "log"], tmp_path / "out", now_ms=NOW_MS)
    assert (kept.metrics["num_events"], asked.metrics["num_events"]) == (4, 2)
    # "-again" sorts before ".csv", so its one row is the original and both of the other file are copies
    assert asked.metrics["excluded"] == {"duplicate": 2}


@pytest.mark.slow
@pytest.mark.skipif(not REAL_DATA.exists(), reason="the public logs are not beside the checkout")
def test_online_retail_day_by_day_equals_rebuilds(tmp_path: Path) -> None:
    config = FeaturesConfig(format="online-retail")
    days = sorted((REAL_DATA / "online_retail").glob("*.csv*"))
    assert len(days) == 305
    (tmp_path / "log").mkdir()
    for night, day in enumerate(days, start=1):
        (tmp_path / "log" / day.name).write_bytes(day.read_bytes())
        nightly = run(config, [tmp_path / "log"], tmp_path / "out")
        if night % 10 == 0 or night > 295:
            rebuilt = run(config, [tmp_path / "log"], tmp_path / f"full-{night}")
            assert digest_of(nightly) == digest_of(rebuilt), day.name
            assert digest_from_the_files(tmp_path / "out") == digest_of(nightly)
    assert nightly.metrics["num_events"] == rebuilt.metrics["num_events"]


def test_the_manifest_is_plain_json_with_the_day_of_each_item(tmp_path: Path) -> None:
    a_shop(tmp_path)
    json.loads((tmp_path / "out" / "manifest.json").read_text())
    items = pl.read_parquet(tmp_path / "out" / "items.parquet")
    first = datetime.datetime.fromtimestamp(items["first_ms"][0] / 1000, datetime.UTC)
    assert first == datetime.datetime.fromtimestamp(S, datetime.UTC)
