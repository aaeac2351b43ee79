import numpy as np
import torch

from recsys import transitions
from recsys.dataset import Histories
from recsys.model import spectral


def vectors(tokens: list[int], num_items: int, width: int) -> torch.Tensor:
    fit = Histories(["u"], np.array([0, len(tokens)]), np.array(tokens, dtype=np.int32), np.arange(len(tokens)))
    counts = transitions.count(fit, num_items)
    return spectral.item_vectors(counts, width, 0.05, torch.Generator().manual_seed(0))


def test_items_that_stand_together_point_the_same_way() -> None:
    # two walks that never meet: 1 2 3 and 4 5 6
    found = torch.nn.functional.normalize(vectors([1, 2, 3] * 30 + [4, 5, 6] * 30, 6, 2)[1:], dim=1)
    alike = found @ found.T
    assert alike[:3, :3].min() > 0.9
    assert alike[3:, 3:].min() > 0.9
    assert alike[:3, 3:].max() < 0.5


def test_the_spread_is_as_asked_and_lonely_items_are_small_but_not_zero() -> None:
    found = vectors([1, 2, 3] * 10, 5, 4)
    assert found.shape == (6, 4)
    torch.testing.assert_close(found[1:4].std(), torch.tensor(0.05), rtol=0.3, atol=0)
    assert 0 < found[4:].abs().max() < 0.03


def test_more_width_than_items_and_no_counts_at_all_are_no_trouble() -> None:
    assert vectors([1, 2, 1, 2], 2, 8).isfinite().all()
    assert vectors([1], 2, 8).isfinite().all()


def test_the_same_seed_gives_the_same_vectors() -> None:
    torch.testing.assert_close(vectors([1, 2, 3] * 9, 4, 4), vectors([1, 2, 3] * 9, 4, 4), rtol=0, atol=0)
