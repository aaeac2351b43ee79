"""Every engine keeps the same law: any split of a window into appends gives what one encode gives."""

import copy
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optimize import awq, calibration, quantize, tensorrt, tiers
from optimize.rounding import WeightFormat
from optimize.tensorrt import TensorRtConfig
from recsys.contracts.errors import ConfigError
from recsys.contracts.precision import CacheFormat, EngineName, ItemFormat
from recsys.model.config import ModelConfig
from recsys.model.decoder import SequenceModel
from recsys.model.incremental import AppendEvents, OpenWindow
from recsys.model.reference import encode
from recsys.runtime import cuda as cuda_module
from recsys.runtime.cache import EventRows, stacked
from recsys.runtime.cached import CachedEngine
from recsys.runtime.cuda import CudaEngine
from recsys.runtime.engine import Engine, EngineInfo
from recsys.runtime.engines import Parts, open_engine
from recsys.runtime.items import ItemTable
from recsys.runtime.plans import Here, PlanName
from recsys.runtime.tensorrt import Loaded, TensorRtEngine, kept_names
from recsys.runtime.tiered import TieredEngine
from tests.runtime.host_gpu import HostContext, HostGpu

NUM_ITEMS, WINDOW = 50, 150
CONFIG = ModelConfig(width=32, num_layers=2, num_heads=2, head_dim=16, feedforward_width=48, init_std=0.2)


@pytest.fixture(scope="module")
def float_model() -> SequenceModel:
    torch.manual_seed(0)
    return SequenceModel(CONFIG, NUM_ITEMS, WINDOW).eval()


@pytest.fixture(scope="module")
def model(float_model: SequenceModel) -> SequenceModel:
    """Rounded to 8 bits."""
    statistics = calibration.collect(float_model, windows(40, 60))
    return awq.round_weights(float_model, statistics, WeightFormat(bits=8), awq.Rounding.NEAREST)


@pytest.fixture(scope="module")
def items(model: SequenceModel) -> ItemTable:
    return ItemTable.of(model.embedding.weight.detach().numpy(), ItemFormat.FLOAT32)


def windows(*lengths: int, seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.integers(1, NUM_ITEMS + 1, length).astype(np.int32) for length in lengths]


def error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.fixture(scope="module")
def cuda(model: SequenceModel, items: ItemTable, tmp_path_factory) -> Callable[..., CudaEngine]:
    folder = tmp_path_factory.mktemp("cuda")
    quantize.save(model, folder)
    return lambda precision, cache: CudaEngine.open_folder(
        folder,
        items,
        model=CONFIG.model_dump(),
        window_size=WINDOW,
        cache=cache,
        precision=precision,
        device="cpu",
    )


class OnnxContext(HostContext):
    """The graph that a plan is built from, computed by onnx's own reference implementation."""

    def __init__(self, proto: Any, gpu: HostGpu) -> None:
        super().__init__(gpu)
        from onnx.reference import ReferenceEvaluator
        from onnx.reference.op_run import OpRun

        class GatherElements(OpRun):
            """onnx's own takes 64 rows at most."""

            def _run(self, data, indices, axis=0):
                return (np.take_along_axis(data, indices, axis=axis),)

        self._graph = ReferenceEvaluator(proto, new_ops=[GatherElements])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        batch, length, width = self.shapes["embedded"]
        return (batch, width) if name == "vector" else (batch, length, CONFIG.num_heads, CONFIG.head_dim)

    def compute(self) -> None:
        inputs = {name: self.numbers(name, shape) for name, shape in self.shapes.items()}
        outputs = ["vector", *kept_names(CONFIG.num_layers, "kept")]
        for name, values in zip(outputs, self._graph.run(None, inputs), strict=True):
            self.numbers(name, self.get_tensor_shape(name))[...] = values


@pytest.fixture(scope="module")
def gpu() -> HostGpu:
    return HostGpu()


