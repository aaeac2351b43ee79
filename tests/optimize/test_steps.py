import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from optimize import build, calibration, cost, quantize, report
from optimize.config import CudaConfig, GateConfig, OptimizeConfig, TieredConfig
from optimize.steps import Rules, Steps
from optimize.tensorrt import TensorRtConfig
from recsys.contracts import artifact
from recsys.contracts.errors import ConfigError, LockedError
from recsys.contracts.precision import EngineName
from recsys.model.checkpoint import Checkpoint
from recsys.runtime.plans import PlanName
from recsys.runtime.release import Release

CONFIG = OptimizeConfig(gate=GateConfig(min_top10_overlap=0.9), num_threads=1)
RULES = {"one": Rules(1, ("openvino",))}


class KilledError(Exception):
    pass


def counted(function: Callable[..., object], calls: list[str]) -> Callable[..., object]:
    def noted(*arguments: object, **named: object) -> object:
        calls.append(function.__name__)
        return function(*arguments, **named)

    return noted


@pytest.mark.parametrize(
    ("killed_in", "done_before"),
    [
        pytest.param((quantize, "rounded"), ["calibration"], marks=pytest.mark.slow),
        pytest.param((build, "build_engine"), ["calibration", "rounded"], marks=pytest.mark.slow),
        pytest.param((report, "compare"), ["calibration", "cpu", "index", "rounded"], marks=pytest.mark.slow),
        ((cost, "measure"), ["calibration", "cpu", "index", "methods", "rounded"]),
    ],
)
def test_a_killed_run_goes_on_after_its_last_step(
    ring_features: Path, ring_checkpoint: Path, tmp_path: Path, monkeypatch, killed_in, done_before: list[str]
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KilledError

    made: list[str] = []
    for module, name in ((calibration, "collect"), (quantize, "rounded"), (quantize, "compare_methods")):
        monkeypatch.setattr(module, name, counted(getattr(module, name), made))
    with monkeypatch.context() as patched:
        patched.setattr(*killed_in, killed)
        with pytest.raises(KilledError):
            build.run(CONFIG, ring_checkpoint, ring_features, tmp_path)
    (steps,) = (path for path in tmp_path.iterdir() if path.is_dir())  # beside it: evaluations.jsonl
    assert sorted(path.name for path in steps.iterdir()) == done_before
    digest = artifact.read_manifest(steps / "calibration").digest
    for step in {"rounded", "methods"} & set(done_before):
        assert artifact.read_manifest(steps / step).parents["calibration"] == digest
    name, _ = build.run(CONFIG, ring_checkpoint, ring_features, tmp_path)
    assert sorted(made) == ["collect", "compare_methods", "rounded"]  # each once in both runs
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "current", "evaluations.jsonl"])


def test_plans_are_a_step_that_is_not_done_again(
    ring_features: Path, ring_checkpoint: Path, tmp_path: Path, monkeypatch
) -> None:
    config, made = CONFIG.model_copy(update={"tensorrt": TensorRtConfig()}), []
    monkeypatch.setattr(build, "build_plans", counted(build.build_plans, made))
    with monkeypatch.context() as patched, pytest.raises(KilledError):
        patched.setattr(report, "compare", lambda *_, **__: (_ for _ in ()).throw(KilledError))
        build.run(config, ring_checkpoint, ring_features, tmp_path)
    _, manifest = build.run(config, ring_checkpoint, ring_features, tmp_path)
    assert made == ["build_plans"]
    assert {manifest.config["plans"][graph]["file"] for graph in ("open", "append")} <= set(manifest.files)
    PlanName.parse(manifest.config["plans"]["open"]["file"])


@pytest.mark.parametrize("killed_at", ["set_current", "remove"])
def test_a_run_that_was_killed_when_its_release_was_written_is_done_again_in_no_time(
    ring_features: Path, ring_checkpoint: Path, tmp_path: Path, monkeypatch, killed_at: str
) -> None:
    with monkeypatch.context() as patched, pytest.raises(KilledError):
        owner = artifact if killed_at == "set_current" else Steps
        patched.setattr(owner, killed_at, lambda *_: (_ for _ in ()).throw(KilledError))
        build.run(CONFIG, ring_checkpoint, ring_features, tmp_path)
    assert (artifact.current_name(tmp_path) is None) == (killed_at == "set_current")
    for module, step in ((calibration, "collect"), (quantize, "rounded"), (build, "build_engine")):
        monkeypatch.setattr(module, step, None)  # steps that were finished are not done again
    name, _ = build.run(CONFIG, ring_checkpoint, ring_features, tmp_path)
    assert artifact.current_name(tmp_path) == name


