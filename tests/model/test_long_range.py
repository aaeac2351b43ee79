import pytest
import torch

from recsys.contracts.precision import CacheFormat
from recsys.model.config import ModelConfig
from recsys.model.decoder import SequenceModel
from recsys.model.long_range import BandedModel, OpenBand, RollingCache

SMALL = ModelConfig(width=16, num_layers=2, num_heads=2, head_dim=8, feedforward_width=24, dropout=0.0, init_std=0.2)


def influence(model: SequenceModel, length: int, last: int) -> list[bool]:
    """Which events change the state after event `last`."""
    tokens = torch.randint(1, 21, (1, length), generator=torch.Generator().manual_seed(1))
    changed = tokens.repeat(length, 1)
    changed[torch.arange(length), torch.arange(length)] = tokens[0] % 20 + 1
    with torch.inference_mode():
        difference = (model(changed)[:, last] - model(tokens)[0, last]).abs().amax(dim=1)
    return (difference > 1e-6).tolist()


def test_a_band_reaches_back_one_window_a_layer() -> None:
    torch.manual_seed(0)
    model = BandedModel(SMALL, 20, 64, band=5).eval()
    # two layers, four events before each: 8 events before event 20
    assert influence(model, 24, 20) == [12 <= event <= 20 for event in range(24)]


@pytest.mark.parametrize("num_opened", [1, 3, 5, 13])
@torch.inference_mode()
def test_a_rolling_cache_continues_a_band_as_one_pass_over_all_events_does(num_opened: int) -> None:
    torch.manual_seed(0)
    model = BandedModel(SMALL, 20, 16, band=5).eval()
    embedded_2LD = torch.randn(2, 24, 16)  # more events than the model's longest row
    expected_2LD = model.decode(embedded_2LD)
    vector_2D, *kept = OpenBand(model, CacheFormat.FLOAT32)(embedded_2LD[:, :num_opened])
    cache = RollingCache(model, CacheFormat.FLOAT32, num_rows=4)
    cache.fill(kept, num_opened)
    vectors = [vector_2D, *(cache.append(embedded_2LD[:, n : n + 1], n) for n in range(num_opened, 24))]
    torch.testing.assert_close(torch.stack(vectors, dim=1), expected_2LD[:, num_opened - 1 :], atol=1e-4, rtol=0)
    assert {rows.shape for rows in cache.rows} == {(2, 4, 2, 8)}
