"""The rule book as operators send it."""

import hashlib
import itertools

import pytest

from recsys.contracts.ids import Item, Vocabulary
from recsys.runtime.filters import ItemFilters
from serving.rules import Catalogue, Filters, Rules

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


ITEMS = [
    Item(item_id=f"i{n}", item_index=n, num_events=1, category=category, price=price)
    for n, (category, price) in enumerate(itertools.product(["cups", "lamps", None], [0.0, 5.0, 20.0, None]), start=1)
]


@pytest.mark.parametrize("category", [None, ["lamps"], ["lamps", "cups"], ["no such"]])
@pytest.mark.parametrize(("low", "high"), [(None, None), (5, None), (None, 5), (5, 5), (20, 5)])
def test_a_filter_means_the_same_here_and_for_a_batch(category, low, high) -> None:
    catalogue = Catalogue(Vocabulary(ITEMS))
    asked = {"category": category, "min_price": low, "max_price": high}
    here = catalogue.matching(Filters(**asked), catalogue.compile(Rules()))[1:]
    assert [ItemFilters(**asked).keep(item) for item in ITEMS] == here.tolist()
