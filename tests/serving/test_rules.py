"""The rule book as operators send it."""

import hashlib

import pytest

from serving.rules import Rules

OPS = {"Authorization": "Bearer secret of ops"}


@pytest.fixture
def guarded(open_shop):
    sha256 = hashlib.sha256(b"secret of ops").hexdigest()
    return open_shop(deadline_ms=10_000, tokens=({"name": "ops", "sha256": sha256, "scopes": ["admin"]},))


def test_a_boost_of_nothing_is_refused_and_nothing_changes(guarded) -> None:
    boosts = [{"category": "cups", "weight": 1}, {"weight": 0.7}]
    refused = guarded.client.put("/v1/admin/rules", headers=OPS, json={"boosts": boosts})
    message = "a boost of nothing: give item_id, category or both"
    assert (refused.status_code, refused.json()) == (
        422,
        {"detail": [{"loc": ["body", "boosts", 1], "msg": message}]},
    )
    assert guarded.client.get("/v1/admin/rules", headers=OPS).json() == Rules().model_dump()


def test_pins_and_boosts_of_unknown_items_are_kept_and_named(guarded) -> None:
    rules = {
        "pins": [{"item_id": "sku-2", "position": 1}, {"item_id": "misspelt", "position": 2}],
        "boosts": [{"item_id": "gone", "weight": 1}, {"category": "cups", "weight": 1}],
    }
    kept = guarded.client.put("/v1/admin/rules", headers=OPS, json=rules).json()
    assert kept["unknown_items"] == ["gone", "misspelt"]
    assert kept["pins"] == rules["pins"]
    assert guarded.client.get("/v1/admin/rules", headers=OPS).json() == Rules(**rules).model_dump()
