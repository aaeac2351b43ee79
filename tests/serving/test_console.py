"""The console in a browser: what it shows, and that clicking works, on a desk and on a phone."""

import hashlib
import re
from pathlib import Path

import pytest

from tests.serving.browser import Page, browser

DESK, PHONE = 1_280, 390


def test_the_page_loads_nothing_from_elsewhere(shop) -> None:
    page = shop.client.get("/console").text
    assert not re.findall(r"""(?:src|href)\s*=|https?://|@import|innerHTML""", page)


@pytest.fixture
def page(tmp_path: Path):
    with browser(tmp_path / "profile") as opened:
        yield opened
        assert opened.thrown == []


def assert_it_fits(page: Page, width: int) -> None:
    """A phone zooms out of a page that is too wide, and then says that it fits: so the width itself is compared."""
    assert page.value("innerWidth") == width
    assert page.value("document.documentElement.scrollWidth") <= width
    right = "[...document.querySelectorAll('td')].map(cell => cell.getBoundingClientRect().right)"
    assert page.value(f"Math.max(...{right})") <= width  # nothing is hidden in a table that scrolls


def chosen(page: Page) -> list[str]:
    return page.value("[...document.querySelectorAll('#events button')].map(each => each.textContent)")


def recommended(page: Page) -> list[str]:
    return page.value("[...document.querySelectorAll('#items td button')].map(each => each.textContent)")


def wait_for_first(page: Page, item: str) -> None:
    page.wait_for(f"document.querySelector('#items td button').textContent === '{item}'")


@pytest.mark.service
@pytest.mark.parametrize("width", [DESK, PHONE])
def test_a_user_is_chosen_and_events_are_clicked_together(shop, page: Page, tmp_path: Path, width: int) -> None:
    shop.tell("sku-5", "sku-3")
    answer = shop.ask(user_id="ann")
    shop.tell("sku-3", request_id=answer["request_id"])
    shop.endpoint.count_recall()
    page.open(f"{shop.client.base_url}/console", width)
    page.wait_for("document.querySelector('#recall td')")
    assert_it_fits(page, width)
    page.screenshot(tmp_path / "figures.png")

    page.click("#byHour summary")
    page.wait_for("document.querySelector('#hours td')")
    assert_it_fits(page, width)

    page.write("#user", "ann")
    page.click("#byUser button")
    page.wait_for("document.querySelector('#items td')")
    assert "by model, release r1, arm all" in page.text
    assert recommended(page)[0] == "sku-3"
    assert "Title of sku-3" in page.text
    for stage in ("wait", "history", "encode", "rank", "rest"):
        assert re.search(rf"{stage} [0-9.]+ ms", page.text)
    assert_it_fits(page, width)
    page.screenshot(tmp_path / "user.png")

    page.click("#popular")
    page.wait_for("document.querySelector('#said').textContent.startsWith('by popular')")
    assert (chosen(page), recommended(page)[:2]) == ([], ["sku-19", "sku-18"])
    page.click("#items button", "sku-18")
    wait_for_first(page, "sku-18")
    page.click("#items button", "sku-2")
    wait_for_first(page, "sku-2")
    assert chosen(page) == ["sku-18", "sku-2"]
    page.write("#item", "sku-7")
    page.click("#byEvents button", "Add an event")
    wait_for_first(page, "sku-7")
    assert chosen(page) == ["sku-18", "sku-2", "sku-7"]
    assert_it_fits(page, width)
    page.screenshot(tmp_path / "events.png")

    page.click("#events button", "sku-7")  # taken back
    wait_for_first(page, "sku-2")
    assert chosen(page) == ["sku-18", "sku-2"]
    page.click("#users button", "ann")
    wait_for_first(page, "sku-3")
    assert all(url.startswith(str(shop.client.base_url)) for url in page.requested)


@pytest.mark.service
def test_figures_before_and_after(shop, page: Page) -> None:
    shop.tell("sku-3")
    shop.ask(user_id="ann")
    page.open(f"{shop.client.base_url}/console#user=ann", DESK)
    page.wait_for("document.querySelector('#items td')")
    page.wait_for("document.body.innerText.includes('p99 of')")  # figures come with an answer of their own
    assert "p99 of 10000 ms" in page.text
    assert "by model, release r1, arm all" in page.text
    assert "4.25 → 0.00 MB" in page.text
    assert "61.0 → 14.0 ms" in page.text


@pytest.mark.service
def test_a_link_may_bring_events_and_names_are_no_markup_however_long(shop, page: Page, tmp_path: Path) -> None:
    name = "<b>bold" + "x" * 249
    page.open(f"{shop.client.base_url}/console#item={name}&item=sku-7&user={name}", PHONE)
    page.wait_for("document.querySelector('#items td')")
    assert chosen(page) == [name, "sku-7"]
    assert page.value("document.querySelectorAll('#events b, #users b').length") == 0
    assert_it_fits(page, PHONE)
    page.screenshot(tmp_path / "long.png")


@pytest.mark.service
def test_without_a_token_the_page_asks_for_one(open_shop, page: Page) -> None:
    secret = "ed3d2c21991e3bef5e069713af9fa6ca"  # its sha256 is told to the server
    token = {"name": "x", "sha256": hashlib.sha256(secret.encode()).hexdigest(), "scopes": ["read"]}
    shop = open_shop(deadline_ms=10_000, tokens=(token,))
    page.open(f"{shop.client.base_url}/console", PHONE)
    page.wait_for("document.querySelector('#trouble').textContent")
    assert "with a token of this server" in page.text
    page.write("#token", secret)
    page.click("#login button")
    page.wait_for("document.querySelector('#releases td')")
    assert page.value("document.querySelector('#trouble').textContent") == ""
