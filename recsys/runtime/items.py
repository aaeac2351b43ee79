"""The item vectors of a release, stored once: what engines embed events with and what the index is built from."""

from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from recsys.contracts.errors import ArtifactError
from recsys.contracts.ids import PAD, Floats, Tokens
from recsys.contracts.precision import ItemFormat

# V items, D width; a V axis here has V + 1 entries, entry PAD = 0

INT8_MAX = 127


class ItemTable:
    """Item vectors in float32, float16, or as int8 codes with one scale an item."""

    FILE_NAME = "items.safetensors"

    def __init__(self, rows_VD: np.ndarray, scales_V: Floats | None) -> None:
        self._rows_VD = rows_VD
        self._scales_V = scales_V

    @classmethod
    def of(cls, vectors_VD: Floats, format_: ItemFormat) -> "ItemTable":
        """Round vectors, row PAD first, to a format; int8 to the nearest code, symmetric."""
        if format_ is not ItemFormat.INT8:
            return cls(vectors_VD.astype(format_.value), None)
        scales_V = np.abs(vectors_VD).max(axis=1).clip(1e-12) / INT8_MAX
        codes_VD = np.rint(vectors_VD / scales_V[:, None]).astype(np.int8)
        return cls(codes_VD, scales_V.astype(np.float32))

    def __len__(self) -> int:
        return len(self._rows_VD) - 1

    @property
    def width(self) -> int:
        """D."""
        return int(self._rows_VD.shape[1])

    @property
    def codes(self) -> tuple[np.ndarray, Floats] | None:
        """Codes [V, D] and scales [V] of tokens 1 … V; None for a format without."""
        return None if self._scales_V is None else (self._rows_VD[PAD + 1 :], self._scales_V[PAD + 1 :])

    def embed(self, tokens: Tokens) -> Floats:
        """Vectors of tokens in 0 … V, shape [*tokens.shape, D]; PAD is zero. Vectors stay as they are."""
        if tokens.dtype.kind == "f":
            return tokens  # type: ignore[return-value]
        vectors: Floats = self._rows_VD[tokens].astype(np.float32)
        if self._scales_V is not None:
            vectors *= self._scales_V[tokens][..., None]
        return vectors

    def all_VD(self) -> Floats:
        """Vectors of tokens 0 … V, shape [V + 1, D]."""
        return self.embed(np.arange(len(self) + 1, dtype=np.int32))

    def vectors_VD(self) -> Floats:
        """Vectors of tokens 1 … V, shape [V, D]: what the index is built from."""
        return self.all_VD()[PAD + 1 :]

    def save(self, folder: Path) -> None:
        """Write `items.safetensors`."""
        arrays = {"rows": self._rows_VD}
        if self._scales_V is not None:
            arrays["scales"] = self._scales_V
        safetensors.numpy.save_file(arrays, folder / self.FILE_NAME)

    @classmethod
    def load(cls, folder: Path) -> "ItemTable":
        """Read what `save` wrote."""
        path = folder / cls.FILE_NAME
        try:
            arrays = safetensors.numpy.load_file(path)
            return cls(arrays["rows"], arrays.get("scales"))
        except (OSError, safetensors.SafetensorError, KeyError) as error:
            raise ArtifactError(f"{path}: not an item table: {error}; run `recsys optimize` again") from None
