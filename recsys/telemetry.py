"""Figures of the process and, where there is one, of the GPU."""

import math
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil
from prometheus_client import CollectorRegistry, Gauge


def add_process_metrics(registry: CollectorRegistry) -> None:
    """Gauges of memory and CPU time, and of each NVIDIA GPU if its library is installed."""
    process = psutil.Process()
    gauges = {
        "recsys_memory_bytes": ("Resident memory of the process", lambda: process.memory_info().rss),
        "recsys_cpu_seconds": ("CPU time of the process", lambda: sum(process.cpu_times()[:2])),
        "recsys_threads": ("Threads of the process", process.num_threads),
    }
    for name, (text, read) in gauges.items():
        Gauge(name, text, registry=registry).set_function(read)
    _add_gpu_metrics(registry)


class GpuWatch:
    """How busy a GPU is."""

    def __init__(self, pynvml: Any, handle: Any) -> None:
        self._pynvml, self._handle = pynvml, handle
        self._tensor = _TensorCores(pynvml, handle) if _counts_tensor_cores(pynvml, handle) else None

    @classmethod
    def open(cls, number: int = 0) -> "GpuWatch | None":
        """Of the GPU of that number; None where NVML sees none."""
        pynvml = _nvml()
        if pynvml is None or number >= pynvml.nvmlDeviceGetCount():
            return None
        return cls(pynvml, pynvml.nvmlDeviceGetHandleByIndex(number))

    def used(self, work: Callable[[], object], seconds: float) -> dict[str, float | None]:
        """Memory in use, and the shares of time that SMs and tensor cores were busy, while work is repeated so long."""
        if self._tensor is not None:
            self._tensor.share()
        started = time.perf_counter()
        while time.perf_counter() - started < seconds:
            work()
        nvml = self._pynvml
        return {
            "gpu_memory_mb": _reader(nvml, nvml.nvmlDeviceGetMemoryInfo, self._handle, "used", 1e-6)(),
            "sm_share": _reader(nvml, nvml.nvmlDeviceGetUtilizationRates, self._handle, "gpu", 0.01)(),
            "tensor_share": None if self._tensor is None else self._tensor.share(),
        }


def _nvml() -> Any:
    """The library's bindings, ready; None where there is no such library, or no driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except ImportError:
        return None
    except pynvml.NVMLError:
        return None
    return pynvml


def _add_gpu_metrics(registry: CollectorRegistry) -> None:
    """Memory, SMs and tensor cores through NVML; nothing on a machine without it."""
    pynvml = _nvml()
    if pynvml is None:
        return
    memory = Gauge("recsys_gpu_memory_bytes", "GPU memory in use", ["gpu"], registry=registry)
    busy = Gauge("recsys_gpu_sm_share", "Time the SMs were busy", ["gpu"], registry=registry)
    text = "Time the tensor cores were busy since it was read last (Hopper and later)"
    tensor = Gauge("recsys_gpu_tensor_share", text, ["gpu"], registry=registry)
    for number in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(number)
        memory.labels(str(number)).set_function(_reader(pynvml, pynvml.nvmlDeviceGetMemoryInfo, handle, "used", 1.0))
        busy.labels(str(number)).set_function(
            _reader(pynvml, pynvml.nvmlDeviceGetUtilizationRates, handle, "gpu", 0.01)
        )
        if _counts_tensor_cores(pynvml, handle):
            tensor.labels(str(number)).set_function(_TensorCores(pynvml, handle).share)


def _reader(pynvml: Any, ask: Any, handle: Any, field: str, unit: float) -> Any:
    """Reads a figure of a GPU, nan where the driver does not tell: the other figures are shown all the same."""

    def read() -> float:
        try:
            return float(getattr(ask(handle), field) * unit)
        except pynvml.NVMLError:
            return math.nan

    return read


def _counts_tensor_cores(pynvml: Any, handle: Any) -> bool:
    try:
        return bool(pynvml.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice)
    except pynvml.NVMLError:  # a driver from before there were such counters
        return False


class _TensorCores:
    """The counters of one GPU; each read says what became of them since the one before. Thread-safe."""

    def __init__(self, pynvml: Any, handle: Any) -> None:
        self._nvml = pynvml
        self._handle = handle
        self._lock = threading.Lock()
        self._before = self._sample()

    def share(self) -> float:
        """Of the time since the last read."""
        nvml = self._nvml
        with self._lock:
            try:
                before, self._before = self._before, self._sample()
            except nvml.NVMLError:
                return math.nan
            wanted = nvml.c_nvmlGpmMetricsGet_t()
            wanted.version, wanted.numMetrics = nvml.NVML_GPM_METRICS_GET_VERSION, 1
            wanted.sample1, wanted.sample2 = before, self._before
            wanted.metrics[0].metricId = nvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL
            try:
                nvml.nvmlGpmMetricsGet(wanted)
            except nvml.NVMLError:
                return math.nan
            finally:
                nvml.nvmlGpmSampleFree(before)
        return float(wanted.metrics[0].value) / 100

    def _sample(self) -> Any:
        sample = self._nvml.nvmlGpmSampleAlloc()
        try:
            return self._nvml.nvmlGpmSampleGet(self._handle, sample)
        except self._nvml.NVMLError:
            self._nvml.nvmlGpmSampleFree(sample)
            raise
