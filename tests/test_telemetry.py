"""Figures of a GPU, by NVML's own structures and functions that stand in for a driver."""

import math
from types import SimpleNamespace

import pynvml
import pytest
from prometheus_client import CollectorRegistry

from recsys.telemetry import GpuWatch, add_process_metrics


@pytest.fixture
def driver(monkeypatch):
    """One GPU of 5 GB in use, its SMs 40 % busy. Tensor cores: the difference of the samples' numbers, in percent."""
    state = SimpleNamespace(made=[], freed=[], is_lost=False)

    def there(answer):
        if state.is_lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return answer

    def alloc():
        state.made.append(pynvml.c_nvmlGpmSample_t())
        return state.made[-1]

    def metrics(wanted):
        assert (wanted.version, wanted.numMetrics) == (pynvml.NVML_GPM_METRICS_GET_VERSION, 1)
        assert wanted.metrics[0].metricId == pynvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL
        wanted.metrics[0].value = 25.0
        return wanted

    stand_ins = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda number: number,
        "nvmlDeviceGetMemoryInfo": lambda _: there(SimpleNamespace(used=5e9)),
        "nvmlDeviceGetUtilizationRates": lambda _: SimpleNamespace(gpu=40),
        "nvmlGpmQueryDeviceSupport": lambda _: SimpleNamespace(isSupportedDevice=1),
        "nvmlGpmSampleAlloc": alloc,
        "nvmlGpmSampleGet": lambda _, sample: there(sample),
        "nvmlGpmMetricsGet": metrics,
        "nvmlGpmSampleFree": state.freed.append,
    }
    for name, function in stand_ins.items():
        monkeypatch.setattr(pynvml, name, function)
    return state


def value(registry: CollectorRegistry, name: str) -> float | None:
    return registry.get_sample_value(f"recsys_gpu_{name}", {"gpu": "0"})


def test_memory_sms_and_tensor_cores_of_a_gpu_are_shown_and_no_sample_is_leaked(driver) -> None:
    registry = CollectorRegistry()
    add_process_metrics(registry)
    assert [value(registry, name) for name in ("memory_bytes", "sm_share")] == [5e9, 0.4]
    assert [value(registry, "tensor_share") for _ in range(3)] == [0.25] * 3
    assert len(driver.made) == len(driver.freed) + 1


def test_a_gpu_without_such_counters_has_no_tensor_cores_to_show(driver, monkeypatch) -> None:
    def unknown(_):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    monkeypatch.setattr(pynvml, "nvmlGpmQueryDeviceSupport", unknown)
    registry = CollectorRegistry()
    add_process_metrics(registry)
    assert value(registry, "sm_share") == 0.4
    assert value(registry, "tensor_share") is None
    assert driver.made == []


def test_a_figure_that_the_driver_does_not_tell_is_not_a_number(driver) -> None:
    registry = CollectorRegistry()
    add_process_metrics(registry)
    driver.is_lost = True
    assert math.isnan(value(registry, "memory_bytes"))
    assert math.isnan(value(registry, "tensor_share"))
    assert value(registry, "sm_share") == 0.4
    assert len(driver.made) == len(driver.freed) + 1


def test_what_work_uses_of_a_gpu(driver) -> None:
    done = []
    watch = GpuWatch.open()
    assert watch is not None
    assert watch.used(lambda: done.append(1), 0.001) == {"gpu_memory_mb": 5000, "sm_share": 0.4, "tensor_share": 0.25}
    assert done
    assert GpuWatch.open(1) is None
    assert len(driver.made) == len(driver.freed) + 1
