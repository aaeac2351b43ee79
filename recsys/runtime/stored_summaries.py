"""Summaries that a release brings along: of the most active users' closed windows, found by the windows' digests."""

from pathlib import Path

import numpy as np

from recsys.contracts.errors import ArtifactError
from recsys.contracts.ids import Floats

# N windows, M vectors of a summary, D width


class StoredSummaries:
    """Read from the disk as they are asked for: float16, in the order of the digests. Thread-safe."""

    DIGESTS_FILE = "summary_digests.npy"
    VECTORS_FILE = "summaries.npy"

    def __init__(self, digests_N2: np.ndarray, summaries_NMD: np.ndarray) -> None:
        """`digests_N2` are the two halves of each digest as big-endian numbers, ascending."""
        self._first_N, self._second_N = np.ascontiguousarray(digests_N2.T)
        self._summaries_NMD = summaries_NMD

    def __len__(self) -> int:
        return len(self._summaries_NMD)

    def get(self, window_digest: str) -> Floats | None:
        """That of a window, shape [M, D]; None where there is none."""
        first, second = _halves([window_digest])[0]
        place = int(np.searchsorted(self._first_N, first))
        while place < len(self) and self._first_N[place] == first:
            if self._second_N[place] == second:
                found: Floats = self._summaries_NMD[place].astype(np.float32)
                return found
            place += 1
        return None

    @classmethod
    def save(cls, digests: list[str], summaries_NMD: Floats, folder: Path) -> None:
        """Write them, distinct digests in any order."""
        halves_N2 = _halves(digests)
        order = np.lexsort((halves_N2[:, 1], halves_N2[:, 0]))
        np.save(folder / cls.DIGESTS_FILE, halves_N2[order])
        np.save(folder / cls.VECTORS_FILE, summaries_NMD[order].astype(np.float16))

    @classmethod
    def open(cls, folder: Path) -> "StoredSummaries | None":
        """Those of a release; None where it brings none.

        Raises:
            ArtifactError: they cannot be read.
        """
        if not (folder / cls.VECTORS_FILE).is_file():
            return None
        try:
            digests_N2 = np.load(folder / cls.DIGESTS_FILE, allow_pickle=False)
            return cls(digests_N2, np.load(folder / cls.VECTORS_FILE, mmap_mode="r", allow_pickle=False))
        except (OSError, ValueError) as error:
            raise ArtifactError(
                f"{folder}: its summaries cannot be read: {error}; run `recsys optimize` again"
            ) from None


def _halves(digests: list[str]) -> np.ndarray:
    """Shape [N, 2]."""
    return np.frombuffer(bytes.fromhex("".join(digests)), dtype=">u8").reshape(-1, 2).astype(np.uint64)
