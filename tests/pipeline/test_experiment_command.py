"""`recsys experiment …` as an analyst types it."""

import json
from pathlib import Path

from recsys.store import EventStore, Impression
from tests.pipeline.test_command_line import recsys, refused


def test_an_experiment_is_started_reported_and_stopped(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    arms = ["--arm", "control:3", "--arm", "new=2026-11-25:1"]
    recsys("experiment", "start", "trial", "--store", url, *arms, "--metric", "click")
    store = EventStore.open(url)
    assert store.document("arms")["arms"] == [
        {"name": "control", "release": None, "weight": 3.0},
        {"name": "new", "release": "2026-11-25", "weight": 1.0},
    ]
    made = {"release": "r", "source": "model", "items": ["x"]}
    store.record_impressions([Impression(request_id="q1", user_id="ann", arm="new", **made)])
    store.close()
    shown = recsys("experiment", "report", "trial", "--store", url).stdout
    assert "too early to say anything" in shown
    assert "click (primary)" in shown
    stopped = json.loads(recsys("experiment", "stop", "trial", "--store", url, "--json").stdout)
    assert stopped["stopped_ms"] > stopped["started_ms"]


def test_an_arm_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    line = refused("experiment", "start", "trial", "--store", url, "--arm", "control", "--arm", "new=r:many")
    assert "arms.1.weight = 'many'" in line
