"""A peer that answers when it is asked; a stand-in program plays it."""

import sys
from pathlib import Path

import pytest

from recsys.contracts.errors import DataError
from recsys.model.config import ModelConfig
from recsys.pipeline import case_latency, case_replay
from recsys.windows import WindowConfig

SHAPE = ModelConfig(width=32, num_layers=3, num_heads=2, head_dim=16), 50, 2048, 1
STAND_IN = """
import json, os, sys
print(json.dumps({"load_s": 1.5, "arguments": sys.argv[1:]}), flush=True)
for turn, _ in enumerate(sys.stdin):
    print(json.dumps({"ms": 10 + turn, "peak_mb": 100 + turn}), flush=True)
"""


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    script = tmp_path / "peer.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(case_replay, "PYTHON", Path(sys.executable))
    monkeypatch.setattr(case_replay, "SCRIPT", script)
    return script


@pytest.mark.usefixtures("stand_in")
def test_a_peer_answers_once_each_time_it_is_asked() -> None:
    with case_replay.running(*SHAPE) as peer:
        assert peer is not None
        assert peer.load_s == 1.5
        assert [peer.answer() for _ in range(3)] == [10, 11, 12]
        assert peer.peak_mb == 102
    assert peer._process.returncode is not None  # it ends with the block


@pytest.mark.usefixtures("stand_in")
def test_a_peer_takes_its_turn_in_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[str] = []
    monkeypatch.setattr(case_latency, "_steps", lambda *_: {"ours": lambda _: turns.append("ours") or 1.0})
    with case_replay.running(*SHAPE) as peer:
        assert peer is not None
        asked = {"replay": lambda: turns.append("replay") or peer.answer()}
        milliseconds = case_latency.measure(None, None, num_rounds=3, num_threads=1, peers=asked)
    assert turns == ["ours", "ours", "replay", "replay"] * 10  # untimed and timed; two rounds to warm up, 8 lengths
    assert milliseconds == {"ours": 1.0, "replay": 22.0}  # of answers 6, 8, … 20: 15, 17, … 29 ms


@pytest.mark.parametrize(
    "program",
    [
        "raise SystemExit('no such model')",
        STAND_IN.replace("    print(", "    raise SystemExit('no such model')\n    print("),
    ],
)
def test_a_peer_that_fails_says_how(stand_in: Path, program: str) -> None:
    stand_in.write_text(program)
    with pytest.raises(DataError, match=r"no such model; run `make peers` again"), case_replay.running(*SHAPE) as peer:
        peer.answer()


def test_a_peer_that_hangs_is_ended(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(case_replay, "TIMEOUT_S", 0.2)
    stand_in.write_text("__import__('threading').Event().wait()")
    with pytest.raises(DataError, match=r"no answer for 0.2 s"), case_replay.running(*SHAPE):
        pass


def test_a_peer_that_is_not_installed_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(case_replay, "PYTHON", Path("nowhere/python"))
    with case_replay.running(*SHAPE) as peer:
        assert peer is None


def test_cold_is_the_mean_over_lengths_of_their_medians_up_to_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    assert case_latency.lengths(WindowConfig()) == [2048, 2150, 2253, 2355, 2457, 2559, 2662, 2764]
    took = [100.0 if 10 <= turn < 18 else float(turn % 8) for turn in range(26)]  # the second of three is an outlier
    monkeypatch.setattr(case_latency, "_steps", lambda *_: {"ours": took.__getitem__})
    milliseconds = case_latency.measure(None, None, num_rounds=24, num_threads=1, peers={})
    assert milliseconds == {"ours": 3.5}  # mean of 0 … 7; the median of all would be 5.5
