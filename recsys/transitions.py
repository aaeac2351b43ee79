"""What followed what: counts of item pairs, the plain knowledge that a decoder starts from and is fused with.

An event adds 1 / d to the count of (item, item d events later), d = 1 … reach, within a user; an item may
follow itself, and a negative event follows nothing. Divided by the sum of a row the counts read as P(next | item).
Source: sequential rules of Kamehkhosh, Jannach, Ludewig, RecTemp at RecSys 2017 (1 / d).
"""

# V items of the catalogue; a V axis here has V + 1 entries, entry 0 = PAD

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from recsys.contracts import packing
from recsys.contracts.errors import ArtifactError
from recsys.contracts.ids import PAD, Floats, Tokens

if TYPE_CHECKING:
    from recsys.dataset import Histories

REACH = 10
"""Events after an item that count as following it, and last events that a score sums over."""
MAX_SUCCESSORS = 64
"""Successors kept per item; more did not help on validation (Beauty, ML-1M), and cost memory."""
SMOOTHING = 30.0
"""Added to a row's total count: an item that was seen ten times says less of what follows than one seen a thousand
times. Chosen on validation by a throwaway script: it helped on Beauty and made no difference on ML-1M."""


def count(fit: "Histories", num_items: int, reach: int = REACH) -> Any:
    """Weighted pair counts, a scipy CSR array of shape [V, V]; one shift of the flat histories at a time."""
    from scipy import sparse

    user = np.repeat(np.arange(len(fit), dtype=np.int32), fit.lengths)
    shape = (num_items + 1, num_items + 1)
    follows_VV = sparse.csr_array(shape, dtype=np.float32)
    targets = fit.targets
    for distance in range(1, min(reach, len(user) - 1) + 1):
        counted = (user[distance:] == user[:-distance]) & (targets[distance:] != PAD)
        first, second = fit.tokens[:-distance][counted], targets[distance:][counted]
        weights = np.full(len(first), 1 / distance, dtype=np.float32)
        follows_VV = follows_VV + sparse.coo_array((weights, (first, second)), shape=shape).tocsr()
    return follows_VV


def normalise(follows_VV: Any, smoothing: float = 0.0) -> Any:
    """Rows divided by their sums + `smoothing`, in place: P(next | item). Rows without counts stay empty."""
    totals = np.asarray(follows_VV.sum(axis=1)).ravel() + smoothing
    follows_VV.data /= np.repeat(totals, np.diff(follows_VV.indptr))
    return follows_VV


class TransitionTable:
    """P(next | item) of each item's likeliest successors. Needs numpy only, so that the endpoint stays small."""

    FILE_NAME = "transitions.safetensors"

    def __init__(
        self, offsets: npt.NDArray[np.int64], successors: npt.NDArray[Any], probabilities: npt.NDArray[Any]
    ) -> None:
        """Successors of token t are entries [offsets[t], offsets[t + 1]), tokens ascending, of any integer type."""
        self._offsets = offsets
        self._successors = successors
        self._probabilities = probabilities

    @classmethod
    def fit(cls, fit: "Histories", num_items: int, max_successors: int = MAX_SUCCESSORS) -> "TransitionTable":
        """Count the fitted events and keep up to `max_successors` per item, the likeliest."""
        follows_VV = normalise(count(fit, num_items), SMOOTHING)
        row = np.repeat(np.arange(num_items + 1), np.diff(follows_VV.indptr))
        order = np.lexsort((follows_VV.indices, -follows_VV.data, row))
        rank = np.arange(len(order)) - np.repeat(follows_VV.indptr[:-1], np.diff(follows_VV.indptr))
        kept = np.sort(order[rank < max_successors])
        offsets = np.concatenate([[0], np.cumsum(np.bincount(row[kept], minlength=num_items + 1))])
        probabilities = follows_VV.data[kept].astype(np.float16)
        return cls(offsets.astype(np.int64), follows_VV.indices[kept].astype(np.int32), probabilities)

    @property
    def num_items(self) -> int:
        """V."""
        return len(self._offsets) - 2

    def likely_next(self, history: Tokens) -> tuple[Tokens, Floats]:
        """Distinct items that follow the last events, ascending, with the sum over events of P(item | event) / age.

        The last event has age 1. Source: V-SKNN of Ludewig, Jannach, UMUAI 28, 2018 (several last events).
        """
        rows = [slice(self._offsets[t], self._offsets[t + 1]) for t in history[: -REACH - 1 : -1]]
        if not rows:
            return np.empty(0, dtype=np.int32), np.empty(0, dtype=np.float32)
        items = np.concatenate([self._successors[row] for row in rows])
        weights = [self._probabilities[row].astype(np.float32) / age for age, row in enumerate(rows, start=1)]
        tokens, position = np.unique(items, return_inverse=True)
        sums = np.bincount(position, weights=np.concatenate(weights), minlength=len(tokens))
        return tokens.astype(np.int32), sums.astype(np.float32)

    def save(self, folder: Path, *, packed: bool = False) -> None:
        """Write `transitions.safetensors`; packed, successors are the distances between them."""
        arrays = {"offsets": self._offsets, "successors": self._successors, "probabilities": self._probabilities}
        if packed:
            small = self._successors.astype(_token_type(self.num_items))
            arrays = {
                "num_successors": np.diff(self._offsets).astype(np.uint32),
                "distances": _bytes_apart(np.diff(small, prepend=small.dtype.type(0))),
                "probabilities": _bytes_apart(self._probabilities),
            }
        packing.write(folder / self.FILE_NAME, safetensors.numpy.save(arrays), packed)

    @classmethod
    def load(cls, folder: Path) -> "TransitionTable":
        """Read what `save` wrote."""
        path = folder / cls.FILE_NAME
        try:
            arrays = safetensors.numpy.load(packing.read(path))
            if "distances" not in arrays:
                return cls(arrays["offsets"], arrays["successors"], arrays["probabilities"])
            offsets = np.concatenate([[0], np.cumsum(arrays["num_successors"], dtype=np.int64)])
            successors = _bytes_together(arrays["distances"], _token_type(len(offsets) - 2))
            np.cumsum(successors, dtype=successors.dtype, out=successors)  # wraps round, as the distances did
            return cls(offsets, successors, _bytes_together(arrays["probabilities"], np.dtype(np.float16)))
        except (safetensors.SafetensorError, KeyError, ValueError) as error:
            raise ArtifactError(f"{path}: not a transition table: {error}; run `recsys optimize` again") from None


def _token_type(num_items: int) -> np.dtype[Any]:
    return np.dtype(np.uint16 if num_items < 2**16 else np.int32)


def _bytes_apart(numbers: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """All first bytes, then all second ones: equal things side by side pack better."""
    return np.ascontiguousarray(numbers.view(np.uint8).reshape(-1, numbers.itemsize).T)


def _bytes_together(apart: npt.NDArray[np.uint8], kind: np.dtype[Any]) -> npt.NDArray[Any]:
    return np.ascontiguousarray(apart.T).view(kind).ravel()