def test_a_group_that_does_not_divide_is_refused_before_anything_is_computed(
    ring_features: Path, ring_checkpoint: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(calibration, "collect", None)
    with pytest.raises(ConfigError, match="group_size = 24: does not divide the 32 inputs of layers"):
        build.run(OptimizeConfig(group_size=24), ring_checkpoint, ring_features, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_other_settings_and_damaged_steps_are_done_again(
    ring_features: Path, ring_checkpoint: Path, tmp_path: Path
) -> None:
    made: list[int] = []

    def make(folder: Path) -> dict[str, int]:
        made.append(1)
        (folder / "file").write_text("content")
        return {"times": len(made)}

    heard: list[tuple[str, int, int]] = []
    steps = Steps(tmp_path, {"checkpoint": "a" * 64}, RULES, lambda *step: heard.append(step))
    assert [steps.run("one", {"x": x}, make).metrics["times"] for x in (1, 1, 2)] == [1, 1, 2]
    assert heard == [("step one", 0, 1), ("step one", 1, 1)] * 2  # nothing of what was done before
    (steps.folder / "one" / "file").write_text("damaged")
    assert steps.run("one", {"x": 2}, make).metrics["times"] == 3


def test_steps_of_another_library_or_of_older_code_are_done_again(tmp_path: Path, monkeypatch) -> None:
    made: list[int] = []

    def times(rules: Rules) -> int:
        steps = Steps(tmp_path, {"checkpoint": "a" * 64}, {"one": rules})
        try:
            return steps.run("one", {}, lambda _: made.append(1) or {"times": len(made)}).metrics["times"]
        finally:
            steps._let_go()

    assert [times(rules) for rules in (RULES["one"], RULES["one"], Rules(2, ("openvino",)))] == [1, 1, 2]
    monkeypatch.setattr(metadata, "version", lambda _: "another")
    assert [times(Rules(2, ("openvino",))) for _ in range(2)] == [3, 3]


def test_every_step_of_a_release_names_libraries_that_are_known_here() -> None:
    """A name with a slip of the pen would be a version of None for ever."""
    absent = {"tensorrt", "faiss-gpu"}  # take others' places on machines with a GPU
    named = {name for rules in build._RULES.values() for name in rules.libraries} - absent
    assert {name: metadata.version(name) for name in named}.keys() == named


KILLED = """
import sys, time, pathlib
from optimize import build, report
from tests.optimize.test_steps import CONFIG
def wait(*_, **__):
    print("measuring", flush=True)
    time.sleep(600)
report.compare = wait
build.run(CONFIG, *map(pathlib.Path, sys.argv[1:]))
"""


def test_after_sigkill_the_next_run_goes_on_and_leaves_nothing_half_written(
    ring_features: Path, ring_checkpoint: Path, tmp_path: Path, monkeypatch
) -> None:
    places = ring_checkpoint, ring_features, tmp_path / "releases"
    with subprocess.Popen([sys.executable, "-c", KILLED, *map(str, places)], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None and run.stdout.readline() == "measuring\n"
        run.kill()
    left = [path.name for path in places[2].iterdir()]
    assert sum(".writing-" in name for name in left) == 1 and not any(name[0] != "." for name in left)
    for module, step in ((calibration, "collect"), (quantize, "rounded"), (build, "build_engine")):
        monkeypatch.setattr(module, step, None)  # steps that were finished are not done again
    name, _ = build.run(CONFIG, *places)
    assert sorted(path.name for path in places[2].iterdir()) == sorted([name, "current", "evaluations.jsonl"])


def test_a_second_run_of_a_checkpoint_is_refused_while_the_first_is_under_way(tmp_path: Path) -> None:
    parents = {"checkpoint": "a" * 64}
    first = Steps(tmp_path, parents, RULES)
    first.run("one", {}, lambda folder: {})
    with pytest.raises(LockedError, match="another optimize of this checkpoint is under way") as refused:
        Steps(tmp_path, parents, RULES)
    assert refused.value.exit_code == 4
    assert (first.folder / "one").exists()
    Steps(tmp_path, {"checkpoint": "b" * 64}, RULES).remove()  # another checkpoint's are its own
    first.remove()
    assert list(tmp_path.iterdir()) == []
    Steps(tmp_path, parents, RULES).remove()


def test_a_run_that_was_killed_leaves_its_steps_and_no_lock(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib, optimize.steps;"
        "rules = {'one': optimize.steps.Rules(1, ())};"
        "steps = optimize.steps.Steps(pathlib.Path(sys.argv[1]), {'checkpoint': 'a' * 64}, rules);"
        "steps.run('one', {}, lambda folder: {}); print('done', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "done\n"
        with pytest.raises(LockedError):
            Steps(tmp_path, {"checkpoint": "a" * 64}, RULES)
        other.kill()
    steps = Steps(tmp_path, {"checkpoint": "a" * 64}, RULES)
    assert artifact.verify(steps.folder / "one", "step").kind == "step"


@pytest.mark.parametrize("threshold", [4, None])
def test_a_release_is_served_by_tiers_whose_threshold_it_names(
    ring_features: Path, ring_checkpoint: Path, tmp_path: Path, threshold: int | None
) -> None:
    """Without one it is measured."""
    config = CONFIG.model_copy(
        update={
            "engine": EngineName.TIERED,
            "cuda": CudaConfig(precision="float32", device="cpu"),
            "tiered": TieredConfig(threshold=threshold),
        }
    )
    _, manifest = build.run(config, ring_checkpoint, ring_features, tmp_path)
    found, lengths = manifest.config["tiers"]["threshold"], manifest.config["tiers"]["by_length"]
    if threshold is None:
        assert found in [0, *(row["length"] for row in lengths)]
        assert all(min(row["short_ms"], row["long_ms"]) > 0 for row in lengths)
    else:
        assert (found, lengths) == (4, [])
    assert (manifest.metrics["index"]["choice"]["kind"], manifest.metrics["index"]["recall@100"]) == ("exact", 1.0)
    cost = manifest.metrics["cost"]
    assert min(cost.values()) > 0  # both tiers compute on the CPU
    assert "decoder.safetensors" in artifact.read_manifest(artifact.resolve_release(tmp_path)).files
    assert Release.open(tmp_path).engine.info.name == f"tiered: openvino up to {found} events, torch on cpu above"


@pytest.mark.parametrize(
    ("settings", "on_cpu"),
    [
        ({}, True),
        ({"engine": "cuda"}, False),
        ({"engine": "cuda", "cuda": {"device": "cpu"}}, True),
        ({"engine": "tensorrt"}, False),
        ({"engine": "tiered"}, False),
        ({"engine": "tiered", "cuda": {"device": "cpu"}}, True),
        ({"cuda": {}}, True),  # beside the CPU engine, which serves
        ({"engine": "reference"}, True),
        ({"engine": "cuda", "reference": True}, False),
    ],
)
def test_an_engine_on_a_gpu_is_not_timed_against_the_float_model_on_the_cpu(
    settings, on_cpu: bool, ring_checkpoint
) -> None:
    assert OptimizeConfig(**settings).answers_on_cpu == on_cpu
    engine = SimpleNamespace(encode=lambda windows: None)
    measured = cost.measure(Checkpoint.open(ring_checkpoint), engine, 1, 0, same_device=on_cpu)
    assert (measured.float32_encode_ms is not None) == on_cpu


@pytest.mark.parametrize("settings", [{"engine": "tensorrt"}, {"tensorrt": {}}])
def test_plans_beside_sessions_in_bf16_are_refused_in_one_line(settings) -> None:
    refused = r'^file: value error, cache = "bf16": TensorRT plans keep sessions in float16'
    with pytest.raises(ConfigError, match=refused) as said:
        OptimizeConfig.from_mapping({"cache": "bf16", **settings}, "file")
    assert "\n" not in str(said.value)
    assert OptimizeConfig(cache="float16", **settings).cache == "float16"


def test_an_engine_that_a_release_was_built_without_is_refused(ring_releases: Path) -> None:
    for engine, words in (
        (EngineName.CUDA, "without the cuda engine"),
        (EngineName.TENSORRT, "without TensorRT"),
        (EngineName.REFERENCE, r"without the float32 model; run .* reference = true under \[optimize\]"),
    ):
        with pytest.raises(ConfigError, match=words):
            Release.open(ring_releases, engine=engine)
