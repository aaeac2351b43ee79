import json
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from optimize.config import GateConfig, OptimizeConfig
from optimize.rounding import RoundedLinear
from recsys import dataset
from recsys.contracts import artifact
from recsys.contracts.errors import ConfigError, DataError
from recsys.contracts.ids import Vocabulary
from recsys.contracts.protocol import Protocol
from recsys.evaluation import looks
from recsys.pipeline import benchmark_tables, case_benchmark, case_report, engine_benchmark, heads_benchmark
from recsys.pipeline.case_process import main as case_process
from recsys.runtime import openvino
from recsys.training.config import Recipe
from recsys.windows import WindowConfig
from tests.conftest import write_events, write_features

KEYS = {
    "latency_ratio_cold", "latency_ratio_warm", "memory_ratio", "disk_ratio", "accuracy_change", "accuracy_change_low",
    "quantization_loss_upper", "top10_overlap", "awq_error_ratio_8", "awq_error_ratio_4", "replay_ratio_cold",
    "replay_ratio_warm", "peak_mb", "load_s", "awq_compensated_error_ratio_8", "awq_compensated_error_ratio_4",
}  # fmt: skip


def test_the_engine_benchmark_measures_every_call(ring_releases) -> None:
    values = engine_benchmark.run(ring_releases, num_rounds=2, num_threads=1)
    assert {(row["call"], row["batch"]) for row in values["rows"]} == {
        ("open", 1), ("open", 8), ("append 1", 1), ("append 1", 8)
    }  # fmt: skip
    assert all(np.isfinite(row["p50_ms"]) and row["p50_ms"] > 0 for row in values["rows"])
    # 64 rows of 1 layer x keys and values x width 32 in int8, and a float32 scale for each of 2 heads
    assert values["session_bytes"] == 64 * 2 * (32 + 2 * 4)
    seen = values["every_length"]
    assert seen["num_lengths"] == 8 - 2 + 1
    assert min(seen["new_ms"], seen["again_ms"]) > 0
    table = benchmark_tables.engine_table(values)
    assert "a session of a full window keeps 5,120 bytes" in table
    assert "windows of 7 lengths" in table


def test_eager_torch_is_timed_beside_the_engine_over_one_window_and_two(ring_releases, ring_checkpoint) -> None:
    values = engine_benchmark.run(ring_releases, 1, 1, checkpoint=ring_checkpoint, batches=[3])
    size = artifact.read_manifest(ring_checkpoint).config["window"]["size"]
    assert {(row["events"], row["batch"]) for row in values["rows"] if row["call"] == "eager"} == {
        (size, 3),
        (2 * size, 3),
    }
    assert "eager" in benchmark_tables.engine_table(values)
    with pytest.raises(ConfigError, match="--device abacus: "):
        engine_benchmark.run(ring_releases, 1, 1, checkpoint=ring_checkpoint, device="abacus")


def test_what_a_gpu_is_used_for_stands_beside_each_row(ring_releases, monkeypatch) -> None:
    watch = SimpleNamespace(used=lambda *_: {"gpu_memory_mb": 512.0, "sm_share": 0.25, "tensor_share": None})
    monkeypatch.setattr(engine_benchmark.GpuWatch, "open", lambda: watch)
    values = engine_benchmark.run(ring_releases, 1, 1)
    table = benchmark_tables.engine_table(values)
    assert "512.00" in table
    assert "0.25" in table
    opened, *_ = (row for row in values["rows"] if row["call"] == "open")
    assert (opened["gpu_memory_mb"], opened["sm_share"]) == (512.0, 0.25)


