"""Summaries encoded in batch: which, in what order, within what budget, and from where a killed run goes on."""

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimize import summaries
from optimize.steps import Rules, Steps
from optimize.summaries import SummariesConfig
from recsys.runtime.stored_summaries import StoredSummaries
from recsys.windows import WindowConfig, digest

WINDOW = WindowConfig(size=10, overlap_share=0.3, num_summaries=2, summary_tokens=1)  # stride 7
LENGTHS = [10, 11, 40, 3, 17, 18, 25]
"""Closed windows that an answer may read: 0, 1, 2, 0, 1, 2, 2."""


class Users:
    """Histories of random items."""

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        self.lengths = np.array(LENGTHS)
        self._tokens = [generator.integers(1, 99, length).astype(np.int32) for length in LENGTHS]

    def __getitem__(self, user: int) -> np.ndarray:
        return self._tokens[user]

    def closed(self, user: int, *starts: int) -> list[np.ndarray]:
        return [self[user][start : start + 10] for start in starts]


class SumEngine:
    """A summary is the sum of its window's tokens. The process may be killed before it has made so many calls."""

    def __init__(self, killed_at: int | None = None) -> None:
        self.asked: list[int] = []
        self._killed_at = killed_at

    def summaries(self, closed: list[np.ndarray]) -> np.ndarray:
        if len(self.asked) == self._killed_at:
            raise KeyboardInterrupt
        self.asked.append(len(closed))
        return np.array([window.sum() for window in closed], dtype=np.float32).reshape(-1, 1, 1)


@pytest.fixture
def users() -> Users:
    return Users()


def built(users: Users, folder: Path, engine: SumEngine, releases: Path | None = None, **budget: Any) -> dict[str, Any]:
    steps = Steps(releases or folder, {"checkpoint": "0" * 64}, {"rounded": Rules(1, ()), "summaries": Rules(1, ())})
    steps.run("rounded", {}, lambda _: {})
    config = SummariesConfig(**budget)
    return summaries.build(engine, users, WINDOW, config, steps, {}, folder, lambda *_: None)  # type: ignore[arg-type]


def test_every_closed_window_of_those_with_most_events_is_found_by_its_digest(users: Users, tmp_path: Path) -> None:
    said = built(users, tmp_path, SumEngine(), max_users=3)
    assert (said["num_users"], said["num_windows"]) == (3, 6)
    stored = StoredSummaries.open(tmp_path)
    assert stored is not None
    # 40 events: windows [0, 10) … [28, 38), [35, 40); the two before the last one matter
    wanted = [*users.closed(2, 21, 28), *users.closed(6, 7, 14), *users.closed(5, 0, 7)]
    for window in wanted:
        found = stored.get(digest(window))
        assert found is not None
        assert found.shape == (1, 1)
        assert found[0, 0] == window.sum()
    for window in users.closed(2, 0, 7, 14) + users.closed(4, 0):
        assert stored.get(digest(window)) is None


def test_users_of_one_window_have_none(users: Users, tmp_path: Path) -> None:
    said = built(users, tmp_path, SumEngine())
    assert (said["num_users"], said["num_windows"]) == (5, 8)


def test_who_has_more_events_than_the_endpoint_reads_has_none(
    users: Users, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summaries, "HISTORY_CAP", 40)
    said = built(users, tmp_path, SumEngine(), max_users=2)
    assert (said["num_users"], said["num_windows"]) == (2, 4)


def test_nothing_is_written_without_a_budget(users: Users, tmp_path: Path) -> None:
    said = built(users, tmp_path, SumEngine(), max_users=0)
    assert (said["num_users"], said["num_windows"], said["bytes"]) == (0, 0, 0)
    assert StoredSummaries.open(tmp_path) is None


def test_time_runs_out_after_the_most_active(users: Users, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summaries, "_WINDOWS_OF_A_PART", 2)
    moments = iter(range(0, 10_000, 25))  # 25 s pass between two looks at the clock
    monkeypatch.setattr(summaries.time, "monotonic", lambda: float(next(moments)))
    said = built(users, tmp_path, SumEngine(), max_minutes=1)
    assert (said["num_windows"], said["num_users"]) == (4, 2)
    stored = StoredSummaries.open(tmp_path)
    assert stored is not None
    assert all(stored.get(digest(window)) is not None for window in users.closed(2, 21, 28) + users.closed(6, 7, 14))


def test_a_killed_run_goes_on_after_the_last_part(
    users: Users, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summaries, "_WINDOWS_OF_A_PART", 2)
    with pytest.raises(KeyboardInterrupt):
        built(users, tmp_path, SumEngine(killed_at=3), tmp_path / "releases")
    assert StoredSummaries.open(tmp_path) is None
    gc.collect()  # nothing holds the steps of a dead process
    engine = SumEngine()
    said = built(users, tmp_path, engine, tmp_path / "releases")
    assert (engine.asked, said["num_windows"]) == ([2], 8)
    gc.collect()
    engine = SumEngine()  # other windows are encoded again
    users[2][25] += 1
    built(users, tmp_path, engine, tmp_path / "releases")
    assert engine.asked == [2]


def test_windows_of_one_first_half_are_told_apart(tmp_path: Path) -> None:
    digests = ["00" * 8 + "11" * 8, "00" * 8 + "22" * 8, "ff" * 16]
    StoredSummaries.save(digests, np.arange(3, dtype=np.float32).reshape(3, 1, 1), tmp_path)
    stored = StoredSummaries.open(tmp_path)
    assert stored is not None
    assert [float(stored.get(name)[0, 0]) for name in digests] == [0, 1, 2]  # type: ignore[index]
    assert stored.get("00" * 8 + "33" * 8) is None
    assert stored.get("ff" * 8 + "00" * 8) is None
