import faiss
import numpy as np
import pytest

from optimize import index
from optimize.index import IndexConfig
from recsys.contracts.errors import ConfigError
from recsys.contracts.ids import PAD
from recsys.contracts.precision import ItemFormat
from recsys.runtime.fusion import Fusion, evidence, search
from recsys.runtime.index import INDEX_FILE, IndexChoice, IndexKind, ItemIndex
from recsys.runtime.items import ItemTable
from recsys.transitions import TransitionTable

NUM_ITEMS, WIDTH = 3000, 16


def random_items() -> ItemTable:
    """Items in loose clusters."""
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((40, WIDTH))
    vectors = centres[generator.integers(40, size=NUM_ITEMS + 1)] + 2.0 * generator.standard_normal(
        (NUM_ITEMS + 1, WIDTH)
    )
    vectors[PAD] = 0
    return ItemTable.of(vectors.astype(np.float32), ItemFormat.FLOAT32)


ITEMS = random_items()
USERS = np.random.default_rng(2).standard_normal((200, WIDTH)).astype(np.float32)


@pytest.mark.parametrize("storage", ["float32", "int8"])
def test_lists_find_what_they_must_and_say_how_much(tmp_path, storage: str) -> None:
    said = index.build(ITEMS, USERS, IndexConfig(kind="ivf", storage=storage), tmp_path)
    choice = IndexChoice(**said["choice"])
    assert (choice.kind, choice.storage) == (IndexKind.IVF, storage)
    assert choice.num_probed < choice.num_lists
    assert said["recall@100"] >= 0.99 > said["tried"][0]["recall@100"]
    exact = ItemIndex.build(ITEMS.vectors_VD()).search(USERS, 100)[0]
    opened = ItemIndex.open(tmp_path, ITEMS, choice)
    shares = [len(np.intersect1d(*pair)) / 100 for pair in zip(opened.search(USERS, 100)[0], exact, strict=True)]
    assert np.mean(shares) == pytest.approx(said["recall@100"], abs=1e-5)


@pytest.mark.parametrize(("exact_ms", "kind"), [(5.0, "ivf"), (1.0, "exact"), (2.0, "exact")])
def test_lists_are_taken_where_they_take_less_time(tmp_path, monkeypatch, exact_ms: float, kind: str) -> None:
    def p50_ms(searched: ItemIndex, _) -> float:
        return exact_ms if searched._choice.kind is IndexKind.EXACT else 2.0

    monkeypatch.setattr(index, "_p50_ms", p50_ms)
    said = index.build(ITEMS, USERS, IndexConfig(exact_up_to=1000), tmp_path)
    assert said["choice"]["kind"] == kind
    assert (tmp_path / INDEX_FILE).exists() == (kind == "ivf")
    assert said["tried"][0]["p50_ms"] == 2.0


def test_a_small_catalogue_is_searched_exactly(tmp_path) -> None:
    said = index.build(ITEMS, USERS, IndexConfig(), tmp_path)
    assert (said["choice"]["kind"], said["recall@100"], said["tried"]) == ("exact", 1.0, [])
    assert not (tmp_path / INDEX_FILE).exists()


def test_lists_that_cannot_reach_the_recall_give_way_to_exact_search(tmp_path) -> None:
    generator = np.random.default_rng(1)
    alike = np.repeat(generator.standard_normal((1, WIDTH)), NUM_ITEMS + 1, axis=0)
    alike += 1e-4 * generator.standard_normal(alike.shape)  # finer than 8 bits between a far outlier and the rest
    alike[1] *= 1000
    items = ItemTable.of(alike.astype(np.float32), ItemFormat.FLOAT32)
    for kind in ("auto", "ivf"):
        said = index.build(items, USERS, IndexConfig(kind=kind, storage="int8"), tmp_path)
        assert all(tried["recall@100"] < 0.99 for tried in said["tried"])
        assert said["tried"][-1]["storage"] == "int8"  # nor does exact search among rounded rows
        assert (said["choice"]["kind"], said["choice"]["storage"]) == ("exact", "float32")
        assert said["recall@100"] == 1.0


