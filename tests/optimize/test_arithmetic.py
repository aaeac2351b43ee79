"""What the CPU engine computes in."""

from pathlib import Path
from typing import Any

import pytest

from optimize import arithmetic, build
from optimize.config import OptimizeConfig
from recsys.contracts.errors import ConfigError
from recsys.contracts.precision import Arithmetic
from recsys.runtime import openvino
from recsys.runtime.release import Release


def rows(f32_ms: float, bf16_ms: float) -> dict:
    return {"threshold": 0, "by_length": [{"length": 64, "short_ms": f32_ms, "long_ms": bf16_ms}]}


@pytest.mark.parametrize(
    ("wanted", "has_bf16", "bf16_ms", "chosen", "num_rows"),
    [
        (Arithmetic.AUTO, False, None, Arithmetic.F32, 0),
        (Arithmetic.AUTO, True, 5.0, Arithmetic.BF16, 1),
        (Arithmetic.AUTO, True, 9.5, Arithmetic.F32, 1),  # not by enough
        (Arithmetic.F32, True, None, Arithmetic.F32, 0),
        (Arithmetic.BF16, True, None, Arithmetic.BF16, 0),
    ],
)
def test_bf16_is_taken_where_it_is_there_and_a_full_window_is_quicker_by_it(
    monkeypatch: pytest.MonkeyPatch,
    wanted: Arithmetic,
    has_bf16: bool,
    bf16_ms: float | None,
    chosen: Arithmetic,
    num_rows: int,
) -> None:
    opened: list[Arithmetic] = []
    monkeypatch.setattr(openvino, "has_bf16", lambda: has_bf16)
    monkeypatch.setattr("optimize.tiers.measure", lambda *_, **__: rows(10.0, bf16_ms or 0.0))
    found = arithmetic.choose(wanted, opened.append, num_items=10)  # type: ignore[arg-type]
    assert (found["arithmetic"], len(found["arithmetic_ms"])) == (chosen, num_rows)
    assert opened == ([Arithmetic.F32, Arithmetic.BF16] if num_rows else [])


def test_bf16_where_the_processor_has_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "has_bf16", lambda: False)
    with pytest.raises(ConfigError, match='this processor does not multiply in it; use "auto" or "f32"'):
        arithmetic.choose(Arithmetic.BF16, lambda _: pytest.fail("opened"), num_items=10)


def test_a_release_of_a_processor_with_bf16_is_served_in_it_there_and_in_float32_elsewhere(
    ring_checkpoint: Path, ring_features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "has_bf16", lambda: True)
    monkeypatch.setattr("optimize.tiers.measure", lambda *_, **__: rows(10.0, 5.0))
    config = OptimizeConfig(num_calibration_windows=8, num_comparison_windows=0, num_check_users=10)
    name, manifest = build.run(config, ring_checkpoint, ring_features, tmp_path, force=True)
    assert manifest.config["arithmetic"] == "bf16"
    assert manifest.config["arithmetic_ms"] == [{"length": 64, "f32": 10.0, "bf16": 5.0}]
    from openvino import Core

    compile_model, hints = Core.compile_model, []

    def noted(core: Core, model: Any, device: str, settings: dict[str, Any]) -> Any:
        hints.append(settings["INFERENCE_PRECISION_HINT"])
        return compile_model(core, model, device, settings)

    monkeypatch.setattr(Core, "compile_model", noted)
    for has_bf16, hint in ((True, "bf16"), (False, "f32")):
        hints.clear()
        monkeypatch.setattr(openvino, "has_bf16", lambda found=has_bf16: found)
        engine = Release.open(tmp_path / name).engine
        formats = "int8 per channel (AWQ) weights, int8 items"
        assert manifest.config["precision"] == formats
        assert engine.info.precision == f"{formats}, {'bf16' if has_bf16 else 'float32'} arithmetic"
        assert hints == [hint, hint]
