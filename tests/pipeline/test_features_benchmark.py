"""The feature job's figures, by the command that makes them, on the smallest log that it takes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from recsys.pipeline.benchmark_tables import features_cost_table

ROOT = Path(__file__).parents[2]
STEPS = {"verify", "read", "store", "merge", "figures", "tables and report"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("benchmark")


@pytest.fixture(scope="module")
def values(place: Path) -> dict[str, Any]:
    """What is printed in a folder without peers."""
    command = [sys.executable, "-m", "recsys", "benchmark", "features", "--events", "10000", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(place)}
    result = subprocess.run(command, capture_output=True, text=True, cwd=place, env=environment, timeout=300)
    assert (result.returncode, result.stderr) == (0, "")
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def documented() -> set[str]:
    """Keys that the page of results names beside its figures."""
    section = (ROOT / "docs" / "benchmarks.md").read_text().split("## The feature job\n")[1].split("\n## ")[0]
    names = [line.split("|")[1] for line in section.splitlines() if line.startswith("|")]
    return {key for name in names for key in re.findall(r"`([a-z0-9_]+)`", name)}


def test_the_command_prints_the_figures_that_the_page_of_results_names(values: dict[str, Any]) -> None:
    names = {"peak_gib", "floor_ratio", "rectools_ratio", "rectools_csv_ratio", "one_day_share", "growth_10x"}
    assert documented() == names
    assert {"events", *names} <= values.keys()
    assert (values["events"], values["floor_events"]) == (10_000, 10_000)
    assert all(values[name] > 0 for name in ("peak_gib", "floor_ratio", "one_day_share", "growth_10x"))
    assert {row["step"] for row in values["steps"]} == {row["step"] for row in values["one_day_steps"]} == STEPS


def test_figures_of_a_peer_that_is_not_installed_are_null(values: dict[str, Any]) -> None:
    assert values["rectools_ratio"] is values["rectools_csv_ratio"] is None
    assert re.findall(r"\| (\w+) +\| +– \|", features_cost_table(values)) == ["rectools_ratio", "rectools_csv_ratio"]


def test_the_table_for_people_has_the_same_figures(values: dict[str, Any]) -> None:
    figures = {name for name, value in values.items() if not isinstance(value, list)} - {"events"}
    assert set(re.findall(r"^\| (\w+) +\|", features_cost_table(values), flags=re.MULTILINE)) == figures | {"figure"}


def test_nothing_stays_of_a_measured_log(values: dict[str, Any], place: Path) -> None:
    assert values["seconds"] > 0
    assert list(place.iterdir()) == []
