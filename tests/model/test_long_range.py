import torch

from recsys.model.config import ModelConfig
from recsys.model.decoder import SequenceModel
from recsys.model.long_range import BandedModel

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
