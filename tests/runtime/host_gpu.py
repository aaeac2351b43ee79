"""Stand-ins for a GPU and for TensorRT's execution contexts, as strict as theirs about CUDA graphs."""

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from recsys.runtime.plans import Here


class HostGpu:
    """A device whose memory is this process's: what the engine asks of CUDA, asked of the CPU."""

    stream = 7

    def __init__(self) -> None:
        self.blocks: dict[int, Any] = {}
        self.num_captured = 0
        self.num_launched = 0
        self.captured: list[Callable[[], None]] | None = None
        """What was asked for since a capture began; None without one."""

    def here(self) -> Here:
        return Here(gpu_name="NVIDIA A100-SXM4-40GB", capability=80, driver="13.0")

    def allocate(self, size_bytes: int) -> int:
        assert self.captured is None
        block = ctypes.create_string_buffer(size_bytes)
        self.blocks[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def free(self, address: int) -> None:
        del self.blocks[address]

    def copy(self, target: int, source: int, size_bytes: int) -> None:
        ctypes.memmove(target, source, size_bytes)

    def upload(self, target: int, numbers: np.ndarray) -> None:
        ctypes.memmove(target, numbers.ctypes.data, numbers.nbytes)

    def download(self, numbers: np.ndarray, source: int) -> None:
        ctypes.memmove(numbers.ctypes.data, source, numbers.nbytes)

    def wait(self) -> None:
        assert self.captured is None

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        self.num_captured += 1
        self.captured = []
        enqueue()
        work, self.captured = self.captured, None

        def launch() -> None:
            self.num_launched += 1
            for call in work:
                call()

        return launch


TYPES = {"embedded": np.float32, "vector": np.float32, "last": np.int32, "num_kept": np.int32}
"""Of tensors; keys and values are float16."""


class HostContext:
    """An execution context: nothing is computed while a capture is open, and a graph holds shapes and addresses.

    TensorRT's own changes with the first enqueue of a shape: that must come before the capture, and a graph is void
    once its context was told another shape.
    """

    def __init__(self, gpu: HostGpu) -> None:
        self.gpu = gpu
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self._enqueued: Any = None

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def numbers(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        kind = np.dtype(TYPES.get(name, np.float16))
        size = int(np.prod(shape)) * kind.itemsize
        block = (ctypes.c_char * size).from_address(self.addresses[name])
        return np.frombuffer(block, kind).reshape(shape)

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == HostGpu.stream
        state = dict(self.shapes), dict(self.addresses)
        if self.gpu.captured is not None:
            assert self._enqueued == state, "another shape was enqueued last in the context that is captured"
            self.gpu.captured.append(lambda: self._replay(state))
            return True
        self._enqueued = state
        self.compute()
        return True

    def _replay(self, state: Any) -> None:
        now = self.shapes, self.addresses
        assert now == state, "the context of a captured graph was used for another shape since"
        self.compute()

    def compute(self) -> None:
        """Read inputs, write outputs."""
        raise NotImplementedError
