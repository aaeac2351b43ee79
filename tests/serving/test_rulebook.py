"""Rules and stock: compiled once, off the requests' path, and taken over by every worker."""

import hashlib

import pytest

from recsys.contracts.errors import StoreError
from serving.rulebook import RuleBook
from serving.rules import RULES_DOCUMENT, Catalogue, Rules
from tests.serving.test_live import Site, site  # noqa: F401  # a fixture

ADMIN = {"name": "ops", "sha256": hashlib.sha256(b"x").hexdigest(), "scopes": ["read", "write", "admin"]}


@pytest.fixture
def admin(open_shop):
    shop = open_shop(deadline_ms=10_000, tokens=[ADMIN], poll_s=3_600)
    shop.client.headers["Authorization"] = "Bearer x"
    return shop


def patch(shop, **items: bool) -> dict:
    told = {name.replace("_", "-"): there for name, there in items.items()}
    response = shop.client.patch("/v1/admin/availability", json={"items": told})
    assert response.status_code == 200, response.text
    return response.json()


def shown(shop) -> set[str]:
    return {item["item_id"] for item in shop.ask(events=[{"item_id": "sku-1"}], k=20)["items"]}


def test_a_change_of_stock_answers_what_it_changed(admin) -> None:
    assert patch(admin, sku_3=False, sku_4=False, sku_5=True) == {
        "items": {"sku-3": False, "sku-4": False},
        "num_unavailable": 2,
    }
    assert not {"sku-3", "sku-4"} & shown(admin)
    assert patch(admin, sku_3=False, sku_4=True, unheard_of=False) == {
        "items": {"sku-4": True, "unheard-of": False},
        "num_unavailable": 2,
    }
    assert "sku-4" in shown(admin)
    assert admin.client.get("/v1/admin/rules").json()["unavailable"] == ["sku-3", "unheard-of"]


@pytest.mark.parametrize("field", ["unavailable", "denied"])
def test_an_id_that_no_database_keeps_is_refused(admin, field: str) -> None:
    assert admin.client.put("/v1/admin/rules", json={field: ["sku-1\x00"]}).status_code == 422
    assert "sku-1" in shown(admin)


def test_what_is_out_of_stock_is_listed_in_pages(admin) -> None:
    patch(admin, **{f"sku_{n}": False for n in range(5)})
    first = admin.client.get("/v1/admin/availability", params={"limit": 3}).json()
    assert first == {"items": ["sku-0", "sku-1", "sku-2"], "num_unavailable": 5}
    rest = admin.client.get("/v1/admin/availability", params={"limit": 3, "after": "sku-2"}).json()
    assert rest["items"] == ["sku-3", "sku-4"]


def test_a_new_rule_book_says_all_that_is_out_of_stock(admin) -> None:
    patch(admin, sku_3=False, sku_4=False)
    body = {"unavailable": ["sku-4", "sku-5"], "denied": ["sku-6"]}
    assert admin.client.put("/v1/admin/rules", json=body).status_code == 200
    assert {f"sku-{n}" for n in range(20)} - shown(admin) == {"sku-4", "sku-5", "sku-6"}
    assert admin.client.get("/v1/admin/availability").json()["items"] == ["sku-4", "sku-5"]


def test_a_change_of_stock_neither_reads_nor_compiles_the_rule_book(site: Site, monkeypatch) -> None:  # noqa: F811
    here, there = site.releases(), site.releases()
    here.set_rules(Rules(denied=["sku-9"], unavailable=["sku-8"]))
    there.follow(site.store.glance("ann").revision)

    def fail(*_: object) -> None:
        raise AssertionError("not on a request's path")

    monkeypatch.setattr(site.store, "document", fail)
    monkeypatch.setattr(Catalogue, "compile", fail)
    here.set_availability({"sku-1": False, "sku-2": False, "sku-8": True})
    there.set_availability({"sku-2": True, "sku-3": False})
    for releases in (here, there):
        releases.follow(site.store.glance("ann").revision)
        rules = releases.current.rules
        assert [t - 1 for t in range(1, 21) if not rules.shown[t]] == [1, 3, 9]
        assert [t - 1 for t in range(1, 21) if not rules.available[t]] == [1, 3]
        assert not rules.shown.flags.writeable


def test_answers_compile_nothing(admin, monkeypatch) -> None:
    admin.endpoint.releases.set_rules(Rules(denied=["sku-3"]))

    def fail(*_: object) -> None:
        raise AssertionError("not on a request's path")

    monkeypatch.setattr(Catalogue, "compile", fail)
    assert "sku-3" not in shown(admin)
    admin.tell("sku-3")
    assert admin.ask(user_id="ann", k=20)["degraded"] is None
    similar = admin.client.get("/v1/items/sku-1/similar", params={"k": 20}).json()
    assert "sku-3" not in {item["item_id"] for item in similar["items"]}


def test_a_release_that_is_loaded_later_goes_by_rules_and_stock(site: Site) -> None:  # noqa: F811
    releases = site.releases()
    releases.set_rules(Rules(denied=["sku-9"]))
    releases.set_availability({"sku-1": False})
    releases.activate("b")
    assert [t - 1 for t in range(1, 21) if not releases.current.rules.shown[t]] == [1, 9]


def test_a_release_goes_by_what_changes_while_its_rules_are_compiled(site: Site) -> None:  # noqa: F811
    releases = site.releases()
    book, published, taken = releases.book, [], []

    class Slow:
        def take_rules(self, rules: Rules) -> None:
            taken.append(rules.unavailable)
            if len(taken) == 1:
                book.set_availability({"sku-1": False})

    book.admit(Slow(), lambda: published.append(len(taken)))
    assert (taken, published) == ([[], ["sku-1"]], [2])


def test_stock_in_a_stored_rule_book_is_moved_to_rows(site: Site) -> None:  # noqa: F811
    site.store.write_document(RULES_DOCUMENT, lambda _: Rules(unavailable=["sku-1", "sku-2"]).model_dump())
    releases = site.releases()
    releases.follow(site.store.glance("ann").revision)
    assert releases.rules.unavailable == ["sku-1", "sku-2"]
    releases.set_availability({"sku-1": True})
    other = site.releases()
    other.follow(site.store.glance("ann").revision)
    assert other.rules.unavailable == releases.rules.unavailable == ["sku-2"]


def test_what_cannot_be_written_changes_nothing(site: Site, monkeypatch) -> None:  # noqa: F811
    book = RuleBook(site.store, list)
    book.set_rules(Rules(denied=["sku-1"], unavailable=["sku-2"]))

    def gone(*_: object) -> None:
        raise StoreError("store: stock not written: disk is gone")

    monkeypatch.setattr("recsys.store.events.stock.replace", gone)
    with pytest.raises(StoreError, match="disk is gone"):
        book.set_rules(Rules(unavailable=["sku-3"]))
    assert book.rules == Rules(denied=["sku-1"], unavailable=["sku-2"])
    assert site.store.document(RULES_DOCUMENT)["denied"] == ["sku-1"]
