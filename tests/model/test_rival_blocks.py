import math

import pytest
import torch

from recsys.model.config import ModelConfig
from recsys.model.decoder import SequenceModel
from recsys.model.rival_blocks import FIRST_SCALE, CosineModel, GatedModel, HstuModel

SMALL = ModelConfig(width=16, num_layers=2, num_heads=2, head_dim=8, feedforward_width=24, dropout=0.0, init_std=0.2)


@pytest.fixture(params=[CosineModel, GatedModel, HstuModel])
def model(request: pytest.FixtureRequest) -> SequenceModel:
    torch.manual_seed(0)
    built: SequenceModel = request.param(SMALL, num_items=20, max_length=32).eval()
    return built


def test_later_events_do_not_change_earlier_states(model: SequenceModel) -> None:
    tokens = torch.randint(1, 21, (1, 12), generator=torch.Generator().manual_seed(1))
    changed = tokens.clone()
    changed[0, 7:] = tokens[0, 7:] % 20 + 1
    with torch.inference_mode():
        before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7], after[:, 7])


def test_a_state_does_not_depend_on_how_long_the_row_is(model: SequenceModel) -> None:
    tokens = torch.randint(1, 21, (2, 9))
    with torch.inference_mode():
        torch.testing.assert_close(model(torch.nn.functional.pad(tokens, (0, 6)))[:, :9], model(tokens))


def test_the_order_of_events_matters(model: SequenceModel) -> None:
    with torch.inference_mode():
        first, swapped = model(torch.tensor([[1, 2, 3, 4]])), model(torch.tensor([[2, 1, 3, 4]]))
    assert not torch.allclose(first[:, -1], swapped[:, -1])


def test_every_weight_is_trained(model: SequenceModel) -> None:
    states = model(torch.randint(1, 21, (2, 9)))
    torch.nn.functional.cross_entropy((states @ model.items_VD.T).flatten(0, 1), torch.arange(18)).backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().max() > 0, name


def test_a_cosine_score_is_the_scale_at_most() -> None:
    model = CosineModel(SMALL, 20, 32)
    scores = model(torch.randint(1, 21, (2, 9))) @ model.items_VD.T
    assert scores.abs().max() <= FIRST_SCALE * 1.0001


def test_a_closed_gate_adds_nothing() -> None:
    model = GatedModel(SMALL, 20, 32).eval()
    for layer in model.decoder.layers:
        for gate in (layer.of_attention, layer.of_feed_forward):
            torch.nn.init.constant_(gate.bias, -1e4)
    embedded = torch.randn(1, 5, 16)
    with torch.inference_mode():
        torch.testing.assert_close(model.decode(embedded), model.decoder.norm(embedded))


def test_a_transduction_unit_by_hand() -> None:
    """One head; event i sums silu(q·k + bias of the distance) v over the events up to it, divided by their number."""
    torch.manual_seed(0)
    config = SMALL.model_copy(update={"num_heads": 1, "head_dim": 4})
    unit = HstuModel(config, 20, 8).decoder[0]
    torch.nn.init.normal_(unit.distance_HL)
    hidden = torch.randn(1, 6, 16)
    with torch.inference_mode():
        found = unit(hidden)[0]
        spread = unit.spread(unit.norm(hidden))[0]
        gate, value, query, key = (spread / (1 + torch.exp(-spread))).split(4, dim=1)
        for i in range(6):
            attended = torch.zeros(4)
            for j in range(i + 1):
                score = float(query[i] @ key[j] + unit.distance_HL[0, i - j])
                attended += score / (1 + math.exp(-score)) * value[j] / (i + 1)
            expected = hidden[0, i] + unit.project(unit.attended_norm(attended) * gate[i])
            torch.testing.assert_close(found[i], expected)
