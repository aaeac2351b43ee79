"""Items most like an item, against cosines by hand."""

import numpy as np
import pytest

from recsys.contracts.ids import Floats
from recsys.contracts.precision import ItemFormat
from recsys.runtime.index import IndexChoice, IndexKind, ItemIndex, blank
from recsys.runtime.items import ItemTable
from serving.neighbours import NUM_KEPT, Neighbours

V, D = 626, 8
_GENERATOR = np.random.default_rng(0)
ITEMS_VD = (_GENERATOR.normal(size=(V, D)) * _GENERATOR.lognormal(sigma=1.5, size=(V, 1))).astype(np.float32)
"""Norms differ widely, as those of rare and of popular items do."""
UNIT_VD = ITEMS_VD / np.linalg.norm(ITEMS_VD, axis=1, keepdims=True)
SHIFT_V = np.where(np.arange(V) >= 600, -1000, 0).astype(np.float32)


def by_hand(token: int) -> list[int]:
    cosines_V = UNIT_VD @ UNIT_VD[token - 1]
    return [int(i) + 1 for i in np.argsort(-cosines_V, kind="stable") if i != token - 1]


@pytest.mark.parametrize("shift_V", [None, SHIFT_V], ids=["plain", "shifted"])
def test_neighbours_are_those_with_the_highest_cosine(shift_V: Floats | None) -> None:
    near = Neighbours(ItemIndex.build(ITEMS_VD, shift_V))
    for token in range(1, V + 1, 25):
        tokens, cosines = near.of(token)
        assert tokens.tolist() == by_hand(token)[:NUM_KEPT]
        assert cosines == pytest.approx(UNIT_VD[tokens - 1] @ UNIT_VD[token - 1], abs=1e-5)


@pytest.mark.parametrize("kind", [IndexKind.EXACT, IndexKind.IVF])
def test_looking_goes_on_until_enough_may_be_shown_or_the_catalogue_ends(kind: IndexKind) -> None:
    near = Neighbours(index_of(kind))
    order = by_hand(7)
    allowed = np.ones(V + 1, dtype=bool)
    allowed[order[:-3]] = False  # all but the three least alike, and the item itself
    tokens, _ = near.shown(7, 2, allowed)
    assert tokens.tolist() == order[-3:-1]
    assert near.shown(7, 10, allowed)[0].tolist() == order[-3:]


def test_neighbours_are_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    near, asked = Neighbours(ItemIndex.build(ITEMS_VD)), []
    true = ItemIndex.cosines
    monkeypatch.setattr(ItemIndex, "cosines", lambda self, v: (asked.append(v), true(self, v))[1])
    assert near.kept(3) is None
    for _ in range(3):
        found = near.shown(3, 10, np.ones(V + 1, dtype=bool))[0]
    assert len(asked) == 1
    assert found.tolist() == near.kept(3)[0][:10].tolist()


def index_of(kind: IndexKind) -> ItemIndex:
    if kind is IndexKind.EXACT:
        return ItemIndex.build(ITEMS_VD)
    choice = IndexChoice(kind=kind, storage="float32", num_lists=5, num_probed=1)
    index = blank(choice, D)
    index.train(ITEMS_VD)
    index.add(ITEMS_VD)
    items = ItemTable.of(np.vstack([0 * ITEMS_VD[:1], ITEMS_VD]), ItemFormat.FLOAT32)
    return ItemIndex(choice, items, index=index)