@pytest.mark.slow
def test_the_case_has_every_figure_and_a_picture(ring_features, tiny_recipe: Recipe, tmp_path, monkeypatch) -> None:
    config, folder = OptimizeConfig(gate=GateConfig(min_top10_overlap=0.9)), tmp_path / "kept"
    given = {"num_seeds": 1, "num_rounds": 3, "force": True, "out": folder}
    values = case_benchmark.run(ring_features, tiny_recipe, config, **given)
    assert values.keys() >= KEYS
    assert list(values["accuracy_by_cause"]) == list(case_report.STEPS)[1:]
    assert list(values["memory"]) == list(case_report.STEPS)
    assert (values["cache"], values["memory"]["cache"]["num_sessions"]) == ("int8", 100)
    assert all(rate > 0 for rate in values["users_per_second"].values())
    assert values["num_items"] == {"before": 30, "after": 30}
    case_report.picture(values, tmp_path / "case.png")
    assert (tmp_path / "case.png").stat().st_size > 1000
    assert "latency, warm user" in benchmark_tables.case_summary(values)
    assert "sessions: 100 users kept in int8, " in benchmark_tables.case_summary(values)
    assert values["arithmetic"].keys() == {"engine", "quantization"}
    assert f"arithmetic: engine {values['arithmetic']['engine']}, " in benchmark_tables.case_summary(values)
    gates, sides = 4, len(case_report.STEPS)  # engine and cache are no releases of their own
    assert values["num_looks"] == gates + sides
    assert "looks at the test set in the log: 10, in 4 logs such as" in benchmark_tables.case_summary(values)
    monkeypatch.setattr(case_benchmark.train, "run", None)  # what is there is not trained again
    again = case_benchmark.run(ring_features, tiny_recipe, config, **given)
    assert again["accuracy_by_cause"] == values["accuracy_by_cause"]
    with pytest.raises(DataError, match="a run with another optimize, or of an older version; give another --out"):
        case_benchmark.run(ring_features, tiny_recipe, OptimizeConfig(bits=4), **given)


def test_awq_alone_and_compensated_are_figures_of_their_own_by_hand() -> None:
    methods = {"plain rounding": 0.2, "AWQ": 0.18, "AWQ, compensated": 0.12}
    assert case_benchmark._error_ratios(methods, bits=4) == {
        "awq_error_ratio_4": 0.9,
        "awq_compensated_error_ratio_4": 0.6,
    }