@pytest.fixture(scope="module")
def tensorrt_engine(model: SequenceModel, items: ItemTable, gpu: HostGpu) -> TensorRtEngine:
    config = TensorRtConfig(precision="fp16", max_batch=2, max_new=3)
    protos = {graph: tensorrt.onnx_graph(model, WINDOW, config, graph) for graph in ("open", "append")}
    plans: dict[str, Any] = {"max_batch": 2, "max_new": 3, "num_layers": CONFIG.num_layers}
    for graph in protos:
        name = f"{graph}-sm80-driverany-rtx1.0-fp16-{'0' * 12}.plan"
        plans[graph] = {"file": name, "graph_digest": "0" * 12}
    return TensorRtEngine(
        Path(),
        items,
        plans=plans,
        window_size=WINDOW,
        gpu=gpu,
        load=lambda _, name: Loaded(lambda: OnnxContext(protos[name.graph], gpu), captures=False),
    )


def keys_and_values(model: SequenceModel, window: np.ndarray) -> np.ndarray:
    """Of one window, by the module that engines are made from, in float32."""
    tokens_1L = torch.from_numpy(window[None]).long()
    with torch.inference_mode():
        _, *kept = OpenWindow(model, CacheFormat.FLOAT32)(model.embedding(tokens_1L), torch.tensor([len(window) - 1]))
    return torch.cat(kept).transpose(0, 1).numpy()


def check_law(engine: Engine, model: SequenceModel, tolerance: float) -> None:
    """Four sessions at once, of mixed lengths, continued twice by different numbers of events."""
    whole = windows(1, 30, 70, 80, seed=3)
    more = [windows(n, m, seed=4 + n) for n, m in ((4, 1), (1, 2), (1, 1), (2, 5))]
    sessions = engine.open(whole)
    for turn in (0, 1):
        sessions = engine.append(sessions, [events[turn] for events in more])
    expected = encode(model, [np.concatenate([w, *events]) for w, events in zip(whole, more, strict=True)])
    for row, session in enumerate(sessions):
        assert error(session.vector_D, expected[row]) < tolerance
        kept = keys_and_values(model, np.concatenate([whole[row], *more[row]]))
        assert error(engine.kept(session).astype(np.float32), kept) < tolerance
    assert [session.length for session in sessions] == [6, 33, 72, 87]
    assert error(engine.encode(whole), encode(model, whole)) < tolerance


@pytest.mark.parametrize(
    ("precision", "cache", "tolerance"),
    [
        ("float32", CacheFormat.FLOAT32, 1e-5),
        ("float32", CacheFormat.INT8, 3e-2),
        ("float32", CacheFormat.BF16, 2e-2),
        ("bf16", CacheFormat.BF16, 3e-2),
        ("bf16", CacheFormat.FLOAT16, 3e-2),
    ],
)
def test_torch_keeps_the_law(cuda, model: SequenceModel, precision: str, cache: CacheFormat, tolerance: float) -> None:
    check_law(cuda(precision, cache), model, tolerance)


def test_every_append_of_one_event_that_can_come_is_captured_before_the_first_request(cuda, monkeypatch) -> None:
    captured: list[int] = []

    class Captured:
        def __init__(self, module: Any, inputs: list[torch.Tensor]) -> None:
            captured.append(len(inputs[0]))
            self.module = module

        def __call__(self, *inputs: torch.Tensor) -> Any:
            return self.module(*inputs)

    monkeypatch.setattr(cuda_module, "_CapturedAppend", Captured)
    monkeypatch.setattr(cuda_module, "_MAX_GRAPHS", 6)
    engine = cuda("float32", CacheFormat.FLOAT32)
    engine._captures = True
    engine.warm_up()
    assert sorted(captured) == [1, 1, 1, 2, 2, 2]  # up to 64, 128 and 192 kept events, of one session and of two
    for num_sessions in (1, 2):
        for length in (1, 63, 64, 65, 128, 129, 149):
            engine.append(engine.open(windows(*[length] * num_sessions)), windows(*[1] * num_sessions))
    assert len(captured) == 6


