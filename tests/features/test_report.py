"""report.html: it has its figures, needs nothing from elsewhere, and a real browser draws it."""

import re
import subprocess
from pathlib import Path

import pytest

from features.build import FeaturesConfig, run
from features.bulk import BulkConfig
from features.bulk import run as simulate
from tests.conftest import service_program

SECTIONS = ("days", "lengths", "pruning", "windows", "items", "quarantine", "steps", "against")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the second of two nights, with a bad row."""
    place = tmp_path_factory.mktemp("shop")
    simulate(BulkConfig(num_users=2_000, num_items=300, num_events=200_000, num_days=30), place / "log")
    config = FeaturesConfig()
    late = sorted((place / "log").iterdir())[-1]
    late.rename(place / late.name)
    run(config, [place / "log"], place / "out")
    (place / late.name).rename(late)
    (place / "log" / "bad.csv").write_text(
        "user_id,item_id,timestamp,event_type\n" + "u,<i>,1767300000,view\n" * 30 + "u,i,<when>,view\n"
    )
    run(config, [place / "log"], place / "out")
    return place / "out" / "report.html"


def test_the_page_has_its_figures_and_stands_alone(page: Path) -> None:
    text = page.read_text()
    assert re.findall(r"<section id='(\w+)'", text) == [
        *("days", "lengths", "items", "against", "pruning", "windows", "quarantine", "steps"),
    ]
    assert "200,030" in text  # events
    assert "timestamp does not parse" in text
    assert "<i>" not in re.sub(r"<i style", "", text)  # ids are escaped
    assert not re.search(r"<script|https?://|@import|url\(|src=", text)


def test_the_setting_in_force_is_marked_where_others_keep_as_many_items(tmp_path: Path) -> None:
    rows = "".join(f"u{n},i{n % 3},{1_600_000_000 + n}\n" for n in range(150))
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n" + rows)
    run(FeaturesConfig(min_count=5), [tmp_path / "log.csv"], tmp_path / "out")
    section = (tmp_path / "out" / "report.html").read_text().split("<section id='pruning'>")[1].split("</svg>")[0]
    place = dict(re.findall(r'cx="([\d.]+)"[^>]*><title>items pruned at (\d+):', section))
    assert [place[x] for x in re.findall(r'<line class="mark" x1="([\d.]+)"', section)] == ["5"]


@pytest.mark.service
def test_a_real_browser_draws_every_figure(page: Path, tmp_path: Path) -> None:
    quiet = ("--disable-quic", "--no-first-run", "--disable-background-networking")
    quiet += ("--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}")
    command = [
        str(service_program("chromium", "chromium")),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        *quiet,
        "--window-size=1280,1700",
    ]
    target = f"file://{page}"
    dom = subprocess.run(
        [*command, "--dump-dom", target], capture_output=True, text=True, timeout=120, check=True
    ).stdout
    for name in SECTIONS:
        section = dom.split(f'<section id="{name}">')[1].split("</section>")[0]
        assert section.count("<rect") + section.count("<polyline") + section.count("<tr>") > (name != "quarantine"), (
            name
        )
    assert dom.count("<svg") == 3
    shot = tmp_path / "report.png"
    subprocess.run([*command, f"--screenshot={shot}", target], capture_output=True, timeout=120, check=True)
    assert shot.read_bytes()[:4] == b"\x89PNG"
    assert shot.stat().st_size > 50_000  # a blank page is a few kilobytes
