"""The TensorRT engine: two plans in bf16 or fp16, keys and values on the device, CUDA graphs of shapes that recur."""

import logging
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from recsys.contracts.errors import ConfigError
from recsys.contracts.ids import Tokens
from recsys.contracts.precision import CacheFormat
from recsys.runtime.cache import EventRows, stacked
from recsys.runtime.cached import CachedEngine
from recsys.runtime.engine import EngineInfo
from recsys.runtime.gpu import CudaGpu, DeviceArray, Gpu, GpuRows
from recsys.runtime.items import ItemTable
from recsys.runtime.plans import PlanName, bindings

# B batch, L window length, E new events, C kept events (padded), D width

logger = logging.getLogger(__name__)


def kept_names(num_layers: int, stem: Literal["past", "kept"]) -> list[str]:
    """Names of keys and values, by layer and in turns: `past` ones are inputs of the append graph, `kept` outputs."""
    return [f"{stem}{place}" for place in range(2 * num_layers)]


MIN_LENGTH = 2
"""Of the open plan's windows: exporters take an axis of 1 for a constant."""
RUNTIME_CACHE = "tensorrt-{graph}.cache"
"""Kernels that TensorRT-RTX compiled for this GPU, kept in the folder of releases."""
_MAX_GRAPHS = 16
"""Of a plan. Each has an execution context with scratch memory of its own."""


class Loaded(NamedTuple):
    """A plan that TensorRT has accepted."""

    new_context: Callable[[], Any]
    """An execution context; each may be used for shapes of its own."""
    captures: bool
    """The library makes CUDA graphs itself, as TensorRT-RTX does once it has compiled kernels for a shape."""


class _Graph(NamedTuple):
    """One shape, captured."""

    context: Any
    """Used for this shape alone: a graph holds what its context was when it was captured."""
    launch: Callable[[], None]
    outputs: dict[str, DeviceArray]


