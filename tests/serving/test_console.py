"""The console in a browser: what it shows, and that clicking works."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import service_program


def browser(url: str, *options: str, folder: Path) -> str:
    program = service_program("chromium", "chromium")
    command = [
        str(program), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=4000", *options, url,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def test_the_page_loads_nothing_from_elsewhere(shop) -> None:
    page = shop.client.get("/console").text
    assert not re.findall(r"""(?:src|href)\s*=|https?://|@import|innerHTML""", page)


def shown(dom: str) -> str:
    """Text of the page without its script."""
    return re.sub(r"<[^>]+>", " ", dom.split("<script>")[0])


@pytest.mark.service
def test_figures_and_the_answer_for_a_user(shop, tmp_path: Path) -> None:
    shop.tell("sku-3")
    answer = shop.ask(user_id="ann")
    shop.tell("sku-3", request_id=answer["request_id"])
    text = shown(browser(f"{shop.client.base_url}/console#user=ann", "--dump-dom", folder=tmp_path))
    assert "p99 of 10000 ms" in text
    assert "by model, release r1, arm all" in text
    assert "Title of sku-3" in text
    assert "4.25 → 0.00 MB" in text
    assert "61.0 → 14.0 ms" in text
    for stage in ("history", "encode", "rank"):
        assert re.search(rf"{stage} [0-9.]+", text)


@pytest.mark.service
def test_events_that_are_clicked_together_and_names_that_are_no_markup(shop, tmp_path: Path) -> None:
    link = "item=%3Cb%3Ebold&item=sku-7"
    dom = browser(f"{shop.client.base_url}/console#{link}", "--dump-dom", folder=tmp_path)
    assert "&lt;b&gt;bold" in dom
    assert "<b>bold" not in dom
    assert "by model" in shown(dom)
    assert "Title of sku-7" in shown(dom)


@pytest.mark.service
def test_without_a_token_the_page_asks_for_one(open_shop, tmp_path: Path) -> None:
    token = {"name": "x", "sha256": "0" * 64, "scopes": ["read"]}
    shop = open_shop(deadline_ms=10_000, tokens=(token,))
    dom = browser(f"{shop.client.base_url}/console", "--dump-dom", folder=tmp_path)
    assert "with a token of this server" in shown(dom)
    assert re.search(r'<form id="login">', dom)  # no longer hidden
