"""The float32 reference as an engine: the trained model itself, unrounded, by torch on the CPU.

What `recsys.model.reference` encodes, with sessions beside it: what other engines of a release are compared with.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import safetensors
import safetensors.numpy

from recsys.contracts.errors import ArtifactError, ConfigError
from recsys.contracts.ids import Floats
from recsys.contracts.precision import CacheFormat, ItemFormat
from recsys.runtime.cuda import CudaEngine, decoder_of, torch_on
from recsys.runtime.items import ItemTable

if TYPE_CHECKING:
    from recsys.model.decoder import SequenceModel

# V items, D width

WEIGHTS_FILE = "float32.safetensors"
"""`decoder.NAME` for each weight of the decoder, and `items` [V + 1, D], row PAD first."""
REFERENCE_NAME = "float32 model"
_DECODER = "decoder."
_ITEMS = "items"


class ReferenceEngine(CudaEngine):
    """Float32 weights, items, arithmetic and sessions, whatever the release's other engines have. Thread-safe."""

    def __init__(self, model: "SequenceModel", items: ItemTable, *, window_size: int) -> None:
        """Of `model` only the decoder is used.

        Raises:
            ConfigError: torch is not installed.
        """
        exact = CacheFormat.FLOAT32
        super().__init__(model, items, window_size=window_size, cache=exact, precision="float32", device="cpu")
        self._info = replace(self._info, name=REFERENCE_NAME, precision="float32 weights, items and arithmetic")

    @classmethod
    def of_release(cls, folder: Path, items: ItemTable, *, model: dict[str, Any], window_size: int) -> Self:
        """The engine of a release; `model` are the decoder's settings, `items` those of `load_items`.

        The threads are torch's own.

        Raises:
            ConfigError: torch is not installed, or the release was built without the float32 model.
        """
        torch_on("cpu", "reference")
        arrays = {name.removeprefix(_DECODER): weights for name, weights in _arrays(folder, _DECODER).items()}
        return cls(decoder_of(arrays, model, window_size, str(folder / WEIGHTS_FILE)), items, window_size=window_size)


def save(decoder: Mapping[str, Floats], vectors_VD: Floats, folder: Path) -> None:
    """Write `float32.safetensors`: weights of the decoder by name, item vectors with row PAD first."""
    named = {f"{_DECODER}{name}": weights for name, weights in decoder.items()}
    safetensors.numpy.save_file({**named, _ITEMS: vectors_VD.astype("float32")}, folder / WEIGHTS_FILE)


def load_items(folder: Path) -> ItemTable:
    """Item vectors as they were trained.

    Raises:
        ConfigError: the release was built without the float32 model.
    """
    return ItemTable.of(_arrays(folder, _ITEMS)[_ITEMS], ItemFormat.FLOAT32)


def _arrays(folder: Path, start: str) -> dict[str, Any]:
    """Those of the file whose names start so.

    Raises:
        ArtifactError: not such a file.
        ConfigError: there is none.
    """
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise ConfigError(
            f"{folder}: built without the float32 model; run `recsys optimize` with reference = true under [optimize] "
            "in --config"
        )
    try:
        with safetensors.safe_open(path, "numpy") as file:
            found = {name: file.get_tensor(name) for name in list(file.keys()) if name.startswith(start)}
    except safetensors.SafetensorError as error:
        raise ArtifactError(f"{path}: no float32 model: {error}; run `recsys optimize` again") from None
    if not found:
        raise ArtifactError(f"{path}: no float32 model: holds no {start}; run `recsys optimize` again")
    return found
