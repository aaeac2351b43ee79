import pytest
import torch

from recsys.model.config import ModelConfig
from recsys.model.decoder import SequenceModel
from recsys.model.long_range import BandedModel, SummaryModel
from recsys.windows import WindowConfig, cut

SMALL = ModelConfig(width=16, num_layers=2, num_heads=2, head_dim=8, feedforward_width=24, dropout=0.0, init_std=0.2)
WINDOW = WindowConfig(size=10, overlap_share=0.3, num_summaries=2)  # stride 7


def summary_model() -> SummaryModel:
    torch.manual_seed(0)
    return SummaryModel(SMALL, 20, WINDOW, num_tokens=3).eval()


def influence(model: SequenceModel, length: int, last: int) -> list[bool]:
    """Which events change the state after event `last`."""
    tokens = torch.randint(1, 21, (1, length), generator=torch.Generator().manual_seed(1))
    changed = tokens.repeat(length, 1)
    changed[torch.arange(length), torch.arange(length)] = tokens[0] % 20 + 1
    with torch.inference_mode():
        difference = (model(changed)[:, last] - model(tokens)[0, last]).abs().amax(dim=1)
    return (difference > 1e-6).tolist()


def test_an_event_reaches_back_by_the_summaries_of_two_windows_and_no_further() -> None:
    # windows [0, 10), [7, 17), [14, 24), [21, 31): event 30 is in the fourth and reads the summaries from event 7 on
    assert influence(summary_model(), 35, 30) == [7 <= event <= 30 for event in range(35)]


def test_a_summary_depends_on_its_own_window_alone() -> None:
    model = summary_model()
    events = torch.randn(1, 3, 10, 16)
    with torch.inference_mode():
        together = model._summaries(events)
        alone = model._summaries(events[:, 1:2])
    torch.testing.assert_close(together[:, 1:2], alone)


@pytest.mark.parametrize("length", [1, 10, 11, 17, 24])
def test_a_row_gives_a_state_for_each_event_however_it_is_padded(length: int) -> None:
    model = summary_model()
    tokens = torch.randint(1, 21, (2, length))
    padded = torch.nn.functional.pad(tokens, (0, 9))
    with torch.inference_mode():
        states = model(tokens)
        assert states.shape == (2, length, 16)
        torch.testing.assert_close(model(padded)[:, :length], states, rtol=1e-4, atol=1e-5)


def test_the_row_of_the_last_windows_gives_what_the_whole_history_gives() -> None:
    model = summary_model()
    tokens = torch.randint(1, 21, (1, 40))
    start = cut(40, WINDOW)[-1 - WINDOW.num_summaries].start
    with torch.inference_mode():
        torch.testing.assert_close(model(tokens[:, start:])[0, -1], model(tokens)[0, -1], rtol=1e-4, atol=1e-5)


def test_gradients_flow_into_the_summaries() -> None:
    model = summary_model()
    model(torch.randint(1, 21, (2, 24))).square().sum().backward()
    for weight in (model.query_MD, model.absent_MD, model.project.weight):
        assert weight.grad is not None
        assert weight.grad.abs().max() > 0


def test_a_band_reaches_back_one_window_a_layer() -> None:
    torch.manual_seed(0)
    model = BandedModel(SMALL, 20, 64, band=5).eval()
    # two layers, four events before each: 8 events before event 20
    assert influence(model, 24, 20) == [12 <= event <= 20 for event in range(24)]
