"""What is asked of CUDA, and when; a stand-in for its bindings keeps the order of the calls."""

import sys
import threading
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from recsys.runtime.gpu import CudaGpu, DeviceArray

QUIET = {"cudaGetDeviceCount", "cudaMemsetAsync", "cudaMemcpyAsync", "cudaStreamSynchronize"}


class Bindings(ModuleType):
    """Every call succeeds, is noted, and answers with a number of its own."""

    cudaStreamNonBlocking = 1
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self) -> None:
        super().__init__("runtime")
        self.calls: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> tuple[int, int]:
            if name not in QUIET:
                self.calls.append((name.removeprefix("cuda"), arguments[0] if arguments else None))
            return 0, 100 + len(self.calls)

        if not name.startswith("cuda"):
            raise AttributeError(name)
        return call


@pytest.fixture
def bindings(monkeypatch: pytest.MonkeyPatch) -> Bindings:
    runtime = Bindings()
    package = ModuleType("bindings")
    package.runtime = runtime  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda.bindings", package)
    return runtime


def test_memory_that_another_thread_drops_during_a_capture_is_given_back_after_it(bindings: Bindings) -> None:
    gpu = CudaGpu()
    held = [DeviceArray.zeros(gpu, (4,), np.float32)]
    kept = DeviceArray.zeros(gpu, (4,), np.float32)
    address = held[0].address
    bindings.calls.clear()

    def drop() -> None:
        other = threading.Thread(target=held.clear)
        other.start()
        other.join()

    launch = gpu.capture(drop)
    assert [name for name, _ in bindings.calls] == [
        "StreamBeginCapture", "StreamEndCapture", "GraphInstantiate", "GraphDestroy"
    ]  # fmt: skip
    launch()
    assert kept.download().shape == (4,)
    assert bindings.calls[-1] == ("FreeAsync", address)


def test_memory_and_graphs_that_were_dropped_go_before_the_next_memory_or_capture(bindings: Bindings) -> None:
    gpu = CudaGpu()
    launch = gpu.capture(lambda: None)
    launch()
    ready = bindings.calls[-1][1]
    bindings.calls.clear()
    del launch
    assert bindings.calls == []
    DeviceArray.zeros(gpu, (4,), np.float32)  # dropped at once
    (destroyed, (allocated, _)) = bindings.calls
    assert (destroyed, allocated) == (("GraphExecDestroy", ready), "MallocAsync")
    gpu.capture(lambda: None)
    assert [name for name, _ in bindings.calls[2:4]] == ["FreeAsync", "StreamBeginCapture"]
