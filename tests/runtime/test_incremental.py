"""Appending equals encoding: the law that session caches rest on."""

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optimize import awq, calibration
from optimize.export import build_engine
from optimize.rounding import WeightFormat
from recsys.contracts.errors import ConfigError
from recsys.contracts.ids import Floats, Tokens
from recsys.contracts.precision import CacheFormat, ItemFormat
from recsys.model import incremental
from recsys.model.config import ModelConfig
from recsys.model.decoder import SequenceModel, check_causal
from recsys.model.reference import encode
from recsys.runtime import openvino
from recsys.runtime.cache import BLOCK, EventRows
from recsys.runtime.engine import Session
from recsys.runtime.items import ItemTable
from recsys.runtime.openvino import OpenVinoEngine
from tests.architectures import ALSO_ALIKE, ARCHITECTURES, NAMED_ALIKE, OTHER_LAYERS, REFUSED

NUM_ITEMS, WINDOW = 50, 150
TOLERANCE = {CacheFormat.FLOAT32: 1e-5, CacheFormat.FLOAT16: 2e-3, CacheFormat.BF16: 2e-2, CacheFormat.INT8: 3e-2}
"""Of the relative error of a user vector after an append, by what the cache keeps."""


def build_model(architecture: str = "qwen3", *, num_layers: int = 3, max_length: int = WINDOW) -> SequenceModel:
    torch.manual_seed(0)
    config = ModelConfig(
        architecture=architecture,
        width=32,
        num_layers=num_layers,
        num_heads=2,
        head_dim=16,
        feedforward_width=48,
        init_std=0.2,
    )
    return SequenceModel(config, NUM_ITEMS, max_length).eval()


def build(model: SequenceModel, folder: Path, cache: CacheFormat, window_size: int = WINDOW) -> OpenVinoEngine:
    build_engine(model, folder, cache, packed=True)
    items = ItemTable.of(model.embedding.weight.detach().numpy(), ItemFormat.FLOAT32)
    return OpenVinoEngine(folder, items, num_threads=1, precision="test", window_size=window_size, cache=cache)


@pytest.fixture(scope="module")
def model() -> SequenceModel:
    return build_model()


@pytest.fixture(scope="module")
def engines(model: SequenceModel, tmp_path_factory: pytest.TempPathFactory) -> dict[CacheFormat, OpenVinoEngine]:
    return {cache: build(model, tmp_path_factory.mktemp(cache.value), cache) for cache in CacheFormat}


def windows(*lengths: int, seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.integers(1, NUM_ITEMS + 1, length).astype(np.int32) for length in lengths]


def error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_engine_computes_what_transformers_computes(architecture: str, tmp_path: Path) -> None:
    model = build_model(architecture)
    engine = build(model, tmp_path, CacheFormat.FLOAT32)
    histories = windows(1, 2, 7, 64, 65, WINDOW)
    np.testing.assert_allclose(engine.encode(histories), encode(model, histories), atol=2e-5)


def test_engines_of_the_smallest_windows(tmp_path: Path) -> None:
    """The graphs are exported with longer ones."""
    for size in (1, 2, 3):
        model = build_model(num_layers=1, max_length=size)
        engine = build(model, tmp_path, CacheFormat.FLOAT32, size)
        histories = windows(*range(1, size + 1))
        np.testing.assert_allclose(engine.encode(histories), encode(model, histories), atol=2e-5)


