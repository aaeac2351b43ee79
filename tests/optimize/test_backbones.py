"""Every bundled backbone goes the whole way: training, checkpoint, 8-bit engine, answers."""

from pathlib import Path

import numpy as np
import pytest
import torch

from optimize import build
from optimize.config import GateConfig, OptimizeConfig
from optimize.export import build_engine
from recsys import Recommender
from recsys.contracts.errors import ConfigError
from recsys.contracts.precision import CacheFormat, ItemFormat
from recsys.contracts.protocol import Protocol
from recsys.model.checkpoint import Checkpoint
from recsys.model.config import ModelConfig
from recsys.model.decoder import SequenceModel
from recsys.model.flops import encode_flops
from recsys.model.reference import encode
from recsys.pipeline import heads_benchmark
from recsys.runtime.items import ItemTable
from recsys.runtime.openvino import OpenVinoEngine
from recsys.training import train
from recsys.training.config import Recipe
from tests.architectures import ALIKE

BACKBONES = {
    "default": "qwen3",
    "llama": "llama",
    "deepseek-v3": "deepseek_v3",
    "deepseek-v3-moe": "deepseek_v3",
}
NUM_STEPS = 12


def small_recipe(name: str, **model: object) -> Recipe:
    values = Recipe.load(name).settled("model").model_dump()
    values["training"] |= {"max_epochs": 1, "max_round_steps": NUM_STEPS, "batch_tokens": 256, "num_threads": 1}
    values["model"] |= {"width": 32, "head_dim": 16, "feedforward_width": 32, "latent_width": 16, "expert_width": 16}
    values["model"] |= model
    return Recipe.from_mapping(values, name)


@pytest.mark.parametrize("name", [*BACKBONES, *(pytest.param(name, marks=pytest.mark.slow) for name in ALIKE)])
def test_a_backbone_trains_saves_loads_and_answers_as_a_release(name: str, ring_features: Path, tmp_path: Path) -> None:
    recipe = small_recipe(name) if name in BACKBONES else small_recipe("default", architecture=name)
    manifest = train.run(recipe, ring_features, tmp_path / "checkpoint", protocol=Protocol.TIME)
    checkpoint = Checkpoint.open(tmp_path / "checkpoint")
    assert checkpoint.model.config.architecture == BACKBONES.get(name, name)
    assert (checkpoint.model.config.num_experts > 0) == name.endswith("-moe")
    assert np.isfinite(manifest.metrics["log"][0]["loss"])
    # twelve steps leave a model whose lists rounding reorders easily; errors are what is checked here
    config = OptimizeConfig(
        gate=GateConfig(min_top10_overlap=0.8, max_loss=0.5), num_comparison_windows=0, num_threads=1
    )
    _, release = build.run(config, tmp_path / "checkpoint", ring_features, tmp_path / "releases")
    assert release.metrics["relative_error"] < 0.03
    answer = Recommender.load(tmp_path / "releases").recommend(["sku-1", "sku-2"], k=3)
    assert len({item.item_id for item in answer}) == 3


def test_a_decoder_without_an_engine_trains_and_is_refused_before_anything_is_computed(
    ring_features: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train.run(small_recipe("default", architecture="gpt2"), ring_features, tmp_path / "c", protocol=Protocol.TIME)
    said = "'gpt2' trains, but `recsys optimize` will refuse it: its layers are not built like Llama's"
    assert said in capfd.readouterr().err
    with pytest.raises(ConfigError, match="'gpt2': no engine can be built, its layers are not built like Llama's"):
        build.run(OptimizeConfig(), tmp_path / "c", ring_features, tmp_path / "releases")
    assert not (tmp_path / "releases").exists()


def test_shapes_of_a_decoder_without_an_engine_are_not_compared(ring_features: Path) -> None:
    recipe = small_recipe("default", architecture="granite")
    with pytest.raises(ConfigError, match="'granite': no engine can be built"):
        heads_benchmark.run(ring_features, recipe, [2], num_seeds=1, num_rounds=1, num_threads=1)


def test_appends_and_encodings_of_experts_equal_transformers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = ModelConfig(architecture="deepseek_v3", num_experts=4, num_layers=3, init_std=0.2)
    model = SequenceModel(config, 50, 64).eval()
    build_engine(model, tmp_path, CacheFormat.FLOAT32)
    items = ItemTable.of(model.embedding.weight.detach().numpy(), ItemFormat.FLOAT32)
    engine = OpenVinoEngine(tmp_path, items, num_threads=1, precision="test", window_size=64, cache=CacheFormat.FLOAT32)
    history = np.random.default_rng(0).integers(1, 51, 40).astype(np.int32)
    expected = encode(model, [history])
    np.testing.assert_allclose(engine.encode([history]), expected, atol=2e-5)
    (session,) = engine.append(engine.open([history[:33]]), [history[33:]])
    np.testing.assert_allclose(session.vector_D, expected[0], atol=2e-5)


def test_training_teaches_every_expert_and_the_router() -> None:
    torch.manual_seed(0)
    config = ModelConfig(architecture="deepseek_v3", num_experts=4, experts_per_event=2)
    model = SequenceModel(config, 50, 64)
    model(torch.randint(1, 51, (4, 32))).square().sum().backward()
    block = model.decoder.layers[1].mlp  # type: ignore[union-attr,index]
    for weight in (block.gate.weight, *block.experts.gate_up_proj.grad.unbind()):  # type: ignore[union-attr]
        assert (weight if weight.grad is None else weight.grad).abs().max() > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_experts": 4}, "num_experts = 4 needs architecture 'deepseek_v3'"),
        ({"architecture": "deepseek_v3", "num_experts": 4, "experts_per_event": 5}, "fewer than 2, or than"),
        ({"architecture": "deepseek_v3", "head_dim": 6}, "4 must divide it"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_mapping(settings, "recipe")


def test_flops_of_latent_attention_and_experts_by_hand() -> None:
    config = ModelConfig(
        architecture="deepseek_v3",
        width=8,
        num_layers=1,
        num_heads=2,
        head_dim=4,
        feedforward_width=8,
        latent_width=6,
        num_experts=4,
        experts_per_event=2,
        expert_width=8,
        num_dense_layers=0,
    )
    # queries and output 2·8·8 = 128, latent 8·(6 + 2) = 64, keys and values 6·2·(2 + 4) = 72, router 8·4 = 32,
    # three experts of 3·8·8 = 192; attention of 3 events 4·8·6 = 192
    assert encode_flops(3, config) == (192, 192 + 2 * 3 * (128 + 64 + 72 + 32 + 3 * 192))