class Plan:
    """One loaded plan with its buffers. Not thread-safe."""

    def __init__(self, loaded: Loaded, gpu: Gpu, num_layers: int) -> None:
        """Of both graphs the inputs are float32, float16 and int32, whatever the plan computes in."""
        self.context = loaded.new_context()
        self._loaded = loaded
        self._gpu = gpu
        self._outputs: dict[str, np.dtype[Any]] = {"vector": np.dtype(np.float32)}
        self._outputs |= {name: np.dtype(np.float16) for name in kept_names(num_layers, "kept")}
        self._buffers: dict[str, DeviceArray] = {}
        self._seen: set[tuple[tuple[int, ...], ...]] = set()
        self._graphs: dict[tuple[tuple[int, ...], ...], _Graph] = {}

    def run(self, inputs: Mapping[str, npt.NDArray[Any] | DeviceArray]) -> dict[str, DeviceArray]:
        """The outputs, valid until the next run.

        Where the library does not capture by itself, the first shapes that come twice are captured, each in a context
        of its own, right after they were enqueued there, and are one launch from then on.
        """
        for name, part in inputs.items():
            place = self._buffer(name, part.shape, part.dtype)
            if isinstance(part, DeviceArray):
                place[: len(part)] = part
            else:
                place.upload(part)
        shapes = tuple(tuple(part.shape) for part in inputs.values())
        graph = self._graphs.get(shapes)
        if graph is not None:
            graph.launch()
            return graph.outputs
        captured = not self._loaded.captures and shapes in self._seen and len(self._graphs) < _MAX_GRAPHS
        self._seen.add(shapes)
        context = self._loaded.new_context() if captured else self.context
        outputs = self._bound(context, inputs)
        self._enqueue(context)
        if captured:
            self._gpu.wait()
            launch = self._gpu.capture(lambda: self._enqueue(context))
            self._graphs[shapes] = _Graph(context, launch, outputs)
        return outputs

    def _bound(self, context: Any, inputs: Mapping[str, Any]) -> dict[str, DeviceArray]:
        """Tell the context shapes and places; the outputs."""
        for name, part in inputs.items():
            if not context.set_input_shape(name, part.shape):
                raise ConfigError(
                    f"TensorRT: {name} of shape {tuple(part.shape)} is outside what the plan was built for"
                )
            context.set_tensor_address(name, self._buffers[name].address)
        outputs = {
            name: self._buffer(name, tuple(context.get_tensor_shape(name)), dtype)
            for name, dtype in self._outputs.items()
        }
        for name, part in outputs.items():
            context.set_tensor_address(name, part.address)
        return outputs

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        """The tensor's own memory, seen in this shape; it grows, and then graphs that know the old one are dropped."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        held = self._buffers.get(name)
        if held is None or held.nbytes < size:
            held = self._buffers[name] = DeviceArray.zeros(self._gpu, shape, dtype)
            self._graphs.clear()
        return DeviceArray(held.memory, held.address, tuple(shape), held.dtype)

    def _enqueue(self, context: Any) -> None:
        if not context.execute_async_v3(self._gpu.stream):
            raise ConfigError("TensorRT could not run the plan; its own message stands above")


class TensorRtEngine(CachedEngine):
    """Opens windows by one plan and continues them by the other, one batch at a time. Thread-safe."""

    rows = GpuRows

    def __init__(
        self,
        folder: Path,
        items: ItemTable,
        *,
        plans: Mapping[str, Any],
        window_size: int,
        gpu: Gpu | None = None,
        load: Callable[[Path, PlanName], Loaded] | None = None,
    ) -> None:
        """`plans` is what the manifest says of them; `gpu` and `load` are CUDA's and TensorRT's own unless given.

        Raises:
            ConfigError: no GPU, no TensorRT, or plans of another GPU, driver, version or graph.
        """
        if "num_layers" not in plans:
            raise ConfigError(f"{folder}: its plans keep keys and values in another way; run `recsys optimize` again")
        gpu = CudaGpu() if gpu is None else gpu
        here = gpu.here()
        names = {graph: PlanName.parse(plans[graph]["file"]) for graph in ("open", "append")}
        for graph, name in names.items():
            name.check(here, _version(name) if load is None else name.version, plans[graph]["graph_digest"])
        self._open_plan, self._append_plan = (
            Plan((load or _loaded)(folder / str(names[graph]), names[graph]), gpu, int(plans["num_layers"]))
            for graph in ("open", "append")
        )
        self._folder, self._items = folder, items
        self._past = kept_names(int(plans["num_layers"]), "past")
        info = EngineInfo(
            name=f"tensorrt on {here.gpu_name}",
            precision=f"{names['open'].precision} arithmetic",
            width=items.width,
            num_threads=1,
            window_size=window_size,
            cache=CacheFormat.FLOAT16,
        )
        super().__init__(info, threading.RLock())
        self.max_batch, self.max_new = int(plans["max_batch"]), int(plans["max_new"])

    def warm_up(self) -> None:
        """See `Engine.warm_up`; compiled kernels are kept for the next process."""
        super().warm_up()
        for graph, plan in (("open", self._open_plan), ("append", self._append_plan)):
            _keep_kernels(plan.context, _runtime_cache(self._folder, graph))

    def _open(self, tokens_BL: Tokens, last_B: Tokens) -> list[Any]:
        embedded_BLD = self._items.embed(tokens_BL)
        short = max(0, MIN_LENGTH - embedded_BLD.shape[1])
        found = self._open_plan.run({"embedded": np.pad(embedded_BLD, ((0, 0), (0, short), (0, 0))), "last": last_B})
        return self._here(found)

    def _append(self, tokens_BE: Tokens, last_B: Tokens, lengths_B: Tokens, caches: Sequence[EventRows]) -> list[Any]:
        past = dict(zip(self._past, stacked(caches, lengths_B.tolist()), strict=True))
        found = self._append_plan.run(
            {"embedded": self._items.embed(tokens_BE), "last": last_B, "num_kept": lengths_B, **past}
        )
        return self._here(found)

    @staticmethod
    def _here(found: dict[str, DeviceArray]) -> list[Any]:
        vector, *kept = found.values()
        return [vector.download(), *kept]


def _version(name: PlanName) -> str:
    return str(bindings(name.flavour).__version__)


def _loaded(path: Path, name: PlanName) -> Loaded:
    """The plan at `path`; of TensorRT-RTX with the kernels that an earlier process compiled.

    Raises:
        ConfigError: TensorRT does not accept the plan.
    """
    trt = bindings(name.flavour)
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    if name.is_version_compatible:
        runtime.engine_host_code_allowed = True  # what makes it so is code in the plan
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise ConfigError(f"{path}: TensorRT {trt.__version__} cannot load the plan; its own message stands above")
    if name.flavour == "full":
        return Loaded(engine.create_execution_context, captures=False)
    settings = engine.create_runtime_config()
    cache = settings.create_runtime_cache()
    kept = _runtime_cache(path.parent, name.graph)
    if kept.is_file():
        cache.deserialize(kept.read_bytes())
    settings.set_runtime_cache(cache)
    settings.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    return Loaded(lambda: engine.create_execution_context(settings), captures=True)


def _runtime_cache(folder: Path, graph: str) -> Path:
    return folder.parent / RUNTIME_CACHE.format(graph=graph)


def _keep_kernels(context: Any, place: Path) -> None:
    """Save what TensorRT-RTX compiled, for the next process; TensorRT itself compiles nothing when it loads."""
    settings: Any = getattr(context, "get_runtime_config", lambda: None)()
    if not hasattr(settings, "get_runtime_cache"):
        return
    content = bytes(settings.get_runtime_cache().serialize())
    fresh = place.with_name(f".{place.name}-{uuid.uuid4().hex[:8]}")
    try:
        fresh.write_bytes(content)
        fresh.replace(place)
    except OSError as error:
        logger.warning("kernels not kept, the next start compiles them again: %s", error)
