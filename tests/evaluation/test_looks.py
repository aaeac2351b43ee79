import fcntl
import os
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from recsys import dataset
from recsys.contracts.errors import DataError
from recsys.contracts.protocol import Protocol
from recsys.evaluation import looks
from recsys.evaluation.looks import Look
from tests.conftest import write_features

HISTORIES = {"a": [1, 2, 3, 1], "b": [2, 2, 1, 3]}


def look(test_set: str = "t") -> Look:
    return Look(
        at="2026-01-02T03:04:05+00:00", test_set=test_set, release="r", features="f", protocol=Protocol.TIME,
        metric="ndcg@10", value=0.25, against=None,
    )  # fmt: skip


def test_looks_at_the_same_test_set_are_counted_this_one_included(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    assert [looks.record(log, look(name)) for name in ("t", "t", "other", "t")] == [1, 2, 1, 3]
    assert looks.read(log) == [look(), look(), look("other"), look()]


def test_a_line_that_is_no_look_is_refused_and_nothing_is_appended(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    looks.record(log, look())
    log.write_text(log.read_text() + "{}\n")
    before = log.read_text()
    with pytest.raises(DataError, match=r"log.jsonl, line 2: at: field required; mend the line"):
        looks.record(log, look())
    assert log.read_text() == before


def digest(features: Path, protocol: Protocol = Protocol.TIME, split_ms: int | None = None) -> str:
    return looks.test_set_digest(dataset.load(features, protocol, split_ms=split_ms))


def test_the_same_histories_and_cut_are_the_same_test_set_however_often_they_are_built(tmp_path: Path) -> None:
    for name, split in (("one", 2), ("again", 2), ("later", 3)):
        write_features(tmp_path / name, HISTORIES, 3, split_ms=split)
    write_features(tmp_path / "more", {**HISTORIES, "c": [1, 1, 1]}, 3, split_ms=2)
    assert digest(tmp_path / "one") == digest(tmp_path / "again")
    others = [digest(tmp_path / "later"), digest(tmp_path / "more"), digest(tmp_path / "one", Protocol.LAST_OUT)]
    assert len({digest(tmp_path / "one"), *others}) == 4
    assert digest(tmp_path / "one", split_ms=3) == digest(tmp_path / "later")


def test_no_line_is_lost_of_several_who_write_at_a_time(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    with ProcessPoolExecutor(4, get_context("fork")) as pool:
        list(pool.map(looks.record, [log] * 100, [look(f"t{number}") for number in range(100)]))
    assert sorted(found.test_set for found in looks.read(log)) == sorted(f"t{number}" for number in range(100))


def test_nobody_sees_half_a_line_of_one_who_writes(tmp_path: Path) -> None:
    log, line = tmp_path / "log.jsonl", f"{look('other').model_dump_json()}\n".encode()
    looks.record(log, look("first"))
    with ThreadPoolExecutor(2) as pool, log.open("ab", buffering=0) as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        writer.write(line[:20])
        reading, recording = pool.submit(looks.read, log), pool.submit(looks.record, log, look("other"))
        time.sleep(0.2)  # both would be done by now
        assert (reading.done(), recording.done()) == (False, False)
        writer.write(line[20:])
        fcntl.flock(writer, fcntl.LOCK_UN)
        assert [found.test_set for found in reading.result(timeout=30)][:2] == ["first", "other"]
        assert recording.result(timeout=30) == 2


def test_a_line_is_written_in_one_piece_however_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, line: written.append(line) or write(descriptor, line))
    long = look("t" * 100_000)
    looks.record(tmp_path / "log.jsonl", long)
    assert written == [f"{long.model_dump_json()}\n".encode()]


def test_a_look_names_what_was_looked_at_and_when(tmp_path: Path) -> None:
    write_features(tmp_path / "features", HISTORIES, 3, split_ms=2)
    data = dataset.load(tmp_path / "features", Protocol.TIME)
    found = Look.now(data, "r", None, against="popularity")
    assert (found.release, found.value, found.metric, found.against) == ("r", None, "ndcg@10", "popularity")
    assert (found.features, found.test_set) == (data.manifest.digest, looks.test_set_digest(data))
    looks.record(tmp_path / "log.jsonl", found)
    assert looks.read(tmp_path / "log.jsonl") == [found]