@pytest.mark.parametrize("storage", ["float32", "int8"])
def test_scores_are_exact_however_candidates_are_found(tmp_path, storage: str) -> None:
    said = index.build(ITEMS, USERS, IndexConfig(kind="ivf", storage=storage), tmp_path)
    tokens, scores = ItemIndex.open(tmp_path, ITEMS, IndexChoice(**said["choice"])).search(USERS[:3], 10)
    expected = np.einsum("bkd,bd->bk", ITEMS.embed(tokens), USERS[:3])
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    assert (np.diff(scores, axis=1) <= 0).all()


def test_popular_items_with_long_vectors_are_found_in_few_lists(tmp_path) -> None:
    """As trained vectors are: the more popular, the longer, all in about the direction that users look in."""
    generator = np.random.default_rng(4)
    towards = generator.standard_normal(WIDTH)
    towards /= np.linalg.norm(towards)
    popularity = np.abs(generator.standard_normal((NUM_ITEMS + 1, 1))) ** 1.5
    noise = generator.standard_normal((NUM_ITEMS + 1, WIDTH)) * (0.3 + 0.3 * popularity)
    items = ItemTable.of((3 * popularity * towards + noise).astype(np.float32), ItemFormat.FLOAT32)
    users = (2 * towards + 0.5 * generator.standard_normal((200, WIDTH))).astype(np.float32)
    said = index.build(items, users, IndexConfig(kind="ivf"), tmp_path)
    assert said["choice"]["num_probed"] <= said["choice"]["num_lists"] / 4  # by direction it takes most of them


def test_lists_of_releases_of_before_are_searched_by_inner_products(tmp_path) -> None:
    rows = ITEMS.vectors_VD()
    old = faiss.IndexIVFFlat(faiss.IndexFlatIP(WIDTH), WIDTH, 8, faiss.METRIC_INNER_PRODUCT)
    old.train(rows)
    old.add(rows)
    faiss.write_index(old, str(tmp_path / INDEX_FILE))
    opened = ItemIndex.open(tmp_path, ITEMS, IndexChoice(kind=IndexKind.IVF, num_lists=8, num_probed=8))
    np.testing.assert_array_equal(opened.search(USERS, 10)[0], ItemIndex.build(rows).search(USERS, 10)[0])


def test_excluded_items_stay_out_and_the_whole_catalogue_can_be_asked_for(tmp_path) -> None:
    said = index.build(ITEMS, USERS, IndexConfig(kind="ivf"), tmp_path)
    opened = ItemIndex.open(tmp_path, ITEMS, IndexChoice(**said["choice"]))
    best = opened.search(USERS[:1], 5)[0][0]
    tokens = opened.search(USERS[:1], NUM_ITEMS, [best])[0][0]
    assert sorted(tokens[tokens != PAD]) == sorted(set(range(1, NUM_ITEMS + 1)) - set(best.tolist()))


def test_an_index_without_selectors_leaves_the_same_items_out(monkeypatch) -> None:
    from recsys.runtime import index as runtime_index

    monkeypatch.setattr(runtime_index, "_on_gpu", lambda same: same)  # searched without selectors, as faiss-gpu must be
    exact = ItemIndex.build(ITEMS.vectors_VD())
    without = [exact.search(USERS[:1], 7)[0][0][::2]]
    like_a_gpu = ItemIndex(IndexChoice(device="gpu"), ITEMS)
    for k in (5, NUM_ITEMS):
        expected, found = exact.search(USERS[:1], k, without), like_a_gpu.search(USERS[:1], k, without)
        np.testing.assert_array_equal(found[0], expected[0])


def test_lists_on_a_gpu_are_looked_at_as_many_at_a_time_as_on_the_cpu(tmp_path, monkeypatch) -> None:
    from recsys.runtime import index as runtime_index

    monkeypatch.setattr(runtime_index, "_on_gpu", lambda same: same)
    found = {}
    for device in ("cpu", "gpu"):
        (tmp_path / device).mkdir()
        said = index.build(ITEMS, USERS, IndexConfig(kind="ivf", device=device), tmp_path / device)
        found[device] = [(row["num_probed"], row["recall@100"]) for row in said["tried"]]
        assert said["choice"]["kind"] == "ivf"
        choice = IndexChoice(**said["choice"])
        opened = ItemIndex.open(tmp_path / device, ITEMS, choice)
        best = opened.search(USERS[:1], 5)[0]
        whole = opened.search(USERS[:1], NUM_ITEMS, [best[0]])[0][0]
        assert (whole != PAD).sum() == NUM_ITEMS - 5
    assert found["gpu"] == found["cpu"]
    assert len(found["cpu"]) > 1