def test_torch_without_a_gpu_says_what_to_use(items: ItemTable, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sees none: use the engine `cpu`"):
        CudaEngine.open_folder(tmp_path, items, model={}, window_size=8, cache=CacheFormat.FLOAT16)


@pytest.mark.parametrize("device", ["abacus", "meta"])
def test_a_device_that_is_none_is_refused_in_one_line(items: ItemTable, tmp_path: Path, device: str) -> None:
    with pytest.raises(ConfigError, match=rf"device '{device}': expected cpu"):
        CudaEngine.open_folder(tmp_path, items, model={}, window_size=8, cache=CacheFormat.FLOAT16, device=device)


@pytest.fixture(scope="module")
def reference_parts(float_model: SequenceModel, tmp_path_factory) -> Parts:
    """Of a release whose items, sessions and other engines are rounded."""
    folder, vectors_VD = tmp_path_factory.mktemp("reference"), float_model.embedding.weight.detach().numpy()
    quantize.save_unrounded(float_model, vectors_VD, folder)
    config = {"window": {"size": WINDOW}, "model": CONFIG.model_dump(), "cache": "int8", "engine": "cpu"}
    return Parts(folder=folder, items=ItemTable.of(vectors_VD, ItemFormat.INT8), config=config, num_threads=1)


def test_the_reference_is_the_trained_model_and_keeps_the_law(
    reference_parts: Parts, float_model: SequenceModel, model: SequenceModel
) -> None:
    engine = open_engine(EngineName.REFERENCE, reference_parts)
    check_law(engine, float_model, 1e-5)
    assert error(encode(model, windows(90)), encode(float_model, windows(90))) > 1e-3  # which rounded ones are not
    assert (engine.info.name, engine.info.cache, engine.info.window_size) == ("float32 model", "float32", WINDOW)
    assert engine.info.precision == "float32 weights, items and arithmetic"


@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_any_split_of_a_window_gives_the_trained_model_s_vector_by_the_reference(
    reference_parts: Parts, float_model: SequenceModel, data: st.DataObject
) -> None:
    engine = open_engine(EngineName.REFERENCE, reference_parts)
    (window,) = windows(data.draw(st.integers(1, WINDOW)), seed=data.draw(st.integers(0, 9)))
    session = engine.open([window[: data.draw(st.integers(1, len(window)))]])[0]
    while rest := len(window) - session.length:
        events = window[session.length :][: data.draw(st.integers(1, rest))]
        session = engine.append([session], [events])[0]
    assert error(session.vector_D, encode(float_model, [window])[0]) < 1e-5


@pytest.mark.parametrize("missing", ["torch", "transformers"])
def test_the_reference_without_torch_says_what_to_install(reference_parts: Parts, missing: str, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(
        ConfigError, match=r"the reference engine needs the extra: pip install 'recsys\[train\]'"
    ) as said:
        open_engine(EngineName.REFERENCE, reference_parts)
    assert "\n" not in str(said.value)


@pytest.mark.slow
def test_the_graphs_of_plans_keep_the_law(tensorrt_engine: TensorRtEngine, model: SequenceModel, gpu: HostGpu) -> None:
    check_law(tensorrt_engine, model, 1e-2)


@pytest.mark.slow
def test_a_shape_is_captured_when_it_is_seen_again_and_memory_is_given_back(
    tensorrt_engine: TensorRtEngine, gpu: HostGpu
) -> None:
    event = windows(1)
    before = gpu.num_captured
    sessions = tensorrt_engine.open(windows(20))
    for _ in range(4):
        sessions = tensorrt_engine.append(sessions, event)
    assert gpu.num_captured > before
    held = len(gpu.blocks)
    del sessions
    assert len(gpu.blocks) < held


@pytest.mark.slow
def test_a_session_of_a_plan_may_be_continued_twice(tensorrt_engine: TensorRtEngine, model: SequenceModel) -> None:
    start = windows(20)
    session = tensorrt_engine.open(start)[0]
    for seed in (1, 2):
        events = windows(2, seed=seed)[0]
        found = tensorrt_engine.append([session], [events])[0].vector_D
        assert error(found, encode(model, [np.concatenate([start[0], events])])[0]) < 1e-2


def test_the_engine_that_the_documentation_shows_keeps_the_law(model: SequenceModel, items: ItemTable) -> None:
    page = (Path(__file__).parents[2] / "docs" / "extend.md").read_text()
    example = textwrap.dedent(page.split("```python\n")[1].split("```")[0])
    names: dict[str, Any] = {"CachedEngine": CachedEngine, "EventRows": EventRows, "stacked": stacked}
    exec(example, names)
    engine = names["MyEngine"](
        EngineInfo(
            name="mine", precision="float32", width=CONFIG.width, num_threads=1, window_size=WINDOW,
            cache=CacheFormat.FLOAT32,
        )
    )  # fmt: skip
    modules = OpenWindow(model, CacheFormat.FLOAT32), AppendEvents(model, CacheFormat.FLOAT32)

    def graph(module: torch.nn.Module) -> Callable[..., list[np.ndarray]]:
        def run(*inputs: np.ndarray) -> list[np.ndarray]:
            with torch.inference_mode():
                return [part.numpy() for part in module(*map(torch.from_numpy, inputs))]

        return run

    engine._items, engine._graphs = items, [graph(module) for module in modules]
    check_law(engine, model, 1e-5)


@pytest.fixture(scope="module")
def tiered(cuda) -> TieredEngine:
    return TieredEngine(cuda("float32", CacheFormat.FLOAT32), cuda("bf16", CacheFormat.FLOAT16), threshold=40)


def test_tiers_answer_as_one_engine(tiered: TieredEngine, model: SequenceModel) -> None:
    check_law(tiered, model, 3e-2)


def test_short_windows_go_to_the_first_engine(tiered: TieredEngine, model: SequenceModel) -> None:
    long, short = tiered.encode(windows(41, 40))
    exact_long, exact_short = encode(model, windows(41, 40))
    assert error(short, exact_short) < 1e-5 < 1e-4 < error(long, exact_long)


@pytest.mark.parametrize(
    ("short_ms", "long_ms", "expected"),
    [((1, 2, 9), (3, 3, 3), 8), ((4, 1, 1), (3, 3, 3), 0), ((1,) * 3, (2,) * 3, 64)],
)
def test_the_threshold_is_the_last_length_before_the_long_engine_wins(short_ms, long_ms, expected: int) -> None:
    rows = [
        {"length": length, "short_ms": a, "long_ms": b}
        for length, a, b in zip((1, 8, 64), short_ms, long_ms, strict=True)
    ]
    assert tiers.threshold(rows) == expected


def test_the_measured_threshold_is_one_of_the_measured_lengths(cuda) -> None:
    engine = cuda("float32", CacheFormat.FLOAT32)
    found = tiers.measure(engine, engine, NUM_ITEMS, num_rounds=1)
    assert [row["length"] for row in found["by_length"]] == [1, 2, 4, 8, 16, 32, 64, 128, 150]
    assert found["threshold"] in [0, *(row["length"] for row in found["by_length"])]


@pytest.mark.parametrize(
    ("gpu_name", "capability", "driver", "version", "problem"),
    [
        ("NVIDIA A100-SXM4-40GB", 80, "13.0", "11.2", None),
        ("NVIDIA H100 80GB HBM3", 90, "13.0", "11.2", "GPU nvidia_a100_sxm4_40gb, here sm90"),
        ("NVIDIA A100-SXM4-40GB", 80, "12.8", "11.2", "driver 13.0, here 12.8"),
        ("NVIDIA A100-SXM4-40GB", 80, "13.0", "11.3", "TensorRT 11.2, here 11.3"),
    ],
)
def test_a_plan_runs_on_what_it_was_built_for(gpu_name, capability, driver, version, problem) -> None:
    name = PlanName.parse(f"open-nvidia_a100_sxm4_40gb-driver13.0-full11.2-bf16-{'a' * 12}.plan")
    here = Here(gpu_name=gpu_name, capability=capability, driver=driver)
    if problem is None:
        name.check(here, version, "a" * 12)
    else:
        with pytest.raises(ConfigError, match=problem):
            name.check(here, version, "a" * 12)


def test_the_bf16_row_of_the_comparison_keeps_angles_of_rotation_as_what_is_served_does() -> None:
    torch.manual_seed(0)
    model = SequenceModel(CONFIG, NUM_ITEMS, 1024).eval()
    engine = quantize._in_bf16(model, 1024)
    graph = engine._modules[0]
    assert torch.equal(graph.steps.frequency_K, model.decoder.rotary_emb.inv_freq)
    assert next(graph.parameters()).dtype == torch.bfloat16
    long = windows(1000, 1024)
    exact = encode(model, long)
    rounded_too = encode(copy.deepcopy(model).bfloat16(), long)
    assert error(engine.encode(long), exact) < error(rounded_too, exact)
