import numpy as np
import pytest

from recsys import transitions
from recsys.contracts import packing
from recsys.contracts.errors import ArtifactError
from recsys.dataset import Histories
from recsys.transitions import SMOOTHING, TransitionTable

FIT = Histories(["a", "b"], np.array([0, 3, 5]), np.array([1, 2, 1, 2, 3], dtype=np.int32), np.arange(5))
"""a: 1 2 1, b: 2 3."""


def test_counts_by_hand() -> None:
    # a: 1→2 at 1, 1→1 at 2 (1/2), 2→1 at 1; b: 2→3 at 1; nothing crosses from a to b
    expected = np.zeros((4, 4))
    expected[1, 2], expected[1, 1], expected[2, 1], expected[2, 3] = 1, 0.5, 1, 1
    np.testing.assert_allclose(transitions.count(FIT, 3).toarray(), expected)


def test_reach_is_the_largest_distance() -> None:
    assert transitions.count(FIT, 3, reach=1).toarray()[1, 1] == 0


def test_the_table_is_the_smoothed_share_of_a_row() -> None:
    items, values = TransitionTable.fit(FIT, 3).likely_next(np.array([2], dtype=np.int32))
    assert items.tolist() == [1, 3]
    assert values.tolist() == pytest.approx([1 / (2 + SMOOTHING)] * 2, rel=1e-3)


def test_several_last_events_add_up_by_age() -> None:
    items, values = TransitionTable.fit(FIT, 3).likely_next(np.array([1, 2], dtype=np.int32))
    row_1, row_2 = 1.5 + SMOOTHING, 2 + SMOOTHING
    expected = {1: 1 / row_2 + 0.5 * 0.5 / row_1, 2: 0.5 / row_1, 3: 1 / row_2}
    assert dict(zip(items.tolist(), values.tolist(), strict=True)) == pytest.approx(expected, rel=1e-3)


def test_only_the_likeliest_successors_are_kept() -> None:
    fit = Histories(["a"], np.array([0, 7]), np.array([1, 2, 1, 2, 1, 3, 2], dtype=np.int32), np.arange(7))
    items, _ = TransitionTable.fit(fit, 3, max_successors=1).likely_next(np.array([1], dtype=np.int32))
    assert items.tolist() == [2]


def test_nothing_follows_an_empty_history_or_an_item_without_counts() -> None:
    table = TransitionTable.fit(FIT, 3)
    for history in ([], [3]):
        assert table.likely_next(np.array(history, dtype=np.int32))[0].tolist() == []


@pytest.mark.parametrize("packed", [True, False])
def test_a_table_is_read_as_it_was_written(tmp_path, packed: bool) -> None:
    table = TransitionTable.fit(FIT, 3)
    table.save(tmp_path, packed=packed)
    again = TransitionTable.load(tmp_path)
    assert again.num_items == 3
    for history in ([1], [2, 1], [3, 2, 1]):
        tokens = np.array(history, dtype=np.int32)
        np.testing.assert_array_equal(table.likely_next(tokens), again.likely_next(tokens))


@pytest.mark.parametrize("num_items", [2**16 - 2, 2**16 + 2])
def test_a_packed_table_of_many_items_loses_nothing_and_is_a_third_as_large(tmp_path, num_items: int) -> None:
    generator = np.random.default_rng(0)
    successors = [np.sort(generator.choice(num_items, 8, replace=False) + 1) for _ in range(2000)]
    offsets = np.minimum(np.arange(num_items + 2), 2000) * 8
    probabilities = generator.choice([0.1, 0.05, 0.01], 16_000).astype(np.float16)
    table = TransitionTable(offsets, np.concatenate(successors).astype(np.int32), probabilities)
    for packed in (True, False):
        (tmp_path / str(packed)).mkdir()
        table.save(tmp_path / str(packed), packed=packed)
    again = TransitionTable.load(tmp_path / "True")
    for token in (0, 1, 1999, num_items):
        history = np.array([token], dtype=np.int32)
        np.testing.assert_array_equal(table.likely_next(history), again.likely_next(history))
    sizes = [packing.found(tmp_path / str(p) / TransitionTable.FILE_NAME).stat().st_size for p in (True, False)]
    assert sizes[0] < sizes[1] / 3


def test_a_damaged_table_is_refused(tmp_path) -> None:
    (tmp_path / TransitionTable.FILE_NAME).write_bytes(b"nonsense")
    with pytest.raises(ArtifactError, match="not a transition table"):
        TransitionTable.load(tmp_path)
    packing.place(tmp_path / TransitionTable.FILE_NAME, packed=True).write_bytes(b"nonsense")
    with pytest.raises(ArtifactError, match=r"safetensors.gz: damaged"):
        TransitionTable.load(tmp_path)