def test_a_gpu_index_without_a_gpu_says_what_it_needs() -> None:
    with pytest.raises(ConfigError, match=r"needs a GPU and the extra: pip install .*faiss-gpu.*; use device = cpu"):
        ItemIndex.open(None, ITEMS, IndexChoice(device="gpu"))


@pytest.mark.parametrize("storage", ["float32", "int8"])
def test_shifted_items_stand_where_exact_search_puts_them(tmp_path, storage: str) -> None:
    shift_V = np.where(np.arange(NUM_ITEMS) < NUM_ITEMS - 100, 0, -3).astype(np.float32)
    config = IndexConfig(kind="ivf", storage=storage, min_recall=1.0)
    said = index.build(ITEMS, USERS, config, tmp_path, shift_V=shift_V)
    opened = ItemIndex.open(tmp_path, ITEMS, IndexChoice(**said["choice"]), shift_V)
    exact = ItemIndex.build(ITEMS.vectors_VD(), shift_V)
    np.testing.assert_allclose(opened.search(USERS, 10)[1], exact.search(USERS, 10)[1], rtol=1e-4)
    some = np.array([1, NUM_ITEMS], dtype=np.int32)
    np.testing.assert_allclose(opened.scores(USERS[0], some), ITEMS.embed(some) @ USERS[0] + [0, -3], rtol=1e-4)
    np.testing.assert_array_equal(opened.vectors(some), ITEMS.embed(some))


@pytest.mark.parametrize("storage", ["float32", "int8"])
def test_fused_lists_are_those_of_exact_search_where_items_are_shifted(tmp_path, storage: str) -> None:
    """Items of the history, of which counts know, and all others have their shifts, once each."""
    shift_V = np.random.default_rng(5).normal(scale=3, size=NUM_ITEMS).astype(np.float32)
    said = index.build(
        ITEMS, USERS, IndexConfig(kind="ivf", storage=storage, min_recall=1.0), tmp_path, shift_V=shift_V
    )
    opened = ItemIndex.open(tmp_path, ITEMS, IndexChoice(**said["choice"]), shift_V)
    exact = ItemIndex.build(ITEMS.vectors_VD(), shift_V)
    nothing = np.empty(0, dtype=np.int32)
    table = TransitionTable(np.zeros(NUM_ITEMS + 2, dtype=np.int64), nothing, np.empty(0, dtype=np.float16))
    histories = exact.search(USERS, 30)[0][:, ::3]
    for user, history in enumerate(histories[:50]):
        known = evidence(history, table)
        lists = [search(each, USERS[user : user + 1], known, 10, nothing, Fusion(base=0.1)) for each in (opened, exact)]
        np.testing.assert_array_equal(lists[0][0], lists[1][0])
        np.testing.assert_allclose(lists[0][1], lists[1][1], rtol=1e-4)


def test_the_nearest_by_inner_products_alone_are_found_by_an_index_with_shifts(tmp_path) -> None:
    shift_V = np.random.default_rng(5).normal(scale=3, size=NUM_ITEMS).astype(np.float32)
    said = index.build(ITEMS, USERS, IndexConfig(kind="ivf", min_recall=1.0), tmp_path, shift_V=shift_V)
    opened = ItemIndex.open(
        tmp_path, ITEMS, IndexChoice(**said["choice"]).model_copy(update={"num_probed": 64}), shift_V
    )
    found = opened.search(USERS, 10, is_shifted=False)
    expected = ItemIndex.build(ITEMS.vectors_VD()).search(USERS, 10)
    assert np.mean(found[0] == expected[0]) > 0.99
    np.testing.assert_allclose(found[1][:, 0], expected[1][:, 0], rtol=1e-4)
