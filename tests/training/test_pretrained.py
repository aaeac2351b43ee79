"""A local folder of weights as the start. The folders are written by `transformers` itself."""

from pathlib import Path
from typing import Any

import pytest
import torch

from recsys.contracts.errors import ConfigError
from recsys.contracts.protocol import Protocol
from recsys.model import pretrained
from recsys.model.config import ModelConfig
from recsys.model.decoder import SequenceModel
from recsys.training import train
from recsys.training.config import Recipe
from tests.training.test_precision import changed

SETTINGS: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
}


def saved_decoder(folder: Path, *, as_language_model: bool = True, **changes: Any) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

    torch.manual_seed(7)
    kind = Qwen3ForCausalLM if as_language_model else Qwen3Model
    decoder = kind(Qwen3Config(**{**SETTINGS, **changes})).eval()
    decoder.save_pretrained(folder)
    return decoder.model if as_language_model else decoder


def model(**changes: Any) -> SequenceModel:
    values = {"width": 32, "num_layers": 1, "head_dim": 16, "feedforward_width": 32, "rope_theta": 5000.0, "dropout": 0}
    return SequenceModel(ModelConfig.from_mapping({**values, **changes}, "recipe"), 20, 16).eval()


@pytest.mark.parametrize("as_language_model", [True, False])
def test_our_decoder_computes_what_the_saved_one_does(tmp_path: Path, as_language_model: bool) -> None:
    theirs, ours = saved_decoder(tmp_path, as_language_model=as_language_model), model()
    pretrained.load_into(ours, tmp_path)
    embedded = torch.randn(2, 9, 32)
    with torch.inference_mode():
        expected = theirs(inputs_embeds=embedded).last_hidden_state
        torch.testing.assert_close(ours.decoder(inputs_embeds=embedded).last_hidden_state, expected)


def test_training_starts_there_and_the_checkpoint_stands_alone(
    ring_features: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    decoder = saved_decoder(tmp_path / "weights")
    values = changed(tiny_recipe, max_epochs=1, max_round_steps=1, absorb_share=0, learning_rate=1e-9).model_dump()
    values["model"] |= {"pretrained": str(tmp_path / "weights"), "rope_theta": 5000.0}
    manifest = train.run(Recipe.from_mapping(values, "r"), ring_features, tmp_path / "c", protocol=Protocol.TIME)
    (tmp_path / "weights").rename(tmp_path / "gone")
    from recsys.model.checkpoint import Checkpoint

    trained = Checkpoint.open(tmp_path / "c").model.decoder.state_dict()
    torch.testing.assert_close(trained["layers.0.mlp.up_proj.weight"], decoder.layers[0].mlp.up_proj.weight.detach())
    assert len(manifest.parents["pretrained"]) == 64


@pytest.mark.parametrize(
    ("saved", "recipe", "message"),
    [
        ({}, {"width": 64}, r"hidden_size is 32, the recipe says 64; set width in \[model\]"),
        ({}, {"num_layers": 2}, "num_hidden_layers is 1, the recipe says 2; set num_layers"),
        ({}, {"rope_theta": 10_000.0}, "rope_theta is 5000.0, the recipe says 10000.0"),
        ({}, {"head_dim": 8}, "has shape"),
        ({}, {"architecture": "llama"}, "model_type is 'qwen3', the recipe's architecture 'llama' is 'llama'"),
        ({"attention_bias": True}, {}, "attention_bias is True, the recipe says False; set attention_bias in"),
        ({"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}, {}, "layer_types is .'sliding_att"),
        (
            {"hidden_act": "gelu"},
            {},
            r"hidden_act is 'gelu', the recipe says 'silu'; set hidden_act in \[model.transformers\]",
        ),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}},
            {},
            "a scaled rotary embedding",
        ),
    ],
)
def test_another_decoder_is_refused_in_one_line(
    tmp_path: Path, saved: dict[str, Any], recipe: dict[str, Any], message: str
) -> None:
    saved_decoder(tmp_path, **saved)
    with pytest.raises(ConfigError, match=message) as caught:
        pretrained.load_into(model(**recipe), tmp_path)
    assert "\n" not in str(caught.value)


def test_settings_of_the_folder_may_stand_in_the_recipe(tmp_path: Path) -> None:
    theirs = saved_decoder(tmp_path, hidden_act="gelu", attention_bias=True)
    for layer in theirs.layers:
        torch.nn.init.normal_(layer.self_attn.k_proj.bias)
    theirs.save_pretrained(tmp_path)
    ours = model(transformers={"hidden_act": "gelu", "attention_bias": True})
    pretrained.load_into(ours, tmp_path)
    embedded = torch.randn(2, 9, 32)
    with torch.inference_mode():
        expected = theirs(inputs_embeds=embedded).last_hidden_state
        torch.testing.assert_close(ours.decoder(inputs_embeds=embedded).last_hidden_state, expected)


def test_a_folder_without_a_decoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config.json there; expected a folder"):
        pretrained.load_into(model(), tmp_path)
    saved_decoder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ConfigError, match="not a safetensors file"):
        pretrained.load_into(model(), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"no .safetensors file"):
        pretrained.load_into(model(), tmp_path)
