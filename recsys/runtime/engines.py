"""Which engines there are, and how the parts of a release become one. A new engine is one entry here."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recsys.contracts.errors import ConfigError
from recsys.contracts.precision import Arithmetic, CacheFormat, EngineName
from recsys.runtime.engine import Engine
from recsys.runtime.items import ItemTable
from recsys.runtime.openvino import OpenVinoEngine
from recsys.runtime.summaries import Stored, Summaries, SummaryEngine, SummaryWeights
from recsys.runtime.tiered import TieredEngine
from recsys.windows import WindowConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What an engine is opened from: a release's files and the settings in its manifest."""

    folder: Path
    items: ItemTable
    config: dict[str, Any]
    num_threads: int
    device: str | None = None
    """Of the torch engine, if not the one it was built for: in torch's words."""
    stored: Stored | None = None
    """Summaries that were encoded beforehand."""

    @property
    def window(self) -> WindowConfig:
        """How histories are cut."""
        return WindowConfig.from_mapping(self.config["window"], f"{self.folder}: window")

    @property
    def window_size(self) -> int:
        """Most that the engine reads at once: the events of a window, and summaries ahead of them."""
        return self.window.most_rows

    @property
    def cache(self) -> CacheFormat:
        """How sessions keep keys and values."""
        return CacheFormat(self.config["cache"])


def open_engine(name: EngineName, parts: Parts) -> Engine:
    """The engine of that name, with summaries where the release's windows leave some.

    Raises:
        ConfigError: the release has no parts for it, or this machine cannot run it.
    """
    if name is EngineName.REFERENCE:
        parts = _unrounded(parts)
    engine = _OPEN[name](parts)
    if not parts.window.summary_tokens:
        return engine
    weights = SummaryWeights.load(parts.folder)
    return SummaryEngine(engine, parts.items, weights, parts.window, Summaries(parts.stored))


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
    short, long = (_OPEN[EngineName(tiers[name])](parts) for name in ("short", "long"))
    return TieredEngine(short, long, tiers["threshold"])


def _unrounded(parts: Parts) -> Parts:
    """With items as they were trained, and without summaries that a rounded engine encoded."""
    from recsys.runtime.reference import load_items

    return replace(parts, items=load_items(parts.folder), stored=None)


def _reference(parts: Parts) -> Engine:
    from recsys.runtime.reference import ReferenceEngine

    return ReferenceEngine.of_release(
        parts.folder,
        parts.items,
        model=parts.config["model"],
        window_size=parts.window_size,
    )


_OPEN: dict[EngineName, Callable[[Parts], Engine]] = {
    EngineName.CPU: _cpu,
    EngineName.CUDA: _cuda,
    EngineName.TENSORRT: _tensorrt,
    EngineName.TIERED: _tiered,
    EngineName.REFERENCE: _reference,
}
