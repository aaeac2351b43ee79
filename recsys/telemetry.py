"""Figures of the process and, where there is one, of the GPU."""

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


def _add_gpu_metrics(registry: CollectorRegistry) -> None:
    """Memory and SM utilisation through NVML; nothing on a machine without it."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except ImportError:
        return
    except pynvml.NVMLError:
        return
    memory = Gauge("recsys_gpu_memory_bytes", "GPU memory in use", ["gpu"], registry=registry)
    busy = Gauge("recsys_gpu_sm_share", "Time the SMs were busy", ["gpu"], registry=registry)
    for number in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(number)
        memory.labels(str(number)).set_function(_reader(pynvml.nvmlDeviceGetMemoryInfo, handle, "used", 1.0))
        busy.labels(str(number)).set_function(_reader(pynvml.nvmlDeviceGetUtilizationRates, handle, "gpu", 0.01))


def _reader(ask: Any, handle: Any, field: str, unit: float) -> Any:
    return lambda: getattr(ask(handle), field) * unit
