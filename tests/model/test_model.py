from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.contracts.errors import ArtifactError, ConfigError
from recsys.model.checkpoint import Checkpoint
from recsys.model.config import ModelConfig
from recsys.model.decoder import SequenceModel, UserEncoder, check_causal
from recsys.model.dropout import Dropout
from recsys.model.flops import compare_windows, encode_flops
from recsys.model.loss import NegativeSampler, full_softmax_loss, sampled_softmax_loss
from tests.architectures import ARCHITECTURES

SMALL = ModelConfig(width=16, num_layers=2, num_heads=2, head_dim=8, feedforward_width=24, dropout=0.0)


@pytest.fixture(params=[*ARCHITECTURES, "gpt2", "gemma3_text"])
def model(request: pytest.FixtureRequest) -> SequenceModel:
    torch.manual_seed(0)
    return SequenceModel(SMALL.model_copy(update={"architecture": request.param}), num_items=20, max_length=32).eval()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "quen3"}, "transformers knows no such model_type; near it: qwen3, "),
        ({"architecture": "bert"}, "'bert' looks at later events, so it cannot learn to predict them; choose a causal"),
        ({"architecture": "t5"}, "'t5' has no intermediate_size"),
        ({"architecture": "roberta"}, "'roberta' fails on a window of vectors: unsupported operand"),
        ({"architecture": "mamba"}, "'mamba' has no num_attention_heads"),
        (
            {"architecture": "gpt2", "head_dim": 16},
            "divides the width among its heads: num_heads x head_dim is 32, width 16; make them equal",
        ),
        (
            {"transformers": {"hidden_akt": "gelu"}},
            r"\[model.transformers\] hidden_akt: 'qwen3' has no setting of that",
        ),
        ({"transformers": {"hidden_size": 8}}, r"hidden_size: is set by \[model\] or not used; leave it out"),
        ({"architecture": "gpt2", "transformers": {"n_layer": 5}}, r"n_layer: is set by \[model\] or not used"),
        ({"transformers": {"vocab_size": 5}}, r"vocab_size: is set by \[model\] or not used"),
        ({"architecture": "bloom"}, "'bloom' has no intermediate_size"),
        ({"transformers": {"hidden_act": "glu"}}, "'qwen3' cannot be built with these settings: there is no 'glu'$"),
    ],
)
def test_what_is_no_causal_decoder_is_refused_in_one_line(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        check_causal(SequenceModel(ModelConfig.from_mapping({**SMALL.model_dump(), **settings}, "recipe"), 20, 32))
    assert "\n" not in str(caught.value)


def test_a_window_of_a_few_events_is_enough() -> None:
    check_causal(SequenceModel(SMALL.model_copy(update={"architecture": "gpt2"}), 20, 2))


def test_the_name_of_before_is_read() -> None:
    assert ModelConfig(architecture="deepseek-v3", num_experts=4).architecture == "deepseek_v3"


def test_a_decoder_has_no_dropout_of_its_own() -> None:
    model = SequenceModel(SMALL.model_copy(update={"architecture": "biogpt"}), 20, 32).train()
    tokens = torch.randint(1, 21, (1, 12))
    torch.testing.assert_close(model(tokens), model(tokens), rtol=0, atol=0)


def test_settings_reach_the_decoder() -> None:
    values = SMALL.model_dump() | {"transformers": {"hidden_act": "gelu", "attention_bias": True}, "norm_eps": 1e-3}
    decoder = SequenceModel(ModelConfig.from_mapping(values, "recipe"), 20, 32).decoder
    assert decoder.config.hidden_act == "gelu"
    assert decoder.layers[0].self_attn.q_proj.bias is not None  # type: ignore[index,union-attr]
    assert decoder.norm.variance_epsilon == 1e-3  # type: ignore[union-attr]
    other = SequenceModel(SMALL.model_copy(update={"architecture": "gpt2", "norm_eps": 1e-3}), 20, 32).decoder
    assert (other.config.attn_pdrop, other.config.resid_pdrop) == (0, 0)
    values["transformers"] = {"attention_dropout": 0.25}
    assert SequenceModel(ModelConfig.from_mapping(values, "recipe"), 20, 32).decoder.config.attention_dropout == 0.25
    assert (other.config.n_inner, other.config.layer_norm_epsilon) == (SMALL.feedforward_width, 1e-3)


def test_later_events_do_not_change_earlier_states(model: SequenceModel) -> None:
    tokens = torch.randint(1, 21, (1, 12))
    changed = tokens.clone()
    changed[0, 7:] = torch.randint(1, 21, (5,))
    torch.testing.assert_close(model(tokens)[:, :7], model(changed)[:, :7])


def test_padding_at_the_end_changes_nothing(model: SequenceModel) -> None:
    tokens = torch.randint(1, 21, (1, 9))
    padded = torch.nn.functional.pad(tokens, (0, 6))
    encoder = UserEncoder(model)
    last = torch.tensor([8])
    torch.testing.assert_close(encoder(tokens, last), encoder(padded, last), rtol=1e-5, atol=1e-6)


def test_the_order_of_events_matters(model: SequenceModel) -> None:
    tokens = torch.tensor([[1, 2, 3, 4]])
    last = torch.tensor([3])
    swapped = UserEncoder(model)(tokens[:, [1, 0, 2, 3]], last)
    assert not torch.allclose(UserEncoder(model)(tokens, last), swapped)


@pytest.mark.parametrize("chunk", [7, 64, 10_000])
def test_the_loss_and_its_gradients_are_those_of_cross_entropy(monkeypatch, chunk: int) -> None:
    monkeypatch.setattr("recsys.model.loss.CHUNK_ELEMENTS", chunk)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn((9, 5), generator=generator, dtype=torch.float64)
    items = torch.randn((13, 5), generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 13, (9,), generator=generator)
    results = []
    for loss_of in (full_softmax_loss, lambda h, e, t: torch.nn.functional.cross_entropy(h @ e.T, t)):
        leaves = hidden.clone().requires_grad_(), items.clone().requires_grad_()
        loss = loss_of(*leaves, targets) * 3
        loss.backward()
        results.append([loss.detach(), leaves[0].grad, leaves[1].grad])
    torch.testing.assert_close(*results)


def test_the_sampled_sum_over_items_is_right_on_average() -> None:
    torch.manual_seed(0)
    hidden, items = torch.randn((4, 6)), torch.randn((30, 6))
    targets = torch.randint(0, 30, (4,))
    sampler = NegativeSampler(torch.arange(30), num_negatives=20)
    estimates = []
    for _ in range(4_000):
        drawn, log_expected = sampler.draw()
        logits = hidden @ items[drawn].T - log_expected
        estimates.append(logits.masked_fill(targets[:, None] == drawn, -torch.inf).exp().sum(dim=1))
    others = (hidden @ items.T).exp()
    others[torch.arange(4), targets] = 0
    standard_error = torch.stack(estimates).std(dim=0) / 4_000**0.5
    assert ((torch.stack(estimates).mean(dim=0) - others.sum(dim=1)).abs() < 5 * standard_error).all()


def test_many_negatives_bring_the_sampled_loss_to_the_full_one() -> None:
    torch.manual_seed(0)
    hidden, items = torch.randn((50, 6)), torch.randn((30, 6))
    targets = torch.randint(0, 30, (50,))
    sampled = sampled_softmax_loss(hidden, items, targets, NegativeSampler(torch.ones(30), 50_000))
    torch.testing.assert_close(sampled, full_softmax_loss(hidden, items, targets), rtol=0.01, atol=0)


def test_the_sampled_loss_has_the_gradients_of_its_formula() -> None:
    torch.manual_seed(0)
    hidden, items = torch.randn((9, 6), requires_grad=True), torch.randn((30, 6), requires_grad=True)
    targets = torch.randint(0, 30, (9,))
    drawn, log_expected = torch.randint(0, 30, (12,)), torch.randn(12)  # some items twice, some of them targets
    logits = (hidden @ items[drawn].T - log_expected).masked_fill(targets[:, None] == drawn, -torch.inf)
    target = (hidden * items[targets]).sum(dim=1, keepdim=True)
    plain = torch.nn.functional.cross_entropy(torch.cat([target, logits], dim=1), torch.zeros(9, dtype=torch.long))

    class Drawn(NegativeSampler):
        def __init__(self) -> None: ...
        def draw(self) -> tuple[torch.Tensor, torch.Tensor]:
            return drawn, log_expected

    ours = sampled_softmax_loss(hidden, items, targets, Drawn())
    torch.testing.assert_close(ours, plain)
    for found, expected in zip(
        torch.autograd.grad(3 * ours, (hidden, items)), torch.autograd.grad(3 * plain, (hidden, items)), strict=True
    ):
        torch.testing.assert_close(found, expected)


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    dropout = Dropout(0.25)
    dropped = dropout(torch.ones(401, 301))  # an odd number of elements: the last eight bytes are not all used
    assert dropped.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert float((dropped == 0).float().mean()) == pytest.approx(0.25, abs=0.01)
    assert dropout.eval()(dropped) is dropped


def test_flops_of_one_layer_by_hand() -> None:
    config = ModelConfig(width=8, num_layers=1, num_heads=1, head_dim=4, feedforward_width=8)
    # 3 events: attention 4·4·(1+2+3) = 96; linear 2·3·8·(4·4 + 3·8) = 1,920
    assert encode_flops(3, config) == (96, 2016)


def test_windows_cost_less_attention_than_full_attention() -> None:
    full, general, shop = compare_windows(2048, ModelConfig())
    assert full.num_encoded == 2048
    assert general.num_encoded == 1638 + (2048 - 1310)
    assert shop.num_encoded == 1024 + 1024 + (2048 - 1434)
    assert shop.attention_flops < general.attention_flops < full.attention_flops


def test_a_checkpoint_is_read_as_it_was_written(ring_checkpoint: Path) -> None:
    one, two = Checkpoint.open(ring_checkpoint), Checkpoint.open(ring_checkpoint)
    assert len(one.vocabulary) == 30
    assert one.window.size == 8
    np.testing.assert_array_equal(one.model.items_VD.detach(), two.model.items_VD.detach())


def test_a_features_artifact_is_no_checkpoint(ring_features: Path) -> None:
    with pytest.raises(ArtifactError, match="holds features, expected checkpoint"):
        Checkpoint.open(ring_features)
