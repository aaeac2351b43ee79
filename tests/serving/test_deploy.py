"""Files beside the code: they name metrics, options and settings that exist."""

import json
import re
import subprocess
import sys
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
import yaml

from recsys.contracts.config import read_toml
from serving.config import ServeConfig
from serving.metrics import Metrics
from tests.conftest import service_program

DEPLOY = Path(__file__).parents[2] / "deploy"
OF_GPU = {"recsys_gpu_memory_bytes", "recsys_gpu_sm_share", "recsys_gpu_tensor_share"}
"""Metrics that exist where there is a GPU."""


def drawn() -> list[tuple[str, str]]:
    """(expression, legend) of everything on the dashboard."""
    panels = json.loads((DEPLOY / "grafana.json").read_text())["panels"]
    return [(target["expr"], target["legendFormat"]) for panel in panels for target in panel["targets"]]


def watched() -> list[tuple[str, str]]:
    """The same of the alerts, which have no legends; metrics that the rules record are left to promtool."""
    groups = yaml.safe_load((DEPLOY / "alerts.yaml").read_text())["groups"]
    return [(rule["expr"], "") for group in groups for rule in group["rules"] if "recsys:" not in rule["expr"]]


@pytest.mark.parametrize(("expression", "legend"), [*drawn(), *watched()])
def test_every_label_that_is_asked_for_is_one_of_the_metric(expression: str, legend: str) -> None:
    names = {name: {"gpu"} for name in OF_GPU}
    for name, collector in Metrics().registry._names_to_collectors.items():
        names[name] = {*collector._labelnames, *(["le"] if name.endswith("_bucket") else [])}
    grouped = re.findall(r"\bby \(([^)]*)\)", expression)
    asked = {label.strip() for group in grouped for label in group.split(",")}
    shown = set(re.findall(r"{{(\w+)}}", legend))
    selected = set(re.findall(r'(\w+)="', expression))
    for metric in re.findall(r"\brecsys_\w+", expression):
        has = names.get(metric, set()) | {"instance"}  # that one is Prometheus' own
        assert asked | selected <= has
        assert shown <= (asked if grouped else has)


@pytest.mark.service
def test_each_alert_fires_when_it_should_and_stays_silent_otherwise() -> None:
    rules = Path(__file__).with_name("alerts_fire.yaml")
    asserted = set(re.findall(r"alertname: (\w+)", rules.read_text()))
    assert asserted == set(re.findall(r"- alert: (\w+)", (DEPLOY / "alerts.yaml").read_text()))
    promtool("test", "rules", str(rules))


@pytest.mark.service
def test_prometheus_reads_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": expression} for number, (expression, _) in enumerate(drawn())]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "drawn", "rules": rules}]}))
    promtool("check", "rules", str(tmp_path / "rules.yaml"))


def promtool(*arguments: str) -> None:
    program = service_program("promtool", "prometheus")
    done = subprocess.run([str(program), *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["alerts.yaml", "grafana.json"])
def test_every_metric_that_is_watched_exists(shop, name: str) -> None:
    existing = set(re.findall(r"^# TYPE (\w+) ", shop.client.get("/metrics").text, re.MULTILINE))
    existing |= {f"{metric}_bucket" for metric in existing} | OF_GPU
    watched = set(re.findall(r"\brecsys_\w+", (DEPLOY / name).read_text()))
    assert len(watched) > 5
    assert watched <= existing


def test_the_settings_are_those_of_the_endpoint_and_let_nobody_in() -> None:
    settings = ServeConfig.from_mapping(read_toml(DEPLOY / "serve.toml")["serve"], "serve.toml")
    assert {token.name for token in settings.tokens} == {"shop", "operator"}
    assert all(set(token.sha256[:-1]) == {"0"} for token in settings.tokens)


def test_the_proxy_waits_a_little_longer_than_the_deadline() -> None:
    deadline_ms = read_toml(DEPLOY / "serve.toml")["serve"]["deadline_ms"]
    (waits_ms,) = map(int, re.findall(r"proxy_read_timeout (\d+)ms;", (DEPLOY / "nginx.conf.template").read_text()))
    assert 2 * deadline_ms <= waits_ms <= 10 * deadline_ms


def test_the_proxy_knows_the_workers_and_they_believe_it() -> None:
    composed = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    (config,) = composed["networks"]["default"]["ipam"]["config"]
    fixed = {
        name: service["networks"]["default"]["ipv4_address"]
        for name, service in composed["services"].items()
        if "networks" in service
    }
    assert all(ip_address(each) in ip_network(config["subnet"]) for each in fixed.values())
    assert not any(ip_address(each) in ip_network(config["ip_range"]) for each in fixed.values())  # others' addresses
    proxy = fixed.pop("proxy")
    known = composed["services"]["proxy"]["environment"]["RECSYS_WORKERS"]
    assert re.findall(r"server (\S+):8000 ", known) == list(fixed.values())
    settings = ServeConfig.from_mapping(read_toml(DEPLOY / "serve.toml")["serve"], "serve.toml")
    assert ip_network(proxy) in settings.proxies


@pytest.mark.parametrize("name", ["Dockerfile", "recsys@.service", "compose.yaml"])
def test_every_option_that_is_used_exists(name: str) -> None:
    from typer.main import get_command

    from recsys.cli import app

    known = {option for each in get_command(app).commands["serve"].params for option in each.opts}  # type: ignore[attr-defined]
    text = (DEPLOY / name).read_text()
    lines = [line for line in text.splitlines() if re.match(r"\s*(ENTRYPOINT|ExecStart|command:)", line)]
    assert lines
    assert set(re.findall(r"--[a-z-]+", " ".join(lines))) <= known


@pytest.mark.service
def test_systemd_has_nothing_to_say_about_the_unit(tmp_path: Path) -> None:
    verify = [service_program("systemd-analyze", "systemd"), "verify"]
    text = (DEPLOY / "recsys@.service").read_text()
    unit = tmp_path / "recsys@.service"
    unit.write_text(text.replace("/opt/recsys/bin/recsys", sys.executable))  # it must be there
    done = subprocess.run([*verify, unit], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
