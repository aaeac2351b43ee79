"""The item index: nearest items to a user vector by inner product, exact."""

from collections.abc import Sequence

import faiss
import numpy as np

from recsys.contracts.ids import PAD, Floats, Tokens

# B queries, D width, V items, K results


class ItemIndex:
    """Exact search over item vectors; row i of the index is token i + 1."""

    def __init__(self, index: faiss.Index) -> None:
        self._index = index

    @classmethod
    def build(cls, items_VD: Floats) -> "ItemIndex":
        """Index the item vectors, token order, PAD not among them."""
        index = faiss.IndexFlatIP(items_VD.shape[1])
        index.add(np.ascontiguousarray(items_VD, dtype=np.float32))
        return cls(index)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def width(self) -> int:
        """D."""
        return int(self._index.d)

    def vectors(self, tokens: Tokens) -> Floats:
        """Item vectors of tokens in 1 … V, shape [len(tokens), D]."""
        found: Floats = self._index.reconstruct_batch(tokens.astype(np.int64) - 1)
        return found

    def search(self, queries_BD: Floats, k: int, exclude: Sequence[Tokens] | None = None) -> tuple[Tokens, Floats]:
        """The k best items of each query, best first: (tokens_BK, scores_BK); PAD where fewer exist.

        `exclude` holds tokens that must not be returned, one array per query.
        """
        if exclude is None:
            return self._search(queries_BD, k, None)
        rows = [self._search(queries_BD[i : i + 1], k, without) for i, without in enumerate(exclude)]
        return np.concatenate([r[0] for r in rows]), np.concatenate([r[1] for r in rows])

    def _search(self, queries_BD: Floats, k: int, without: Tokens | None) -> tuple[Tokens, Floats]:
        limit = min(k, len(self))
        parameters = None
        if without is not None and len(without):
            selector = faiss.IDSelectorNot(faiss.IDSelectorBatch(without.astype(np.int64) - 1))
            parameters = faiss.SearchParameters(sel=selector)  # type: ignore[call-arg]
        scores, rows = self._index.search(np.ascontiguousarray(queries_BD), limit, params=parameters)
        tokens_BK = np.full((len(queries_BD), k), PAD, dtype=np.int32)
        scores_BK = np.full((len(queries_BD), k), -np.inf, dtype=np.float32)
        tokens_BK[:, :limit] = rows + 1  # faiss marks "none left" by -1, which becomes PAD
        scores_BK[:, :limit] = np.where(rows >= 0, scores, -np.inf)
        return tokens_BK, scores_BK
