"""What others read of the features while the nightly job publishes: one artifact, never something between two."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from features.build import run
from recsys import dataset, event_table, whole_histories
from recsys.contracts import artifact
from recsys.contracts.errors import DamagedError, ReplacedError
from recsys.contracts.protocol import Protocol
from recsys.whole_histories import WholeHistories
from tests.features.test_crash import CONFIG, add_day
from tests.features.test_damage import flip
from tests.features.test_incremental import NOW_MS


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    for day in (1, 2):
        add_day(tmp_path / "log", day)
    run(CONFIG, [tmp_path / "log"], tmp_path / "out", now_ms=NOW_MS)
    return tmp_path


def publishing_before(shop: Path, function: Callable[..., Any], at_call: int = 1) -> Callable[..., Any]:
    """The function; a night is published before it is called for so many times."""
    num_calls = 0

    def called(*arguments: Any, **options: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        if num_calls == at_call:
            add_day(shop / "log", 3)
            run(CONFIG, [shop / "log"], shop / "out", now_ms=NOW_MS, full=True)
        return function(*arguments, **options)

    return called


@pytest.mark.parametrize(
    ("module", "name", "at_call"),
    [
        (artifact, "damage", 1),
        (artifact, "damage", 6),
        (pl, "read_parquet", 1),
        (event_table, "generations", 1),
        (event_table, "read_partition", 2),
        (dataset, "_kept", 1),
    ],
)
def test_features_that_are_published_while_others_are_loaded_are_loaded(
    shop: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, at_call: int
) -> None:
    assert dataset.load(shop / "out", Protocol.TIME).manifest.metrics["num_events"] == 600
    with monkeypatch.context() as patched:
        patched.setattr(module, name, publishing_before(shop, getattr(module, name), at_call))
        found = dataset.load(shop / "out", Protocol.TIME)
    expected = dataset.load(shop / "out", Protocol.TIME)
    assert found.manifest == expected.manifest
    assert found.manifest.metrics["num_events"] == 900
    assert found.split_ms == expected.split_ms == found.manifest.metrics["split_ms"]
    assert (found.fit.user_ids, found.fit.tokens.tolist()) == (expected.fit.user_ids, expected.fit.tokens.tolist())


def test_damage_that_is_met_while_features_are_loaded_is_still_damage(shop: Path) -> None:
    flip(max((shop / "out" / "histories").rglob("*.parquet")))
    with pytest.raises(DamagedError, match="altered, sha256"):
        dataset.load(shop / "out", Protocol.FINAL)


@pytest.mark.parametrize(
    ("name", "at_call"), [("generations", 1), ("read_partition", 1), ("read_partition", 2), ("pl.read_parquet", 2)]
)
def test_features_that_are_published_while_whole_histories_are_read_are_said(
    shop: Path, monkeypatch: pytest.MonkeyPatch, name: str, at_call: int
) -> None:
    def read() -> int:
        histories = WholeHistories(shop / "out")
        return len(histories.item_ids()) + sum(len(history) for _, history in histories.each())

    assert read() == 629
    with monkeypatch.context() as patched:
        owner: Any = pl if name.startswith("pl.") else whole_histories
        last = name.removeprefix("pl.")
        patched.setattr(owner, last, publishing_before(shop, getattr(owner, last), at_call))
        with pytest.raises(ReplacedError, match="out: another run has published here while this was read; run again"):
            read()
    assert read() == 929
