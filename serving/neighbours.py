"""Items most like an item, kept once they were looked for."""

import threading
from collections import OrderedDict
from typing import Final

import numpy as np

from recsys.contracts.ids import PAD, Floats, Tokens
from recsys.runtime.index import ItemIndex

NUM_KEPT: Final = 100
"""Neighbours that are kept of an item."""
_MAX_ITEMS: Final = 20_000

# N neighbours, D width


class Neighbours:
    """Lists of neighbours under one release. Thread-safe."""

    def __init__(self, index: ItemIndex) -> None:
        self._index = index
        self._lists: OrderedDict[int, tuple[Tokens, Floats]] = OrderedDict()
        self._lock = threading.Lock()

    def kept(self, token: int) -> tuple[Tokens, Floats] | None:
        """What is kept, without a search: for answers that cannot wait."""
        return self._lists.get(token)

    def of(self, token: int) -> tuple[Tokens, Floats]:
        """Up to 100 items most like an item (cosine among the nearest by inner product), best first."""
        known = self.kept(token)
        if known is None:
            known = self._search(token)
            with self._lock:
                self._lists[token] = known
                while len(self._lists) > _MAX_ITEMS:
                    self._lists.popitem(last=False)
        return known

    def _search(self, token: int) -> tuple[Tokens, Floats]:
        item_1D = self._index.vectors(np.array([token]))
        found = self._index.search(item_1D, 2 * NUM_KEPT, [np.array([token], dtype=np.int32)])[0][0]
        found = found[found != PAD]
        vectors_ND = self._index.vectors(found)
        norms = np.linalg.norm(vectors_ND, axis=1) * np.linalg.norm(item_1D)
        likeness = (vectors_ND @ item_1D[0]) / np.maximum(norms, 1e-12)
        order = np.argsort(-likeness, kind="stable")[:NUM_KEPT]
        return found[order], likeness[order]
