import numpy as np
import pytest
import torch

from recsys.dataset import Histories
from recsys.model.config import ModelConfig
from recsys.model.decoder import SequenceModel
from recsys.model.event_inputs import MOST_GAP, NO_GAP, EventInputsModel, gap_numbers, type_numbers
from recsys.model.reference import encode
from recsys.training import batches
from recsys.training.config import Recipe
from recsys.training.loop import Trainer, WindowStream
from recsys.windows import WindowConfig

SMALL = ModelConfig(width=16, num_layers=1, num_heads=2, head_dim=8, feedforward_width=16, dropout=0.0, init_std=0.2)
PURCHASE, RETURN = 0, 1


def histories(times_s: list[float], lengths: list[int], types: list[int] | None = None) -> Histories:
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.arange(1, len(times_s) + 1, dtype=np.int32)
    codes = np.array(types or [PURCHASE] * len(times_s), dtype=np.uint8)
    return Histories(
        [f"u{u}" for u in range(len(lengths))], offsets, tokens, (1000 * np.array(times_s)).astype(int), codes
    )


def filled_model() -> EventInputsModel:
    """With vectors as after some training: at the start those beside the item are zero."""
    torch.manual_seed(0)
    model = EventInputsModel(SMALL, 20, 32, [3, MOST_GAP]).eval()
    with torch.no_grad():
        for table in model.beside:
            table.weight[1:].normal_()
    return model


def rows(length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    highest = (20, 3, MOST_GAP)
    return torch.stack([torch.randint(1, 1 + n, (1, length), generator=generator) for n in highest], dim=2)


def test_a_gap_is_the_logarithm_of_the_seconds_since_the_event_before() -> None:
    # 0.5 s: 2 + ⌊log2 1.5⌋, 1 s: 2 + ⌊log2 2⌋, an hour: 2 + ⌊log2 3,601⌋; each user begins anew
    of_two = histories([5, 5.5, 6.5, 3606.5, 0, 4e9], [4, 2])
    assert gap_numbers(of_two).tolist() == [NO_GAP, 2, 3, 13, NO_GAP, MOST_GAP]


def test_users_without_events_leave_the_gaps_of_others_alone() -> None:
    assert gap_numbers(histories([0, 7, 0], [0, 2, 0, 1, 0])).tolist() == [NO_GAP, 5, NO_GAP]


def test_a_window_s_first_event_has_the_gap_that_it_has_in_the_history() -> None:
    of_one = histories([2.0**n for n in range(20)], [20])
    events = np.stack([of_one.tokens, gap_numbers(of_one)], axis=1)
    windows = batches.training_windows(of_one, WindowConfig(size=8, overlap_share=0.25))
    starts = []
    for batch in batches.epoch(events, windows, 8, np.random.default_rng(0), of_one.tokens):
        for row in batch.tokens_BL.numpy():
            start = int(row[0, 0]) - 1
            np.testing.assert_array_equal(row, events[start : start + len(row)])
            starts.append((start, int(row[0, 1])))
    assert sorted(starts)[:2] == [(0, NO_GAP), (6, 2 + 5)]  # 2⁶ − 2⁵ = 32 s


@pytest.mark.parametrize("column", [0, 1, 2], ids=["item", "type", "gap"])
def test_later_items_types_and_gaps_change_no_earlier_state(column: int) -> None:
    model, events = filled_model(), rows(12)
    changed = events.clone()
    changed[0, 7:, column] = changed[0, 7:, column] % 3 + 1
    with torch.inference_mode():
        before, after = model(events), model(changed)
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7], after[:, 7])


def test_encoding_together_is_encoding_alone() -> None:
    model = filled_model()
    windows = [rows(length)[0].numpy().astype(np.int32) for length in (3, 9, 10)]
    alone = np.concatenate([encode(model, [window]) for window in windows])
    np.testing.assert_allclose(encode(model, windows), alone, atol=1e-5)


def test_before_training_it_is_the_plain_model() -> None:
    models = []
    for kind, further in ((SequenceModel, ()), (EventInputsModel, ([3, MOST_GAP],))):
        torch.manual_seed(0)
        models.append(kind(SMALL, 20, 32, *further).eval())
    with torch.inference_mode():
        torch.testing.assert_close(models[0](rows(9)[:, :, 0]), models[1](rows(9)))


@pytest.mark.parametrize("reads_types", [True, False])
def test_a_return_is_told_from_a_purchase_by_its_type(reads_types: bool) -> None:
    """Items 1 … 3 are bought or sent back; 4 follows a purchase, 5 a return."""
    generator = np.random.default_rng(0)
    kinds = generator.integers(2, size=400)
    tokens = np.stack([generator.integers(1, 4, size=400), 4 + kinds], axis=1).astype(np.int32).ravel()
    types = np.stack([kinds, np.zeros_like(kinds)], axis=1).astype(np.uint8).ravel()
    train = Histories([str(u) for u in range(400)], 2 * np.arange(401), tokens, np.arange(800), types)
    training = {"learning_rate": 0.02, "warmup_steps": 5, "batch_tokens": 64, "num_negatives": 0}
    recipe = Recipe.from_mapping({"model": SMALL, "window": {"size": 4}, "training": training}, "test")
    torch.manual_seed(0)
    model: SequenceModel = EventInputsModel(SMALL, 5, 4, [2]) if reads_types else SequenceModel(SMALL, 5, 4)
    events = np.stack([tokens, type_numbers(train)], axis=1) if reads_types else tokens
    stream = WindowStream(train, recipe, np.random.default_rng(0), events)
    Trainer(model, recipe, torch.ones(5), horizon=10).train(stream, 100)
    bought, returned = (np.array([[1, 1 + kind]], dtype=np.int32) for kind in (PURCHASE, RETURN))
    windows = [bought, returned] if reads_types else [bought[:, 0], returned[:, 0]]
    scores_2V = encode(model, windows) @ model.items_VD.detach().numpy().T
    found = (1 + scores_2V.argmax(axis=1)).tolist()
    assert (found == [4, 5]) == reads_types
