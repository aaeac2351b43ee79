"""Files beside the code: they name metrics, options and settings that exist."""

import re
from pathlib import Path

import pytest

from recsys.contracts.config import read_toml
from serving.config import ServeConfig

DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.mark.parametrize("name", ["alerts.yaml", "grafana.json"])
def test_every_metric_that_is_watched_exists(shop, name: str) -> None:
    optional = {"recsys_gpu_memory_bytes"}  # where there is a GPU
    existing = set(re.findall(r"^# TYPE (\w+) ", shop.client.get("/metrics").text, re.MULTILINE))
    existing |= {f"{metric}_bucket" for metric in existing} | optional
    watched = set(re.findall(r"\brecsys_\w+", (DEPLOY / name).read_text()))
    assert len(watched) > 5
    assert watched <= existing


def test_the_settings_are_those_of_the_endpoint_and_let_nobody_in() -> None:
    settings = ServeConfig.from_mapping(read_toml(DEPLOY / "serve.toml")["serve"], "serve.toml")
    assert {token.name for token in settings.tokens} == {"shop", "operator"}
    assert all(set(token.sha256[:-1]) == {"0"} for token in settings.tokens)


@pytest.mark.parametrize("name", ["Dockerfile", "recsys@.service", "compose.yaml"])
def test_every_option_that_is_used_exists(name: str) -> None:
    from typer.main import get_command

    from recsys.cli import app

    known = {option for each in get_command(app).commands["serve"].params for option in each.opts}  # type: ignore[attr-defined]
    text = (DEPLOY / name).read_text()
    lines = [line for line in text.splitlines() if re.match(r"\s*(ENTRYPOINT|ExecStart|command:)", line)]
    assert lines
    assert set(re.findall(r"--[a-z-]+", " ".join(lines))) <= known
