"""Memory, copies, a stream and graphs of one NVIDIA GPU, by CUDA's own runtime; no torch."""

import math
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from recsys.contracts.errors import ConfigError
from recsys.runtime.cache import EventRows
from recsys.runtime.plans import Here

_NO_DEVICE = (35, 100, 101)
"""cudaErrorInsufficientDriver, cudaErrorNoDevice, cudaErrorInvalidDevice."""


class Gpu(Protocol):
    """What a plan needs of a device. Everything happens in the order asked for, on one stream."""

    @property
    def stream(self) -> int:
        """Handle of the stream."""
        ...

    def here(self) -> Here:
        """The device, in the words of a plan's name."""
        ...

    def allocate(self, size_bytes: int) -> int:
        """Address of fresh memory, zeros."""
        ...

    def free(self, address: int) -> None:
        """Give memory back once everything asked for before is done; from any thread, also while another captures."""
        ...

    def copy(self, target: int, source: int, size_bytes: int) -> None:
        """Within the device."""
        ...

    def upload(self, target: int, numbers: npt.NDArray[Any]) -> None:
        """To the device; `numbers` may change afterwards."""
        ...

    def download(self, numbers: npt.NDArray[Any], source: int) -> None:
        """From the device, and wait until it is there."""
        ...

    def wait(self) -> None:
        """Until everything asked for is done."""
        ...

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        """What `enqueue` asks of the stream as one graph; the result launches it."""
        ...


class CudaGpu:
    """The first GPU that CUDA shows."""

    def __init__(self) -> None:
        """Make a stream.

        Raises:
            ConfigError: no bindings, or no GPU.
        """
        try:
            from cuda.bindings import runtime
        except ImportError as error:
            raise ConfigError(f"TensorRT needs CUDA's runtime: pip install 'recsys[tensorrt]' ({error})") from None
        self._cuda: Any = runtime
        self._ask(runtime.cudaGetDeviceCount())
        self._stream = self._ask(runtime.cudaStreamCreateWithFlags(runtime.cudaStreamNonBlocking))
        self._unwanted: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        """Calls that give something back. Whoever drops it may do so while a capture is open on the stream, where
        they would become part of the graph or break it: the next of the engine's own turns makes them."""

    @property
    def stream(self) -> int:
        """See `Gpu`."""
        return int(self._stream)

    def here(self) -> Here:
        """See `Gpu`."""
        found = self._ask(self._cuda.cudaGetDeviceProperties(0))
        driver = self._ask(self._cuda.cudaDriverGetVersion())
        return Here(
            gpu_name=found.name.decode(),
            capability=10 * found.major + found.minor,
            driver=f"{driver // 1000}.{driver % 1000 // 10}",
        )

    def allocate(self, size_bytes: int) -> int:
        """See `Gpu`."""
        self._give_back()
        address = int(self._ask(self._cuda.cudaMallocAsync(size_bytes, self._stream)))
        self._ask(self._cuda.cudaMemsetAsync(address, 0, size_bytes, self._stream))
        return address

    def free(self, address: int) -> None:
        """See `Gpu`. Done with the next `allocate`, `download` or `capture`."""
        self._unwanted.append((self._cuda.cudaFreeAsync, (address, self._stream)))

    def copy(self, target: int, source: int, size_bytes: int) -> None:
        """See `Gpu`."""
        self._copy(target, source, size_bytes, self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice)

    def upload(self, target: int, numbers: npt.NDArray[Any]) -> None:
        """See `Gpu`. CUDA copies pageable memory aside before it returns."""
        self._copy(target, numbers.ctypes.data, numbers.nbytes, self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice)

    def download(self, numbers: npt.NDArray[Any], source: int) -> None:
        """See `Gpu`."""
        self._give_back()
        self._copy(numbers.ctypes.data, source, numbers.nbytes, self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost)
        self.wait()

    def wait(self) -> None:
        """See `Gpu`."""
        self._ask(self._cuda.cudaStreamSynchronize(self._stream))

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        """See `Gpu`. The graph goes with its last holder."""
        self._give_back()
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._ask(self._cuda.cudaStreamBeginCapture(self._stream, mode))
        try:
            enqueue()
        finally:
            graph = self._ask(self._cuda.cudaStreamEndCapture(self._stream))
        ready = self._ask(self._cuda.cudaGraphInstantiate(graph, 0))
        self._ask(self._cuda.cudaGraphDestroy(graph))

        def launch() -> None:
            self._ask(self._cuda.cudaGraphLaunch(ready, self._stream))

        weakref.finalize(launch, self._unwanted.append, (self._cuda.cudaGraphExecDestroy, (ready,)))
        return launch

    def _give_back(self) -> None:
        while self._unwanted:
            call, arguments = self._unwanted.popleft()
            self._ask(call(*arguments))

    def _copy(self, target: int, source: int, size_bytes: int, kind: Any) -> None:
        self._ask(self._cuda.cudaMemcpyAsync(target, source, size_bytes, kind, self._stream))

    def _ask(self, answer: tuple[Any, ...]) -> Any:
        """The value of a call.

        Raises:
            ConfigError: CUDA's own words.
        """
        status, *values = answer
        if int(status) != 0:
            words = self._cuda.cudaGetErrorString(status)[1]
            said = words.decode() if isinstance(words, bytes) else words
            at_hand = "; `nvidia-smi` shows whether a GPU and a driver are there" if int(status) in _NO_DEVICE else ""
            raise ConfigError(f"CUDA: {said}{at_hand}")
        return values[0] if values else None


