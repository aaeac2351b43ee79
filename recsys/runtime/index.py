"""The item index: nearest items to a user vector by inner product, exact."""

from collections.abc import Sequence

import faiss
import numpy as np

from recsys.contracts.ids import PAD, Floats, Tokens

# B queries, D width, V items, K results


class ItemIndex:
    """Exact search over item vectors; row i of the index is token i + 1.

    With shifts, vectors are one longer inside, and a query ends in 1: an item's shift is added to its score.
    """

    def __init__(self, index: faiss.Index, *, is_shifted: bool) -> None:
        self._index = index
        self._is_shifted = is_shifted

    @classmethod
    def build(cls, items_VD: Floats, shift_V: Floats | None = None) -> "ItemIndex":
        """Index the item vectors, token order, PAD not among them; `shift_V` is added to their scores."""
        if shift_V is not None:
            items_VD = np.column_stack([items_VD, shift_V])
        index = faiss.IndexFlatIP(items_VD.shape[1])
        index.add(np.ascontiguousarray(items_VD, dtype=np.float32))
        return cls(index, is_shifted=shift_V is not None)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def width(self) -> int:
        """D."""
        return int(self._index.d) - self._is_shifted

    def vectors(self, tokens: Tokens) -> Floats:
        """Item vectors of tokens in 1 … V, shape [len(tokens), D]."""
        return self._rows(tokens)[:, : self.width]

    def scores(self, vector_D: Floats, tokens: Tokens) -> Floats:
        """What `search` would say of chosen tokens in 1 … V, shape [len(tokens)]."""
        scores: Floats = self._rows(tokens) @ self._queries(vector_D[None])[0]
        return scores

    def _rows(self, tokens: Tokens) -> Floats:
        found: Floats = self._index.reconstruct_batch(tokens.astype(np.int64) - 1)
        return found

    def _queries(self, queries_BD: Floats) -> Floats:
        if self._is_shifted:
            queries_BD = np.column_stack([queries_BD, np.ones(len(queries_BD), dtype=np.float32)])
        return np.ascontiguousarray(queries_BD)

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
        scores, rows = self._index.search(self._queries(queries_BD), limit, params=parameters)
        tokens_BK = np.full((len(queries_BD), k), PAD, dtype=np.int32)
        scores_BK = np.full((len(queries_BD), k), -np.inf, dtype=np.float32)
        tokens_BK[:, :limit] = rows + 1  # faiss marks "none left" by -1, which becomes PAD
        scores_BK[:, :limit] = np.where(rows >= 0, scores, -np.inf)
        return tokens_BK, scores_BK