def test_head_shapes_of_equal_width_are_compared_as_a_release_would_serve_them(
    ring_features, tiny_recipe: Recipe, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(openvino, "has_bf16", lambda: False)
    timed, measure = [], heads_benchmark._timed
    monkeypatch.setattr(heads_benchmark, "_timed", lambda some, *rest: timed.extend(some) or measure(some, *rest))
    built, build = [], heads_benchmark.build_engine
    monkeypatch.setattr(
        heads_benchmark, "build_engine", lambda model, *rest: built.append(model) or build(model, *rest)
    )
    seeds, fit = [], heads_benchmark.train.run
    monkeypatch.setattr(
        heads_benchmark.train, "run", lambda of, *rest, **more: seeds.append(of.training.seed) or fit(of, *rest, **more)
    )
    short = tiny_recipe.model_copy(update={"training": tiny_recipe.training.model_copy(update={"max_epochs": 3})})
    values = heads_benchmark.run(ring_features, short, [2, 4], num_seeds=2, num_rounds=2, num_threads=1)
    assert [(row["num_heads"], row["head_dim"]) for row in values["rows"]] == [(2, 16), (4, 8)]
    assert any(row["on_frontier"] for row in values["rows"])
    own, four = values["rows"]
    assert own["difference"] is None
    apart = four["validation_ndcg@10"] - own["validation_ndcg@10"]
    assert four["difference"]["difference"] == pytest.approx(apart)
    assert seeds == [0, 1, 0, 1]
    heads_benchmark.picture(values, tmp_path / "heads.png")
    assert (tmp_path / "heads.png").stat().st_size > 1000
    table = benchmark_tables.heads_table(values)
    assert "4 x 8" in table
    assert f"found: {values['found_heads']} heads" in table
    assert "int8 per channel (AWQ) weights, int8 items, float32 arithmetic, int8 sessions" in " ".join(table.split())
    assert [type(model.decoder.layers[0].mlp.up_proj) for model in built] == [RoundedLinear] * 2
    assert [candidate.engine._items.codes is not None for candidate in timed] == [True] * 2
    with pytest.raises(ConfigError, match="3 heads do not divide the inner width 32"):
        heads_benchmark.run(ring_features, tiny_recipe, [3], num_seeds=1, num_rounds=1, num_threads=1)


def test_head_shapes_are_not_compared_where_the_validation_has_no_users(tiny_recipe: Recipe, tmp_path) -> None:
    rows = [(f"u{n}", item, moment, 0) for n in range(4) for item, moment in ((1, 0), (2, 0), (1, 1))]
    events = pl.DataFrame(rows, ["user_id", "item_index", "timestamp_ms", "event_type"], orient="row")
    write_events(tmp_path / "features", events, 2, {"split_ms": 1})
    with pytest.raises(DataError, match="features: the validation has no users, so shapes cannot be compared"):
        heads_benchmark.run(tmp_path / "features", tiny_recipe, [1, 4], num_seeds=1, num_rounds=1, num_threads=1)


def test_the_frontier_is_what_nothing_certainly_beats() -> None:
    noise_U = np.random.default_rng(0).normal(0, 0.1, 200)
    level_U = np.full(200, 0.5)
    shapes = {
        "quick": (1.0, level_U),
        "as quick, as far as anybody knows": (1.04, level_U + noise_U - noise_U.mean() - 0.001),
        "slow": (1.2, level_U + noise_U - noise_U.mean() + 0.001),
        "slow and better": (1.2, level_U + 0.1),
        "better, but not as good": (1.2, level_U + 0.05),
    }
    milliseconds, ndcg_NU = zip(*shapes.values(), strict=True)
    kept = heads_benchmark._frontier(milliseconds, ndcg_NU)
    assert dict(zip(shapes, kept, strict=True)) == dict(zip(shapes, [True, True, False, True, False], strict=True))


def test_the_own_shape_is_found_unless_it_is_beaten() -> None:
    shapes = ((1, 2.0, True, 0.1), (2, 1.98, True, 0.1), (4, 3.0, False, None), (8, 1.0, True, -0.1))
    rows = [
        {"num_heads": heads, "open_ms": ms, "on_frontier": is_on, "difference": high and {"high": high}}
        for heads, ms, is_on, high in shapes
    ]
    assert [heads_benchmark._found(rows, own) for own in (1, 2, 4)] == [1, 2, 2]  # 8 heads are worse than 4
    assert heads_benchmark._found(rows[2:], 4) is None


def test_the_case_names_the_windows_it_is_of() -> None:
    words = case_report.words(WindowConfig(size=32).model_dump())
    assert list(words) == list(case_report.STEPS)
    assert words["before"] == "all ids, full attention over 64, float32, eager"
    assert words["window"] == "+ window of 32, 30 % shared"
    summaries = case_report.words(WindowConfig(size=32, summary_tokens=4).model_dump())
    assert summaries["window"] == "+ window of 32, 30 % shared, 4 summaries each"
    assert case_report.words(WindowConfig().model_dump())["before"].startswith("all ids, full attention over 2,048,")


def test_a_process_reports_what_it_cost(ring_releases, capsys) -> None:
    release = str(artifact.resolve_release(ring_releases))
    case_process("release", release, "1", "16,18,20")
    without = json.loads(capsys.readouterr().out)
    assert without["peak_mb"] > 0
    assert (without["num_sessions"], without["sessions_mb"]) == (0, 0)
    case_process("sessions", release, "1", "16,18,20")
    kept = json.loads(capsys.readouterr().out)
    # each has room for 64 events: 1 layer x keys and values x width 32 in int8, and a float32 scale for each of 2 heads
    assert (kept["num_sessions"], kept["sessions_mb"]) == (100, 100 * 64 * 2 * (32 + 2 * 4) / 1e6)


class LastItem:
    """A release that ranks the last item of a history alone."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.release = SimpleNamespace(vocabulary=vocabulary)

    def rank(self, histories, k: int) -> np.ndarray:
        return np.array([[history[-1]] + [0] * (k - 1) for history in histories], dtype=np.int32)


def test_a_user_whose_history_is_pruned_stays_in_the_comparison_with_popular_items(tmp_path, monkeypatch) -> None:
    histories = {f"u{n}": [1, 2, 1, 2, 1, 2, 1] for n in range(9)} | {"rare": [3, 4, 5, 6, 7, 1, 2]}
    write_features(tmp_path / "pruned", histories, 7, split_ms=5)
    whole = case_benchmark._with_all_items(tmp_path / "pruned", tmp_path / "whole")
    known = {place: LastItem(dataset.load(place, Protocol.TIME).vocabulary) for place in (whole, tmp_path / "pruned")}
    monkeypatch.setattr(case_benchmark.Recommender, "load", known.__getitem__)
    before, after = (case_benchmark._Side(place, place, place) for place in known)
    found = case_benchmark._accuracy([{"before": before, "after": after}], "before", "after")
    assert found.num_users == 10
    logged = looks.read(tmp_path / looks.LOG_FILE)
    assert sorted(look.release for look in logged) == sorted(artifact.read_manifest(place).digest for place in known)
    # rare's last item is 7, a miss; the popular items are 1 and 2, and so are the targets: 1 for one of ten users
    assert found.difference == pytest.approx(0.1)
