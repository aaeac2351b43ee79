"""The case's accuracy by cause: histories encoded whole, and by sessions that grew event by event."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from optimize.report import relative_error
from recsys.contracts.ids import Tokens
from recsys.model.checkpoint import Checkpoint
from recsys.model.reference import encode
from recsys.pipeline import case_answers, case_benchmark, case_sessions
from recsys.runtime.engine import Session
from recsys.runtime.fusion import Fusion
from recsys.runtime.recommender import Recommender
from recsys.runtime.release import Release
from recsys.windows import WindowConfig, answer_context

WINDOW = WindowConfig(size=8, overlap_share=0.25)  # windows of 8 events that share 2


@pytest.mark.parametrize(
    ("num_events", "opened_with"),
    [(1, 1), (8, 1), (9, 9), (12, 9), (14, 9), (15, 15)],  # the second window opens with the 9th event, of it 3
)
def test_a_window_opens_with_the_first_event_that_does_not_fit_before(num_events: int, opened_with: int) -> None:
    assert case_sessions.opened_with(num_events, WINDOW) == opened_with


class SumEngine:
    """A user vector is the sum of the events that a session was given; notes how many came as appends."""

    info = SimpleNamespace(width=1)

    def __init__(self) -> None:
        self.opened: list[int] = []
        self.num_appended = 0

    def open(self, windows: Sequence[Tokens]) -> list[Session]:
        self.opened += [len(window) for window in windows]
        return [Session(np.array([window.sum()], dtype=np.float32), len(window), 0, None) for window in windows]

    def append(self, sessions: Sequence[Session], events: Sequence[Tokens]) -> list[Session]:
        assert all(len(new) == 1 for new in events)
        self.num_appended += len(events)
        return [
            replace(session, vector_D=session.vector_D + new.sum(), length=session.length + 1)
            for session, new in zip(sessions, events, strict=True)
        ]


@pytest.mark.parametrize("together", [2, 64])
def test_sessions_grow_event_by_event_since_their_window_opened(together: int, monkeypatch) -> None:
    monkeypatch.setattr(case_sessions, "_TOGETHER", together)
    lengths = [12, 1, 8, 9, 20]
    histories = [np.random.default_rng(n).integers(1, 99, n).astype(np.int32) for n in lengths]
    engine: Any = SumEngine()
    release: Any = SimpleNamespace(engine=engine, window=WINDOW)
    found = case_sessions.grown(release, histories)
    assert found[:, 0].tolist() == [answer_context(history, WINDOW).sum() for history in histories]
    assert sorted(engine.opened) == [1, 1, 3, 3, 3]
    assert engine.num_appended == 3 + 0 + 7 + 0 + 5


def test_each_way_encodes_the_events_it_names(ring_releases: Path, ring_checkpoint: Path) -> None:
    """Of 11 events full attention reads the last 8, the model's window; an answer reads the open window's 5."""
    recommender = Recommender(Release.open(ring_releases, num_threads=1))
    model = Checkpoint.open(ring_checkpoint).model
    histories = [np.random.default_rng(n).integers(1, 31, 11).astype(np.int32) for n in range(20)]
    read = {"full attention": [h[-8:] for h in histories], "eager": [h[-5:] for h in histories]}
    for way, windows in read.items():
        found = case_answers._eager(way, ring_checkpoint, histories)  # type: ignore[arg-type]
        np.testing.assert_array_equal(found, encode(model, windows))
    grown = case_sessions.grown(recommender.release, histories)
    assert 0 < relative_error(recommender.release.engine.encode(read["eager"]), grown) < 0.03
    for way in ("eager", "sessions"):
        ranked_BK = case_answers.ranked(way, ring_checkpoint, recommender, histories, 10)  # type: ignore[arg-type]
        agreed = ranked_BK == case_answers.ranked("engine", ring_checkpoint, recommender, histories, 10)
        assert agreed.mean() > 0.9


class Reversed:
    """An engine whose appends are damaged: they turn the user vector round."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def append(self, sessions: Sequence[Session], events: Sequence[Tokens]) -> list[Session]:
        return [replace(one, vector_D=-one.vector_D) for one in self._engine.append(sessions, events)]


@pytest.mark.parametrize("is_damaged", [False, True])
def test_what_appends_cost_is_the_change_by_cache(
    ring_features: Path, ring_checkpoint: Path, ring_releases: Path, tmp_path: Path, monkeypatch, is_damaged: bool
) -> None:
    shutil.copytree(ring_releases, tmp_path / "releases", symlinks=True)  # whose log gets the looks
    release = replace(Release.open(tmp_path / "releases", num_threads=1), fusion=Fusion())
    served = replace(release, engine=Reversed(release.engine)) if is_damaged else release  # type: ignore[arg-type]
    monkeypatch.setattr(case_benchmark.Recommender, "load", lambda _: Recommender(served))
    whole = case_benchmark._Side(ring_features, ring_checkpoint, release.folder)
    cause = case_benchmark._by_cause([{"before": whole, "cache": replace(whole, way="sessions")}])["cache"]
    assert cause["low"] <= cause["change"] <= cause["high"]
    assert (cause["high"] < -0.5) if is_damaged else (abs(cause["change"]) < 0.01)
