"""Files of the log that change, or go away, while a run reads them."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from features import build, sources
from features.build import run
from features.formats import resolve
from recsys.contracts import artifact
from recsys.contracts.errors import DataError, RefusedError
from tests.features.test_crash import CONFIG, add_day
from tests.features.test_incremental import HEADER, NOW_MS, S, digest_from_the_files, digest_of


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A log of two days, and the artifact of the first."""
    add_day(tmp_path / "log", 1)
    run(CONFIG, [tmp_path / "log"], tmp_path / "out", now_ms=NOW_MS)
    add_day(tmp_path / "log", 2)
    return tmp_path


def append(file: Path) -> None:
    with file.open("a") as log:
        log.write(f"u1,i1,{S},view,,\n")


CHANGES: dict[str, Callable[[Path], object]] = {
    "it grows": append,
    "it is uploaded again": lambda file: file.write_text(HEADER),
    "it is exchanged": lambda file: os.utime(file, (1, 1)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("is_before", [True, False])
@pytest.mark.parametrize("full", [True, False])
def test_a_file_that_changes_while_it_is_read_is_refused_and_read_whole_when_it_stays(
    shop: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], object], is_before: bool, full: bool
) -> None:
    file, before = shop / "log" / "day-002.csv", (shop / "out" / "manifest.json").read_bytes()
    content, read = file.read_text(), sources.read

    def changing(path: Path, *others: Any) -> Iterator[Any]:
        for do in (change, None) if is_before else (None, change):
            if do is None:
                yield from read(path, *others)
            elif path == file:
                do(path)

    with monkeypatch.context() as patched, pytest.raises(RefusedError) as refused:
        patched.setattr(sources, "read", changing)
        run(CONFIG, [shop / "log"], shop / "out", full=full, now_ms=NOW_MS)
    assert f"{file}: changed while it was read, " in str(refused.value)
    assert "wait for the end of its upload, and run again" in str(refused.value)
    assert (shop / "out" / "manifest.json").read_bytes() == before
    file.write_text(content)  # the same file as the run that was refused found at first
    assert run(CONFIG, [shop / "log"], shop / "out", now_ms=NOW_MS).metrics["num_events"] == 600
    assert digest_from_the_files(shop / "out") == digest_of(artifact.read_manifest(shop / "out"))


def test_a_file_that_goes_away_before_it_is_read_is_said(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = build.plan

    def planned(*arguments: Any, **options: Any) -> Any:
        found = plan(*arguments, **options)
        (shop / "log" / "day-002.csv").unlink()
        return found

    monkeypatch.setattr(build, "plan", planned)
    with pytest.raises(DataError, match=r"day-002.csv: went away while the log was read; .* or run again without it"):
        run(CONFIG, [shop / "log"], shop / "out", now_ms=NOW_MS)
    monkeypatch.undo()
    assert run(CONFIG, [shop / "log"], shop / "out", now_ms=NOW_MS).metrics["up_to_date"]


def test_a_parquet_file_that_goes_away_while_it_is_read_is_said(tmp_path: Path) -> None:
    file = tmp_path / "day.parquet"
    pl.DataFrame({"user_id": ["a", "b"]}).write_parquet(file)
    parts = sources.read(file, resolve(CONFIG))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sources, "BATCH_ROWS", 1)
        next(parts)
        file.unlink()
        with pytest.raises(DataError, match=r"day.parquet: went away while the log was read; .* again without it$"):
            list(parts)
