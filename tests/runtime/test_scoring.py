from pathlib import Path

import numpy as np
import pytest

from recsys.contracts.ids import PAD
from recsys.contracts.precision import ItemFormat
from recsys.runtime import index
from recsys.runtime.index import IndexChoice, ItemIndex
from recsys.runtime.items import ItemTable
from recsys.runtime.scoring import CodeScorer

GENERATOR = np.random.default_rng(0)
VECTORS_VD = GENERATOR.standard_normal((501, 16)).astype(np.float32)
VECTORS_VD[PAD] = 0
ITEMS = ItemTable.of(VECTORS_VD, ItemFormat.INT8)
USERS_UD = GENERATOR.standard_normal((20, 16)).astype(np.float32)
SHIFT_V = GENERATOR.standard_normal(500).astype(np.float32)


@pytest.mark.parametrize("shift_V", [None, SHIFT_V], ids=["plain", "shifted"])
def test_scores_from_codes_are_those_of_the_vectors(tmp_path: Path, monkeypatch, shift_V) -> None:
    monkeypatch.setattr(index, "PAYS_FROM", 500)
    by_codes = ItemIndex.open(tmp_path, ITEMS, IndexChoice(), shift_V)
    by_vectors = ItemIndex.build(ITEMS.vectors_VD(), shift_V)
    assert by_codes._scorer is not None
    assert by_vectors._scorer is None
    for user_D in USERS_UD:
        np.testing.assert_allclose(by_codes.all_scores(user_D), by_vectors.all_scores(user_D), atol=1e-5)
        np.testing.assert_allclose(by_codes.cosines(user_D), by_vectors.cosines(user_D), atol=1e-6)


def test_an_index_scores_from_codes_where_it_looks_at_all_items_and_they_are_many(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(index, "PAYS_FROM", 500)
    floats = ItemTable.of(VECTORS_VD, ItemFormat.FLOAT32)
    assert ItemIndex.open(tmp_path, floats, IndexChoice())._scorer is None
    assert ItemIndex.open(tmp_path, ITEMS, IndexChoice(storage="int8"))._scorer is None
    monkeypatch.setattr(index, "PAYS_FROM", 501)
    assert ItemIndex.open(tmp_path, ITEMS, IndexChoice())._scorer is None


def test_an_answer_is_its_owner_s_to_change() -> None:
    codes, scales = ITEMS.codes
    scorer = CodeScorer(codes, scales)
    first = scorer(USERS_UD[0])
    kept = first.copy()
    scorer(USERS_UD[1])
    np.testing.assert_array_equal(first, kept)
