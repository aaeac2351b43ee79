"""Items most like an item, kept once they were looked for."""

import threading
from collections import OrderedDict
from typing import Final

import numpy as np

from recsys.contracts.ids import PAD, Floats, Tokens
from recsys.runtime.index import ItemIndex, best, best_of_all
from serving.rules import Mask

NUM_KEPT: Final = 100
"""Neighbours that are kept of an item."""
_MAX_ITEMS: Final = 20_000
_FURTHER: Final = 8
"""How many times as many each look takes as the one before."""

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

    def of(self, token: int, num: int = NUM_KEPT) -> tuple[Tokens, Floats]:
        """The `num` other items with the highest cosine, best first, fewer where the catalogue ends.

        Exact where the index looks at every item; else among twice as many that are nearest by inner product.
        """
        if num > NUM_KEPT:
            return self._search(token, num)
        known = self.kept(token)
        if known is None:
            known = self._search(token, NUM_KEPT)
            with self._lock:
                self._lists[token] = known
                while len(self._lists) > _MAX_ITEMS:
                    self._lists.popitem(last=False)
        return known[0][:num], known[1][:num]

    def shown(self, token: int, num: int, allowed: Mask) -> tuple[Tokens, Floats]:
        """The `num` other items that may be shown with the highest cosine: looked for until the catalogue ends."""
        look, everything = NUM_KEPT, len(self._index) - 1
        while True:
            tokens, cosines = self.of(token, look)
            kept = np.flatnonzero(allowed[tokens])[:num]
            if len(kept) == num or look >= everything:
                return tokens[kept], cosines[kept]
            look = min(everything, _FURTHER * look)

    def _search(self, token: int, num: int) -> tuple[Tokens, Floats]:
        item_1D = self._index.vectors(np.array([token]))
        cosines_V = self._index.cosines(item_1D[0])
        if cosines_V is not None:
            cosines_V[token - 1] = -np.inf
            tokens, cosines = best_of_all(cosines_V, num)
        else:
            itself = [np.array([token], dtype=np.int32)]
            found = self._index.search(item_1D, 2 * num, itself, is_shifted=False)[0][0]
            found = found[found != PAD]
            vectors_ND = self._index.vectors(found)
            norms = np.linalg.norm(vectors_ND, axis=1) * np.linalg.norm(item_1D)
            tokens, cosines = best(found, (vectors_ND @ item_1D[0]) / np.maximum(norms, 1e-12), num)
        return tokens[tokens != PAD], cosines[tokens != PAD]