def test_windows_of_any_length_are_run_at_few_lengths(
    engines: dict[CacheFormat, OpenVinoEngine], model: SequenceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each shape that OpenVINO sees costs time once and memory for good."""
    engine, vectors = engines[CacheFormat.FLOAT32], OpenVinoEngine._vectors
    run_at: list[int] = []

    def seen(self: OpenVinoEngine, tokens: Tokens) -> Floats:
        run_at.append(vectors(self, tokens).shape[1])
        return vectors(self, tokens)

    monkeypatch.setattr(OpenVinoEngine, "_vectors", seen)
    histories = windows(*range(1, WINDOW + 1))
    sessions = [engine.open([history])[0] for history in histories]
    found = np.stack([session.vector_D for session in sessions])
    np.testing.assert_allclose(found, encode(model, histories), atol=2e-5)
    assert [session.length for session in sessions] == [len(history) for history in histories]
    assert all(length <= run <= length * 9 / 8 for length, run in zip(range(1, WINDOW + 1), run_at, strict=True))
    assert len(set(run_at)) == 15 + 3 * 8 + 3  # each up to 15, eight an octave, 128, 144 and 160


@pytest.mark.parametrize("cache", [CacheFormat.FLOAT32, CacheFormat.FLOAT16, CacheFormat.INT8, CacheFormat.BF16])
@pytest.mark.parametrize("most_read", [WINDOW, WINDOW - 1])
def test_one_event_is_appended_to_sessions_of_any_length_in_turns(
    most_read: int, cache: CacheFormat, model: SequenceModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows of a window are read, those behind a short session's are another's; of a long window, what is kept."""
    monkeypatch.setattr(openvino, "_MOST_READ", most_read)
    engine = build(model, tmp_path, cache)
    histories = windows(WINDOW - 1, 3, 100, 1, 64)
    if most_read == WINDOW:
        poisoned = engine.open(histories[:1])[0]
        poisoned.cache._arrays[-1][...] = np.nan if cache is not CacheFormat.BF16 else 0x7FC0
        assert np.isnan(engine.append([poisoned], [histories[0][:1]])[0].vector_D).all()
    grown = [engine.append(engine.open([history]), [history[:1]])[0].vector_D for history in histories]
    whole = encode(model, [np.append(history, history[:1]) for history in histories])
    assert all(error(*pair) < TOLERANCE[cache] for pair in zip(grown, whole, strict=True))


@pytest.mark.parametrize("most_read", [WINDOW, WINDOW - 1])
def test_threads_append_to_sessions_of_their_own(
    most_read: int, model: SequenceModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of an engine that a thread of before opened."""
    monkeypatch.setattr(openvino, "_MOST_READ", most_read)
    with ThreadPoolExecutor(1) as pool:
        engine = pool.submit(build, model, tmp_path, CacheFormat.INT8).result()
    sessions = engine.open(windows(WINDOW - 1, 3, 100, 1, 64))

    def appended(session: Session) -> np.ndarray:
        return engine.append([session], windows(1))[0].vector_D

    alone = [appended(session) for session in sessions] * 20
    with ThreadPoolExecutor(4) as pool:
        np.testing.assert_array_equal(list(pool.map(appended, sessions * 20)), alone)


def test_a_session_of_another_cache_is_refused_and_leaves_nothing(
    engines: dict[CacheFormat, OpenVinoEngine], model: SequenceModel
) -> None:
    engine = engines[CacheFormat.FLOAT32]
    history = windows(5)[0]
    for other in (CacheFormat.FLOAT16, CacheFormat.BF16, CacheFormat.INT8):
        with pytest.raises((TypeError, ValueError)):
            engine.append(engines[other].open(windows(WINDOW - 1)), windows(1))
    grown = engine.append(engine.open([history[:4]]), [history[4:]])[0].vector_D
    np.testing.assert_allclose(grown, encode(model, [history])[0], atol=2e-5)


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "deepseek_v3"])
def test_graphs_are_read_as_they_are_exported(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decomposed first, they would take twice as long to build."""
    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", lambda *_: pytest.fail("decomposed"))
    build_engine(build_model(architecture, num_layers=1), tmp_path, CacheFormat.INT8)


def test_an_architecture_that_is_decomposed_leaves_the_loggers_as_they_are(tmp_path: Path) -> None:
    """OpenVINO turns warnings of the whole process off where a conversion fails."""
    level = logging.root.level
    build_engine(build_model("olmo", num_layers=1), tmp_path, CacheFormat.FLOAT32)
    assert logging.root.level == level


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *ALSO_ALIKE])
def test_engines_can_be_built_of_decoders_that_are_built_like_llama(architecture: str) -> None:
    state = torch.random.get_rng_state()
    incremental.check(ModelConfig(architecture=architecture), WINDOW)
    incremental.check(ModelConfig(architecture=architecture), 1)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"architecture": "gpt2"},
            "'gpt2': no engine can be built, its layers are not built like Llama's .'GPT2Model'",
        ),
        ({"architecture": "granite"}, r"named as Llama's and compute something else .a vector [0-9]+% of its length"),
        (
            {"architecture": "smollm3", "transformers": {"no_rope_layer_interval": 2}},
            "named as Llama's and compute something else",
        ),
        ({"architecture": "mistral", "transformers": {"sliding_window": 100}}, "reaches 100 events back, fewer than"),
    ],
)
def test_why_no_engine_can_be_built_is_said_in_one_line(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        incremental.check(ModelConfig.from_mapping({**settings, "width": 64}, "recipe"), WINDOW)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        *((name, "named as Llama's and compute something else") for name in NAMED_ALIKE),
        *((name, "not built like Llama's") for name in OTHER_LAYERS),
    ],
)
def test_other_causal_decoders_can_be_trained_alone(architecture: str, reason: str) -> None:
    config = ModelConfig(architecture=architecture, width=64)
    check_causal(SequenceModel(config, NUM_ITEMS, WINDOW))
    assert reason in str(incremental.why_not(config, WINDOW))


@pytest.mark.parametrize("architecture", REFUSED)
def test_what_is_no_decoder_of_vectors_is_refused(architecture: str) -> None:
    with pytest.raises(ConfigError, match=f"architecture = '{architecture}'") as caught:
        check_causal(SequenceModel(ModelConfig(architecture=architecture, width=64), NUM_ITEMS, WINDOW))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cache", CacheFormat)