@dataclass(slots=True)
class _Memory:
    """An allocation that is given back with its last array."""

    gpu: Gpu
    address: int

    def __del__(self) -> None:
        self.gpu.free(self.address)


@dataclass(frozen=True, slots=True)
class DeviceArray:
    """Numbers on the device, row by row; sliced along leading axes only, so that every view is contiguous."""

    memory: _Memory
    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @classmethod
    def zeros(cls, gpu: Gpu, shape: tuple[int, ...], dtype: Any) -> Self:
        """Fresh memory."""
        kind = np.dtype(dtype)
        memory = _Memory(gpu, gpu.allocate(math.prod(shape) * kind.itemsize))
        return cls(memory, memory.address, shape, kind)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> "DeviceArray":
        """A view: `[None]`, `[i]`, `[a:b]` or `[i, a:b]`."""
        if key is None:
            return DeviceArray(self.memory, self.address, (1, *self.shape), self.dtype)
        if isinstance(key, tuple):
            return self[key[0]][key[1]]
        step = self.nbytes // len(self)
        if isinstance(key, slice):
            start, stop, stride = key.indices(len(self))
            assert stride == 1 and stop >= start, key
            return DeviceArray(self.memory, self.address + start * step, (stop - start, *self.shape[1:]), self.dtype)
        return DeviceArray(self.memory, self.address + int(key) * step, self.shape[1:], self.dtype)

    def __setitem__(self, key: Any, value: "DeviceArray") -> None:
        target = self[key]
        assert (target.shape, target.dtype) == (value.shape, value.dtype), (target, value)
        self.memory.gpu.copy(target.address, value.address, value.nbytes)

    def upload(self, numbers: npt.NDArray[Any]) -> None:
        """Overwrite the first of them."""
        assert numbers.dtype == self.dtype and numbers.nbytes <= self.nbytes, (numbers.dtype, numbers.shape)
        self.memory.gpu.upload(self.address, np.ascontiguousarray(numbers))

    def download(self) -> npt.NDArray[Any]:
        """A copy in this process's memory."""
        numbers = np.empty(self.shape, self.dtype)
        self.memory.gpu.download(numbers, self.address)
        return numbers


class GpuRows(EventRows):
    """Keys and values of a session that stay on the device."""

    @staticmethod
    def _zeros(like: DeviceArray, shape: tuple[int, ...]) -> DeviceArray:
        return DeviceArray.zeros(like.memory.gpu, shape, like.dtype)

    @staticmethod
    def _here(part: DeviceArray) -> npt.NDArray[Any]:
        return part.download()
