"""Where two engines come apart is found by layer, whatever they compute on."""

from copy import deepcopy

import numpy as np
import pytest
import torch

from recsys.contracts.precision import CacheFormat, ItemFormat
from recsys.model.config import ModelConfig
from recsys.model.decoder import SequenceModel
from recsys.runtime import consistency, layers
from recsys.runtime.consistency import Consistency, Reference, Tolerance
from recsys.runtime.cuda import CudaEngine
from recsys.runtime.index import ItemIndex
from recsys.runtime.items import ItemTable
from recsys.windows import WindowConfig

NUM_ITEMS, WINDOW = 40, 16
CONFIG = ModelConfig(width=32, num_layers=3, num_heads=2, head_dim=16, feedforward_width=48, init_std=0.2)


@pytest.fixture(scope="module")
def model() -> SequenceModel:
    torch.manual_seed(0)
    return SequenceModel(CONFIG, NUM_ITEMS, WINDOW).eval()


def engine(model: SequenceModel, cache: CacheFormat = CacheFormat.FLOAT32) -> CudaEngine:
    items = ItemTable.of(model.embedding.weight.detach().numpy(), ItemFormat.FLOAT32)
    return CudaEngine(model, items, window_size=WINDOW, cache=cache, precision="float32", device="cpu")


def damaged(model: SequenceModel, layer: int, part: str) -> SequenceModel:
    """A copy in which one matrix of one layer, from 1, is 10 % too large."""
    copy = deepcopy(model)
    with torch.no_grad():
        copy.decoder.layers[layer - 1].get_submodule(part).weight.mul_(1.1)
    return copy


def compared(model: SequenceModel, other: CudaEngine) -> Consistency:
    index = ItemIndex.build(model.items_VD.detach().numpy())
    windows = consistency.random_windows(np.ones(NUM_ITEMS + 1), WindowConfig(size=WINDOW))
    return consistency.compare(
        Reference.of(engine(model), index, windows, "0" * 64, by_layer=True), other, index, Tolerance()
    )


def test_equal_engines_agree_in_every_layer(model: SequenceModel) -> None:
    found = compared(model, engine(model))
    assert [row.layer for row in found.by_layer] == [1, 2, 3]
    assert max(max(row.keys, row.values, row.appended_keys, row.appended_values) for row in found.by_layer) < 1e-5


@pytest.mark.parametrize(
    ("part", "first"), [("mlp.down_proj", 3), ("self_attn.o_proj", 3), ("post_attention_layernorm", 3)]
)
def test_a_layer_that_goes_wrong_shows_in_what_the_next_one_keeps(model: SequenceModel, part: str, first: int) -> None:
    found = compared(model, engine(damaged(model, 2, part)))
    for row in found.by_layer:
        errors = (row.keys, row.values, row.appended_keys, row.appended_values)
        assert (min(errors) > 1e-3) if row.layer >= first else (max(errors) < 1e-5)
    assert found.max_relative_error > 1e-3


def test_values_that_go_wrong_show_in_their_own_layer(model: SequenceModel) -> None:
    first, second, third = compared(model, engine(damaged(model, 2, "self_attn.v_proj"))).by_layer
    assert max(first.keys, first.values, second.keys) < 1e-5
    assert second.values == pytest.approx(0.1, rel=1e-3)  # 10 % too large, as it was damaged
    assert third.keys > 1e-3


def test_the_last_layer_shows_in_the_user_vector_alone(model: SequenceModel) -> None:
    found = compared(model, engine(damaged(model, 3, "mlp.down_proj")))
    assert max(max(row.keys, row.values) for row in found.by_layer) < 1e-5
    assert found.max_relative_error > 1e-3


def test_only_appends_that_go_wrong_show_only_there(model: SequenceModel) -> None:
    other, wrong = engine(model), engine(damaged(model, 1, "mlp.down_proj"))
    other._modules = [other._modules[0], wrong._modules[1]]
    second = compared(model, other).by_layer[1]
    assert max(second.keys, second.values) < 1e-5
    assert min(second.appended_keys, second.appended_values) > 1e-3


@pytest.mark.parametrize(
    ("cache", "least", "most"),
    [(CacheFormat.FLOAT16, 1e-5, 1e-3), (CacheFormat.BF16, 1e-3, 4e-3), (CacheFormat.INT8, 1e-3, 2e-2)],
)
def test_how_sessions_are_kept_is_part_of_what_is_compared(model: SequenceModel, cache, least, most) -> None:
    for row in compared(model, engine(model, cache)).by_layer:
        assert least < row.keys < most
        assert least < row.values < most


def test_values_of_a_float_model_are_compared_in_the_units_of_the_engine() -> None:
    generator = np.random.default_rng(0)
    windows = [generator.normal(size=(length, 4, 2, 3)).astype(np.float32) for length in (5, 9)]
    units = np.ones((4, 2, 3), dtype=np.float32)
    units[1], units[3, 0] = 0.5, [1, 2, 4]  # values of both layers
    windows[0][:, 3, 1, 2] = windows[1][:, 3, 1, 2] = 0  # a channel that is never used
    engine_s = [window * units for window in windows]
    for ours, theirs in zip(layers.in_units_of(engine_s, windows), engine_s, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    keys = layers.in_units_of([2 * window for window in windows], windows)[0][:, ::2]
    np.testing.assert_array_equal(keys, windows[0][:, ::2])  # keys have no unit to choose
