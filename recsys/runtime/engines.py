"""Which engines there are, and how the parts of a release become one. A new engine is one entry here."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recsys.contracts.errors import ConfigError
from recsys.contracts.precision import Arithmetic, CacheFormat, EngineName
from recsys.runtime.engine import Engine
from recsys.runtime.items import ItemTable
from recsys.runtime.openvino import OpenVinoEngine
from recsys.runtime.tiered import TieredEngine


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What an engine is opened from: a release's files and the settings in its manifest."""

    folder: Path
    items: ItemTable
    config: dict[str, Any]
    num_threads: int
    device: str | None = None
    """Of the torch engine, if not the one it was built for: in torch's words."""

    @property
    def window_size(self) -> int:
        """Most events of a window."""
        return int(self.config["window"]["size"])

    @property
    def cache(self) -> CacheFormat:
        """How sessions keep keys and values."""
        return CacheFormat(self.config["cache"])


def open_engine(name: EngineName, parts: Parts) -> Engine:
    """The engine of that name.

    Raises:
        ConfigError: the release has no parts for it, or this machine cannot run it.
    """
    return _OPEN[name](parts)


def _cpu(parts: Parts) -> Engine:
    return OpenVinoEngine(
        parts.folder,
        parts.items,
        num_threads=parts.num_threads,
        precision=parts.config["precision"],
        window_size=parts.window_size,
        cache=parts.cache,
        arithmetic=Arithmetic(parts.config.get("arithmetic", Arithmetic.F32)),
    )


def _cuda(parts: Parts) -> Engine:
    from recsys.runtime.cuda import DECODER, CudaEngine

    settings = parts.config.get("cuda")
    if settings is None or not (parts.folder / DECODER).is_file():
        raise ConfigError(
            f"{parts.folder}: built without the cuda engine; run `recsys optimize` with [optimize.cuda] in --config"
        )
    return CudaEngine.open_folder(
        parts.folder,
        parts.items,
        model=parts.config["model"],
        window_size=parts.window_size,
        cache=parts.cache,
        precision=settings["precision"],
        device=parts.device or settings["device"],
    )


def _tensorrt(parts: Parts) -> Engine:
    from recsys.runtime.tensorrt import TensorRtEngine

    plans = parts.config.get("plans")
    if not plans:
        raise ConfigError(f"{parts.folder}: built without TensorRT plans; run `recsys optimize` with --plan bf16")
    return TensorRtEngine(parts.folder, parts.items, plans=plans, window_size=parts.window_size)


def _tiered(parts: Parts) -> Engine:
    tiers = parts.config.get("tiers")
    if tiers is None:
        raise ConfigError(f"{parts.folder}: built without tiers; run `recsys optimize` with [optimize.tiered]")
    short, long = (open_engine(EngineName(tiers[name]), parts) for name in ("short", "long"))
    return TieredEngine(short, long, tiers["threshold"])


_OPEN: dict[EngineName, Callable[[Parts], Engine]] = {
    EngineName.CPU: _cpu,
    EngineName.CUDA: _cuda,
    EngineName.TENSORRT: _tensorrt,
    EngineName.TIERED: _tiered,
}
