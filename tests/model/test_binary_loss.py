import math

import pytest
import torch

from recsys.model.binary_loss import BinaryLoss


@pytest.mark.parametrize("is_shared", [True, False])
def test_the_loss_is_the_formula(is_shared: bool) -> None:
    hidden, items = torch.randn((6, 4), dtype=torch.float64), torch.randn((9, 4), dtype=torch.float64)
    targets = torch.tensor([0, 3, 8, 3, 5, 1])
    loss = BinaryLoss(num_negatives=7, calibration=0.75, is_shared=is_shared)
    torch.manual_seed(3)
    found = float(loss(hidden, items, targets))
    torch.manual_seed(3)
    drawn = torch.randint(9 if is_shared else 8, (1 if is_shared else 6, 7))
    rate = 7 / 8
    beta = rate * (0.75 * (1 - 1 / rate) + 1 / rate)
    total, seen = 0.0, 0
    for n, target in enumerate(targets.tolist()):
        row = drawn[0 if is_shared else n].tolist()
        negatives = [v for v in row if v != target] if is_shared else [v + (v >= target) for v in row]
        seen += len(row) - len(negatives)
        total -= math.log(sigmoid(float(hidden[n] @ items[target])) ** beta)
        total -= sum(math.log(1 - sigmoid(float(hidden[n] @ items[v]))) for v in negatives)
    assert found == pytest.approx(total / 6 / 8)
    assert (seen > 0) == is_shared  # the draw holds a target, so that leaving it out is tested


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_the_weight_of_the_target_goes_from_one_to_the_rate_of_sampling() -> None:
    betas = [BinaryLoss(num_negatives=10, calibration=t, is_shared=True).beta(101) for t in (0, 0.75, 1)]
    assert betas == pytest.approx([1, 0.1 * (0.75 * (1 - 10) + 10), 0.1])


@pytest.mark.parametrize(("calibration", "calibrated"), [(1.0, True), (0.0, False)])
def test_at_full_calibration_the_best_scores_give_the_true_probabilities(calibration: float, calibrated: bool) -> None:
    """One context; the next item is drawn with these chances. Free scores are fitted to many draws."""
    chances = torch.tensor([0.5, 0.3, 0.1, 0.06, 0.04])
    targets = torch.repeat_interleave(torch.arange(5), (200 * chances).round().long())
    torch.manual_seed(0)
    scores_V1 = torch.zeros((5, 1), requires_grad=True)
    optimizer = torch.optim.Adam([scores_V1], lr=0.05)
    loss = BinaryLoss(num_negatives=1, calibration=calibration, is_shared=False)
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 400)
        optimizer.zero_grad()
        loss(torch.ones((len(targets), 1)), scores_V1, targets).backward()
        optimizer.step()
    error = (scores_V1.detach()[:, 0].sigmoid() - chances).abs().max()
    assert (error < 0.03) == calibrated
