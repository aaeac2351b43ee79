"""The CUDA engine: the rounded decoder by torch, in bf16 with fused attention; appends are one CUDA graph each.

The only file of the runtime that imports torch, and only when this engine or the reference is opened. It runs on the
CPU too (`device="cpu"`, without graphs), which is how tests hold it to the other engines, and how the reference runs.
"""

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import safetensors.numpy

from recsys.contracts.errors import ConfigError
from recsys.contracts.ids import Tokens
from recsys.contracts.precision import CacheFormat
from recsys.runtime.cache import BLOCK, EventRows, rounded_up, stacked
from recsys.runtime.cached import CachedEngine
from recsys.runtime.engine import EngineInfo
from recsys.runtime.items import ItemTable

if TYPE_CHECKING:
    from torch import Tensor

    from recsys.model.decoder import SequenceModel

# B batch, L window length, E new events, C kept events (padded), V items

DECODER = "decoder.safetensors"
"""Weights of the rounded decoder: `NAME.codes` [O, G, I / G] with `NAME.scales` [O, G, 1] and `NAME.input_peak`,
or `NAME.weight`."""
Precision = Literal["bf16", "fp16", "float32"]
_MAX_GRAPHS = 64
_WARM_CALLS = 3


class DeviceRows(EventRows):
    """Keys and values that stay on the device."""

    @staticmethod
    def _zeros(like: Any, shape: tuple[int, ...]) -> Any:
        return like.new_zeros(shape)

    @staticmethod
    def _here(part: Any) -> Any:
        import torch

        return (part.float() if part.dtype == torch.bfloat16 else part).cpu().numpy().copy()


