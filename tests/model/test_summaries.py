import math

import numpy as np
import pytest
import torch
from torch import nn

from recsys.contracts.ids import PAD
from recsys.model.decoder import SequenceModel
from recsys.model.loss import summary_loss
from recsys.model.reference import encode
from recsys.model.summaries import SummaryModel, build_model
from recsys.windows import WindowConfig, answer_context, cut, num_windows
from tests.model.test_long_range import SMALL, influence

WINDOW = WindowConfig(size=10, overlap_share=0.3, num_summaries=2, summary_tokens=3)  # stride 7


def summary_model() -> SummaryModel:
    torch.manual_seed(0)
    return SummaryModel(SMALL, 20, WINDOW).eval()


def test_an_event_reaches_back_by_the_summaries_of_two_windows_and_no_further() -> None:
    # windows [0, 10), [7, 17), [14, 24), [21, 31): event 30 is in the fourth and reads the summaries from event 7 on
    assert influence(summary_model(), 35, 30) == [7 <= event <= 30 for event in range(35)]


def test_a_summary_depends_on_its_own_window_alone() -> None:
    model = summary_model()
    events = torch.randn(3, 10, 16)
    with torch.inference_mode():
        together = model.summaries(events)
        alone = model.summaries(events[1:2])
    torch.testing.assert_close(together[1:2], alone)


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
    for weight in (model.query_MD, model.project.weight):
        assert weight.grad is not None
        assert weight.grad.abs().max() > 0


def test_a_history_of_one_window_is_read_as_without_summaries() -> None:
    model = summary_model()
    plain = SequenceModel(SMALL, 20, WINDOW.size).eval()
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if name in plain.state_dict()})
    tokens = torch.randint(1, 21, (2, 10))
    with torch.inference_mode():
        torch.testing.assert_close(model(tokens), plain(tokens))


@pytest.mark.parametrize("length", [1, 10, 11, 12, 17, 18, 24, 31, 32, 60])
def test_what_an_answer_is_made_of_is_enough(length: int) -> None:
    model, tokens = summary_model(), np.random.default_rng(length).integers(1, 21, length).astype(np.int32)
    context = answer_context(tokens, WINDOW)
    assert len(context) <= WINDOW.longest_context
    assert num_windows(len(context), WINDOW) == min(3, num_windows(length, WINDOW))
    np.testing.assert_allclose(encode(model, [context]), encode(model, [tokens]), rtol=1e-4, atol=1e-5)


def test_the_loss_of_summaries_by_hand() -> None:
    # one vector a summary, scores (2, 0, 0) and, in the second window, (0, 1, 0); the third is padded
    items_VD = torch.eye(3)
    summaries_NMD = torch.tensor([[[2.0, 0, 0]], [[0, 1.0, 0]], [[9.0, 9, 9]]])
    tokens_NW = torch.tensor([[1, 1, 2], [3, 3, 3], [1, 2, PAD]])
    num_events_V = torch.tensor([30, 10, 1])  # so items 1 and 2 share their window's target as 1 : 3
    log_total = [math.log(math.exp(2) + 2), math.log(math.e + 2)]
    expected = 0.25 * (log_total[0] - 2) + 0.75 * log_total[0] + log_total[1]
    assert summary_loss(summaries_NMD, tokens_NW, items_VD, num_events_V).item() == pytest.approx(expected)
    nothing = summary_loss(summaries_NMD[2:], tokens_NW[2:], items_VD, num_events_V)
    assert nothing.item() == 0


def test_the_loss_of_summaries_is_the_same_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens_NW = torch.randint(1, 31, (5, 8), generator=generator)
    num_events_V = torch.randint(0, 9, (30,), generator=generator)
    found = []
    for elements in (1, 200, 10**6):
        monkeypatch.setattr("recsys.model.loss.CHUNK_ELEMENTS", elements)
        leaves = [torch.randn(5, 3, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()]
        leaves.append(torch.randn(30, 6, generator=torch.Generator().manual_seed(2)).requires_grad_())
        loss = summary_loss(leaves[0], tokens_NW, leaves[1], num_events_V)
        loss.backward()
        found.append([loss.detach(), *(leaf.grad for leaf in leaves)])
    for other in found[1:]:
        torch.testing.assert_close(found[0], other)


def test_vectors_of_a_summary_share_the_telling() -> None:
    items_VD, tokens_NW = 9 * torch.eye(4), torch.tensor([[1, 2]])
    one, two = torch.tensor([[[1.0, 1, 0, 0]]]), torch.tensor([[[1.0, 0, 0, 0], [0, 1.0, 0, 0]]])
    num_events_V = torch.ones(4)
    told = [summary_loss(summary, tokens_NW, items_VD, num_events_V).item() for summary in (one, two)]
    assert told == pytest.approx([math.log(2), math.log(2)], abs=1e-3)


@pytest.mark.parametrize("length", [9, 10, 11, 24])
def test_closed_windows_are_the_full_ones_that_others_follow(length: int) -> None:
    model = summary_model()
    tokens = torch.arange(1, 1 + length).remainder(20)[None] + 1
    rows = torch.cat([tokens, nn.functional.pad(tokens[:, :5], (0, length - 5))])  # the second is all one open window
    _, closed = model.with_summaries(rows)
    full = cut(length, WINDOW)[:-1]
    assert model.num_closed(rows) == len(full)
    if not full:
        assert closed is None
        return
    is_full = (closed.tokens_NW != PAD).all(dim=1)
    assert closed.tokens_NW[is_full].tolist() == [tokens[0, part.start : part.stop].tolist() for part in full]
    embedded = torch.stack([model.embed(window) for window in closed.tokens_NW])
    with torch.inference_mode():
        torch.testing.assert_close(closed.summaries_NMD, model.summaries(embedded), rtol=1e-4, atol=1e-5)


def test_in_training_some_steps_read_windows_alone() -> None:
    model = summary_model().train()
    tokens = torch.randint(1, 21, (1, 24))
    torch.manual_seed(0)
    with torch.inference_mode():
        states = [model(tokens)[0, -1] for _ in range(60)]
        alone = model.eval()(tokens[:, 14:])[0, -1]
    num_alone = sum(torch.allclose(state, alone, rtol=1e-4, atol=1e-5) for state in states)
    assert 3 <= num_alone <= 25


def test_rows_of_the_decoder_are_counted() -> None:
    model = summary_model()
    assert model.num_rows(10) == 10
    read: list[int] = []
    model.decoder.register_forward_pre_hook(
        lambda _, __, given: read.append(given["inputs_embeds"].shape[0] * given["inputs_embeds"].shape[1]),
        with_kwargs=True,
    )
    with torch.inference_mode():
        model(torch.randint(1, 21, (1, 31)))
    assert model.num_rows(31) == sum(read)


def test_training_rows_hold_more_windows_than_are_read_of() -> None:
    rows = WINDOW.training_rows
    assert num_windows(rows.size, WINDOW) == 7
    assert rows.overlap == WINDOW.reach
    assert rows.training_rows == rows
    assert WindowConfig().training_rows == WindowConfig()


def test_the_model_of_a_window_without_summaries_is_the_plain_one() -> None:
    assert type(build_model(SMALL, 20, WindowConfig(size=10))) is SequenceModel
    assert type(build_model(SMALL, 20, WINDOW)) is SummaryModel
