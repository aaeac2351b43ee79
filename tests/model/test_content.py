import numpy as np

from recsys.contracts.ids import Item
from recsys.model.content import ContentMap, place, terms


def item(number: int, title: str | None = None, category: str | None = None, price: float | None = None) -> Item:
    return Item(item_id=f"i{number}", item_index=number, num_events=9, title=title, category=category, price=price)


def test_terms_are_words_pairs_levels_and_the_step_of_the_price() -> None:
    assert terms(item(1, "Red LAMP", "home/kitchen", 8.0)) == [
        "red", "lamp", "red lamp", "category:home", "category:home/kitchen", "price:6",
    ]  # fmt: skip
    assert terms(item(1, None, None, None)) == []
    assert terms(item(1, None, None, 0.0)) == []


def test_an_item_is_placed_where_its_words_stand() -> None:
    kept = [item(i, f"{'red lamp' if i % 2 else 'blue mug'} {i}") for i in range(1, 21)]
    vectors_VD = np.array([[1.0, 0.0] if i % 2 else [0.0, 1.0] for i in range(1, 21)], dtype=np.float32)
    placed = place(kept, vectors_VD, [item(30, "a red lamp"), item(31, "mug, blue")], ridge=0.1)
    assert placed is not None
    np.testing.assert_allclose(placed, [[1, 0], [0, 1]], atol=0.1)


def test_nothing_is_placed_where_nothing_is_said() -> None:
    kept, vectors_VD = [item(i) for i in range(1, 9)], np.ones((8, 2), dtype=np.float32)
    assert place(kept, vectors_VD, [item(30, "a red lamp")], ridge=1.0) is None
    assert place([item(1, "one"), item(2, "two")], vectors_VD[:2], [item(30, "one")], ridge=1.0) is None
    assert place(kept, vectors_VD, [], ridge=1.0) is None
    assert ContentMap.fit([], vectors_VD[:0], np.empty(0, dtype=np.int64), 1.0) is None