class CudaEngine(CachedEngine):
    """Opens and continues windows on one device, one batch at a time. Thread-safe."""

    rows = DeviceRows

    def __init__(
        self,
        model: "SequenceModel",
        items: ItemTable,
        *,
        window_size: int,
        cache: CacheFormat,
        precision: Precision = "bf16",
        device: str = "cuda",
    ) -> None:
        """Of `model` only the decoder is used, which is moved to the device.

        Raises:
            ConfigError: torch is not installed, or there is no such device.
        """
        torch, self._device = torch_on(device)
        from recsys.model.incremental import AppendEvents, OpenWindow, in_precision

        self._dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "float32": torch.float32}[precision]
        graphs = OpenWindow(model, cache), AppendEvents(model, cache)
        self._modules = [in_precision(graph, self._dtype, device) for graph in graphs]
        self._items_VD = torch.from_numpy(items.all_VD()).to(self._device, self._dtype)
        self._graphs: dict[tuple[tuple[int, ...], ...], _CapturedAppend] = {}
        self._captures = self._device.type == "cuda"
        info = EngineInfo(
            name=f"torch on {device}",
            precision=f"{precision} arithmetic",
            width=items.width,
            num_threads=torch.get_num_threads(),
            window_size=window_size,
            cache=cache,
        )
        super().__init__(info, threading.RLock())

    @classmethod
    def open_folder(
        cls,
        folder: Path,
        items: ItemTable,
        *,
        model: dict[str, Any],
        window_size: int,
        cache: CacheFormat,
        precision: Precision = "bf16",
        device: str = "cuda",
    ) -> Self:
        """The engine of a release; `model` are the decoder's settings.

        Raises:
            ConfigError: torch is not installed, or there is no such device.
        """
        torch_on(device)
        path = folder / DECODER
        decoder = decoder_of(safetensors.numpy.load_file(path), model, window_size, str(path))
        return cls(decoder, items, window_size=window_size, cache=cache, precision=precision, device=device)

    def _open(self, tokens_BL: Tokens, last_B: Tokens) -> list[Any]:
        with self._computing():
            vector_BD, *kept = self._modules[0](self._embedded(tokens_BL), self._there(last_B))
            return [_here(vector_BD), *kept]

    def _append(self, tokens_BE: Tokens, last_B: Tokens, lengths_B: Tokens, caches: Sequence[EventRows]) -> list[Any]:
        with self._computing():
            kept = stacked(caches, lengths_B.tolist())
            inputs = [self._embedded(tokens_BE), self._there(last_B), self._there(lengths_B), *kept]
            vector_BD, *fresh = self._graph_of(inputs)(*inputs)
            return [_here(vector_BD), *fresh]

    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        """Without gradients, and on the device: streams and graphs are those of the current one."""
        import torch

        there = torch.cuda.device(self._device) if self._device.type == "cuda" else contextlib.nullcontext()
        with torch.inference_mode(), there:
            yield

    def _graph_of(self, inputs: "list[Tensor]") -> Any:
        """A captured graph for the common case, one new event each; the module itself otherwise."""
        if not self._captures or inputs[0].shape[1] != 1:
            return self._modules[1]
        shapes = tuple(tuple(part.shape) for part in inputs)
        if shapes not in self._graphs:
            if len(self._graphs) == _MAX_GRAPHS:
                return self._modules[1]
            self._graphs[shapes] = _CapturedAppend(self._modules[1], inputs)
        return self._graphs[shapes]

    def warm_up(self) -> None:
        """See `Engine.warm_up`.

        Appends of one event are captured for every number of kept events that can come, for one session and for as
        many at once as there is room for: no request of those waits for a capture.
        """
        super().warm_up()
        if not self._captures:
            return
        most = self.info.window_size - 1
        lengths = sorted({min(length, most) for length in range(BLOCK, rounded_up(most) + 1, BLOCK)})
        for num_sessions in range(1, 1 + max(1, _MAX_GRAPHS // len(lengths))):
            for length in lengths:
                sessions = self.open([np.ones(length, dtype=np.int32)] * num_sessions)
                self.append(sessions, [np.ones(1, dtype=np.int32)] * num_sessions)

    def _embedded(self, tokens: Tokens) -> "Tensor":
        """Vectors of tokens, or the vectors themselves, on the device."""
        there = self._there(tokens)
        return there.to(self._dtype) if there.is_floating_point() else self._items_VD[there]

    def _there(self, numbers: Tokens) -> "Tensor":
        import torch

        return torch.from_numpy(numbers).to(self._device)


class _CapturedAppend:
    """One shape of `AppendEvents` as a CUDA graph: a single launch instead of one per operation."""

    def __init__(self, module: Any, inputs: "list[Tensor]") -> None:
        import torch

        self._inputs = [part.clone() for part in inputs]
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # kernels and workspaces must exist before the capture
            for _ in range(_WARM_CALLS):
                module(*self._inputs)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        # other threads may allocate and copy meanwhile, as those of a second engine do
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._outputs = module(*self._inputs)

    def __call__(self, *inputs: "Tensor") -> "tuple[Tensor, ...]":
        """The outputs, valid until the next call."""
        for place, part in zip(self._inputs, inputs, strict=True):
            place.copy_(part)
        self._graph.replay()
        outputs: tuple[Tensor, ...] = self._outputs
        return outputs


def _here(vector_BD: "Tensor") -> Any:
    return vector_BD.float().cpu().numpy()


def torch_on(device: str, engine: str = "cuda") -> tuple[Any, Any]:
    """Torch and its device, if it can compute there; `engine` is who asks.

    Raises:
        ConfigError: one line that says what is missing.
    """
    try:
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"the {engine} engine needs the extra: pip install 'recsys[train]' ({error})") from None
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"device {device!r}: expected cpu, cuda or cuda:NUMBER") from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"the cuda engine needs an NVIDIA GPU and torch built for CUDA; torch {torch.__version__} sees none: "
            "use the engine `cpu`"
        )
    if found.type not in ("cpu", "cuda") or (found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count()):
        raise ConfigError(f"device {device!r}: expected cpu, or one of {torch.cuda.device_count()} NVIDIA GPUs")
    return torch, found


def decoder_of(arrays: Mapping[str, Any], settings: dict[str, Any], window_size: int, where: str) -> Any:
    """The float decoder of saved codes, or of weights that were never rounded."""
    import torch

    from recsys.model.config import ModelConfig
    from recsys.model.decoder import SequenceModel

    model = SequenceModel(ModelConfig.from_mapping(settings, f"{where}: model"), 1, window_size)
    weights: dict[str, Tensor] = {}
    for name, array in arrays.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "codes":
            dense = array.astype(np.float32) * arrays[f"{module}.scales"]
            weights[f"{module}.weight"] = torch.from_numpy(dense.reshape(len(array), -1))
        elif leaf not in ("scales", "input_peak"):
            weights[name] = torch.from_numpy(array.astype(np.float32))
    model.decoder.load_state_dict(weights)
    return model.eval()