@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_any_split_into_appends_equals_one_encode(
    engines: dict[CacheFormat, OpenVinoEngine], cache: CacheFormat, data: st.DataObject
) -> None:
    engine = engines[cache]
    lengths = data.draw(st.lists(st.integers(2, WINDOW), min_size=1, max_size=4))
    histories = windows(*lengths, seed=data.draw(st.integers(0, 1000)))
    seen = [data.draw(st.integers(1, length - 1)) for length in lengths]
    sessions = engine.open([history[:n] for history, n in zip(histories, seen, strict=True)])
    while any(session.length < length for session, length in zip(sessions, lengths, strict=True)):
        growing = [i for i, session in enumerate(sessions) if session.length < lengths[i]]
        steps = [data.draw(st.integers(1, lengths[i] - sessions[i].length)) for i in growing]
        events = [histories[i][sessions[i].length :][:step] for i, step in zip(growing, steps, strict=True)]
        for i, longer in zip(growing, engine.append([sessions[i] for i in growing], events), strict=True):
            sessions[i] = longer
    for session, vector_D in zip(sessions, engine.encode(histories), strict=True):
        assert error(session.vector_D, vector_D) < TOLERANCE[cache]


def test_a_session_may_be_continued_twice_and_stays_as_it_is(engines: dict[CacheFormat, OpenVinoEngine]) -> None:
    engine = engines[CacheFormat.FLOAT32]
    (history,) = windows(40)
    (session,) = engine.open([history])
    before = session.vector_D.copy()
    for item in (3, 9, 3):
        event = np.array([item], dtype=np.int32)
        (longer,) = engine.append([session], [event])
        expected = engine.encode([np.concatenate([history, event])])[0]
        assert error(longer.vector_D, expected) < 1e-5
    np.testing.assert_array_equal(session.vector_D, before)
    assert session.length == 40


def test_a_window_does_not_grow_beyond_its_size(engines: dict[CacheFormat, OpenVinoEngine]) -> None:
    engine = engines[CacheFormat.FLOAT32]
    (session,) = engine.open(windows(WINDOW - 1))
    engine.append([session], windows(1))
    with pytest.raises(ValueError, match="149 events and 2 more do not fit into a window of 150; open the next"):
        engine.append([session], windows(2))


def test_a_bf16_cache_keeps_the_nearest_number_of_8_bits(engines: dict[CacheFormat, OpenVinoEngine]) -> None:
    whole = windows(70)
    exact, found = (
        engines[cache].kept(engines[cache].open(whole)[0]) for cache in (CacheFormat.FLOAT32, CacheFormat.BF16)
    )
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, torch.from_numpy(exact).bfloat16().float().numpy())
    assert np.abs(found / exact - 1).max() <= 2**-8


def test_an_int8_cache_takes_less_than_a_third(engines: dict[CacheFormat, OpenVinoEngine]) -> None:
    sizes = {cache: engine.open(windows(60))[0].size_bytes for cache, engine in engines.items()}
    assert sizes[CacheFormat.FLOAT32] == BLOCK * 3 * 2 * 32 * 4  # events x layers x keys and values x width x bytes
    assert sizes[CacheFormat.FLOAT16] == sizes[CacheFormat.BF16] == sizes[CacheFormat.FLOAT32] / 2
    assert sizes[CacheFormat.INT8] == BLOCK * 3 * 2 * (32 + 2 * 4)  # and a scale for each of two heads


def test_rounded_weights_are_the_rounded_model_and_stay_codes(model: SequenceModel, tmp_path: Path) -> None:
    histories = windows(5, 100, WINDOW)
    statistics = calibration.collect(model, histories)
    sizes = {}
    for bits in (8, 4):
        format_ = WeightFormat(bits=bits, group_size=None if bits == 8 else 16)
        rounded = awq.round_weights(model, statistics, format_, awq.Rounding.NEAREST)
        (tmp_path / str(bits)).mkdir()
        engine = build(rounded, tmp_path / str(bits), CacheFormat.FLOAT32)
        np.testing.assert_allclose(engine.encode(histories), encode(rounded, histories), atol=2e-5)
        sizes[bits] = (tmp_path / str(bits) / "engine.bin").stat().st_size
    num_weights = 3 * (4 * 32 * 32 + 3 * 32 * 48)
    assert num_weights < sizes[8] < 1.3 * num_weights
    assert sizes[4] < 0.9 * num_weights


def test_rows_grow_in_place_until_another_session_did(engines: dict[CacheFormat, OpenVinoEngine]) -> None:
    rows = EventRows.of([np.arange(3.0)])
    first = rows.extended(3, [np.array([10.0])])
    second = rows.extended(3, [np.array([20.0])])
    assert first is rows
    assert second is not rows
    assert first.first(4)[0][:4].tolist() == [0, 1, 2, 10]
    assert second.first(4)[0][:4].tolist() == [0, 1, 2, 20]
