import json
from pathlib import Path

import numpy as np
import pytest

from recsys.contracts.errors import ArtifactError, ConfigError
from recsys.contracts.ids import PAD, Item, Vocabulary
from recsys.training.config import Recipe, bundled_recipes


def vocabulary() -> Vocabulary:
    counts = {"a": 3, "b": 9, "c": 3}
    return Vocabulary([Item(item_id=i, item_index=n * 10, num_events=c) for n, (i, c) in enumerate(counts.items(), 1)])


def test_tokens_count_from_one_and_unknown_items_are_padding() -> None:
    assert vocabulary().tokens(["c", "nope", "a"]).tolist() == [3, PAD, 1]


def test_popular_items_come_first_and_ties_by_token() -> None:
    assert vocabulary().popular().tolist() == [2, 1, 3]


def test_a_vocabulary_survives_a_file(tmp_path: Path) -> None:
    vocabulary().save(tmp_path)
    again = Vocabulary.load(tmp_path)
    assert again.items == vocabulary().items
    np.testing.assert_array_equal(again.num_events, [0, 3, 9, 3])


def test_a_repeated_item_is_refused() -> None:
    item = Item(item_id="a", item_index=1, num_events=1)
    with pytest.raises(ArtifactError, match="repeats an item_id"):
        Vocabulary([item, item])


def test_every_bundled_recipe_loads() -> None:
    assert {"default", "demo"} < set(bundled_recipes())
    for name in bundled_recipes():
        Recipe.load(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[training]\nlr = 1.0", r"training.lr.*unknown key|unknown key 'training.lr'"),
        ("[window]\nsize = 1", r"window.size = 1: input should be greater than or equal to 2"),
        ("[window]\nsize = 2\noverlap_share = 0.9", "leaves no stride"),
        ("[window]\nsize = 8\noverlap_share = 0.75\nsummary_tokens = 1", "a stride of 2: summaries need 4"),
        ("[window]\nnum_summaries = 0\nsummary_tokens = 1", "nobody would read them"),
        ("[modell]\n", "unknown key 'modell'; known keys: long, model, sparse, training, window"),
        ("[model", "not valid TOML"),
    ],
)
def test_a_bad_recipe_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        Recipe.load(str(path))
    assert "\n" not in str(caught.value)


def test_an_unknown_recipe_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"expected one of .*default, demo"):
        Recipe.load("defualt")


def test_popular_is_what_was_taken_of_late_then_what_ever_was() -> None:
    counts = {"a": (9, 0), "b": (5, 2), "c": (7, 2), "d": (12, 0)}
    items = [
        Item(item_id=name, item_index=n, num_events=ever, num_recent=of_late)
        for n, (name, (ever, of_late)) in enumerate(counts.items(), start=1)
    ]
    assert Vocabulary(items).popular().tolist() == [3, 2, 4, 1]
    assert Vocabulary(items).popularity.tolist() == [0, 0, 2, 2, 0]


def test_items_of_before_have_no_late_events(tmp_path: Path) -> None:
    line = {
        "item_id": "a",
        "item_index": 1,
        "num_events": 3,
        "title": None,
        "category": None,
        "price": None,
        "is_new": False,
    }
    (tmp_path / "items.jsonl").write_text(json.dumps(line) + "\n")
    known = Vocabulary.load(tmp_path)
    assert (known.num_recent.tolist(), known.popularity.tolist()) == ([0, 0], [0, 3])
