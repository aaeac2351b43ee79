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


@pytest.mark.parametrize("shift_V", [None, SHIFT_V], ids=["plain", "shifted"])
@pytest.mark.parametrize("pays_from", [500, 501], ids=["codes", "vectors"])
def test_exact_search_gives_the_same_of_one_query_and_of_many(tmp_path, monkeypatch, shift_V, pays_from: int) -> None:
    monkeypatch.setattr(index, "PAYS_FROM", pays_from)
    monkeypatch.setattr(index, "_BLOCK_ROWS", 99)
    monkeypatch.setattr(index, "_BLOCK_PRODUCTS", 7 * 500)
    exact = ItemIndex.open(tmp_path, ITEMS, IndexChoice(), shift_V)
    expected_UV = USERS_UD @ ITEMS.vectors_VD().T + (0 if shift_V is None else shift_V)
    for k in (0, 1, 10, 500, 510):
        tokens_UK, scores_UK = exact.search(USERS_UD, k)
        assert tokens_UK.shape == scores_UK.shape == (len(USERS_UD), k)
        best = np.argsort(-expected_UV, axis=1, kind="stable")[:, :k] + 1
        np.testing.assert_array_equal(tokens_UK[:, :500], best)
        assert (tokens_UK[:, 500:] == PAD).all()
        np.testing.assert_allclose(scores_UK[:, :500], np.take_along_axis(expected_UV, best - 1, axis=1), atol=1e-5)
        alone = [exact.search(user_D[None], k) for user_D in USERS_UD]
        np.testing.assert_array_equal(np.concatenate([tokens for tokens, _ in alone]), tokens_UK)
    assert exact.search(USERS_UD[:0], 10)[0].shape == (0, 10)
    assert "_faiss" not in vars(exact)


def test_exclusions_of_exact_search_may_repeat_and_name_what_there_is_not(tmp_path: Path) -> None:
    exact = ItemIndex.open(tmp_path, ITEMS, IndexChoice())
    best = exact.search(USERS_UD[:1], 500)[0][0]
    for without in (best[:3], np.array([*best[:3], best[0], PAD, 501, 9999], dtype=np.int32)):
        np.testing.assert_array_equal(exact.search(USERS_UD[:1], 497, [without])[0][0], best[3:])
    assert (exact.search(USERS_UD[:1], 5, [best])[0] == PAD).all()


def test_an_index_keeps_what_it_was_built_of() -> None:
    vectors = VECTORS_VD[1:].copy()
    built = ItemIndex.build(vectors)
    before = built.search(USERS_UD, 5)[0]
    vectors *= -1
    np.testing.assert_array_equal(built.search(USERS_UD, 5)[0], before)
