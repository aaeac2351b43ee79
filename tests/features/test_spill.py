"""Events wait in memory as long as their bytes fit."""

from pathlib import Path

import polars as pl
import pytest

from features import spill
from features.spill import Spill


@pytest.mark.parametrize(("length", "is_on_disk"), [(8, False), (100, True)])
def test_longer_ids_go_to_the_disk_earlier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int, is_on_disk: bool
) -> None:
    monkeypatch.setattr(spill, "MAX_BYTES_IN_MEMORY", 50_000)
    waiting = Spill(tmp_path, 400)
    users = [f"{n:0{length}d}" for n in range(1_000)]
    for start in (0, 500):
        waiting.add(pl.DataFrame({"user_id": users[start : start + 500], "row": range(500)}), (start + 500) / 1_000)
    parts = waiting.partitions()
    first = next(parts)
    assert any(tmp_path.iterdir()) == is_on_disk
    assert sorted(pl.concat([first, *parts])["user_id"]) == users
    waiting.close()
