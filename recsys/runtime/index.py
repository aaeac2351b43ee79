"""The item index: nearest items to a user vector by inner product, exact or by inverted lists."""

import math
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np
from pydantic import Field

from recsys.contracts.config import Config
from recsys.contracts.errors import ArtifactError, ConfigError
from recsys.contracts.ids import PAD, Floats, Tokens
from recsys.runtime.items import ItemTable
from recsys.runtime.scoring import PAYS_FROM, CodeScorer

# B queries, D width, V items, K results, C candidates

INDEX_FILE = "index.faiss"
_COVER = 4
"""Inverted lists that are looked at hold at least so many times the items asked for."""
_RESCORED = 2
"""Candidates per result where the index's own scores are not exact."""


class IndexKind(StrEnum):
    """How the items are searched."""

    EXACT = "exact"
    """Every item."""
    IVF = "ivf"
    """The items of the lists whose centres are nearest (inverted file)."""


class IndexChoice(Config):
    """How a release searches its items; written by `optimize`, measured on real user vectors."""

    kind: IndexKind = IndexKind.EXACT
    storage: Literal["float32", "int8"] = "float32"
    """int8 takes a quarter of the memory; candidates are scored again by the item vectors."""
    num_lists: int = Field(default=1, ge=1)
    num_probed: int = Field(default=1, ge=1)
    """Lists looked at, more where many items are asked for."""
    device: Literal["cpu", "gpu"] = "cpu"
    """gpu needs faiss-gpu in the place of faiss-cpu."""


class ItemIndex:
    """Search over item vectors; row i of the index is token i + 1.

    With shifts, vectors are one longer inside, and a query ends in 1: an item's shift is added to its score.
    """

    def __init__(
        self,
        index: Any,
        choice: IndexChoice | None = None,
        items: ItemTable | None = None,
        shift_V: Floats | None = None,
        scorer: CodeScorer | None = None,
    ) -> None:
        """`items` are the vectors that candidates are scored by where the index's own scores are not exact.

        `scorer` multiplies all items of an exact index quicker than the index does.
        """
        self._choice = choice or IndexChoice()
        self._index = _on_gpu(index) if self._choice.device == "gpu" else index
        self._items = items
        self._shift_V = shift_V
        self._scorer = scorer
        self._norm_V: Floats | None = None
        assert self.is_exact or items is not None, self._choice

    @classmethod
    def build(cls, items_VD: Floats, shift_V: Floats | None = None) -> "ItemIndex":
        """Exact search over the item vectors, token order, PAD not among them; `shift_V` is added to their scores."""
        rows = shifted(items_VD, shift_V)
        index = faiss.IndexFlatIP(rows.shape[1])
        index.add(rows)
        return cls(index, shift_V=shift_V)

    @classmethod
    def open(cls, folder: Path, items: ItemTable, choice: IndexChoice, shift_V: Floats | None = None) -> "ItemIndex":
        """The index of a release: inverted lists are read, everything else is built from the items."""
        if choice.kind is IndexKind.IVF:
            path = folder / INDEX_FILE
            try:
                return cls(faiss.read_index(str(path)), choice, items, shift_V)
            except RuntimeError as error:
                reason = str(error).splitlines()[-1]
                raise ArtifactError(f"{path}: not an index: {reason}; run `recsys optimize` again") from None
        rows = shifted(items.vectors_VD(), shift_V)
        index = blank(choice, rows.shape[1])
        index.train(rows)
        index.add(rows)
        codes = items.codes if choice == IndexChoice() and len(items) >= PAYS_FROM else None
        return cls(index, choice, items, shift_V, None if codes is None else CodeScorer(*codes))

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def width(self) -> int:
        """D."""
        return int(self._index.d) - (self._shift_V is not None)

    @property
    def is_exact(self) -> bool:
        """Whether the index's own answer is the answer."""
        return self._choice.kind is IndexKind.EXACT and self._choice.storage == "float32"

    def vectors(self, tokens: Tokens) -> Floats:
        """Item vectors of tokens in 1 … V, shape [len(tokens), D]."""
        return self._rows(tokens)[:, : self.width]

    def scores(self, vector_D: Floats, tokens: Tokens) -> Floats:
        """What `search` would say of chosen tokens in 1 … V, shape [len(tokens)]."""
        scores: Floats = self._rows(tokens) @ self._queries(vector_D[None])[0]
        return scores

    def all_scores(self, vector_D: Floats) -> Floats | None:
        """The scores of all items, shape [V]; None where the index does not look at all of them."""
        products_V = self._products(vector_D)
        if products_V is None or self._shift_V is None:
            return products_V
        return products_V + self._shift_V

    def cosines(self, vector_D: Floats) -> Floats | None:
        """Of every item and the vector, shifts not counted, shape [V]; None where `all_scores` gives none."""
        products_V = self._products(vector_D / max(float(np.linalg.norm(vector_D)), 1e-12))
        if products_V is None:
            return None
        if self._norm_V is None:
            rows_VD = self._held()
            assert rows_VD is not None, "there are products"
            self._norm_V = np.maximum(np.sqrt(np.einsum("vd,vd->v", rows_VD, rows_VD)), 1e-12)
        return products_V / self._norm_V

    def _products(self, vector_D: Floats) -> Floats | None:
        """Inner products of all items and the vector, shape [V]; None where the index does not look at all of them."""
        if self._scorer is not None:
            return self._scorer(vector_D)
        rows_VD = self._held()
        return None if rows_VD is None else rows_VD @ vector_D

    def _held(self) -> Floats | None:
        """Every vector in the index's own memory, shape [V, D]; None where they are elsewhere or in another form."""
        if not self.is_exact or self._choice.device == "gpu":
            return None
        held: Floats = faiss.rev_swig_ptr(self._index.get_xb(), len(self) * self._index.d).reshape(len(self), -1)
        return held[:, : self.width]

    def _rows(self, tokens: Tokens) -> Floats:
        """Vectors with their shifts, if there are any; PAD's mean nothing."""
        if self._items is not None:
            return shifted(self._items.embed(tokens), None if self._shift_V is None else self._shift_V[tokens - 1])
        found: Floats = self._index.reconstruct_batch(tokens.astype(np.int64) - 1)
        return found

    def _queries(self, queries_BD: Floats) -> Floats:
        return shifted(queries_BD, None if self._shift_V is None else np.ones(len(queries_BD), dtype=np.float32))

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
        wanted = limit if self.is_exact else min(_RESCORED * limit, len(self))
        inside_BD = self._queries(queries_BD)
        tokens_BC, scores_BC = self._candidates(inside_BD, wanted, without)
        if not self.is_exact:
            tokens_BC, scores_BC = self._rescored(inside_BD, tokens_BC)
        tokens_BK = np.full((len(queries_BD), k), PAD, dtype=np.int32)
        scores_BK = np.full((len(queries_BD), k), -np.inf, dtype=np.float32)
        tokens_BK[:, :limit], scores_BK[:, :limit] = tokens_BC[:, :limit], scores_BC[:, :limit]
        return tokens_BK, scores_BK

    def _candidates(self, queries_BD: Floats, wanted: int, without: Tokens | None) -> tuple[Tokens, Floats]:
        """What the index itself finds, shape [B, C] each; PAD where nothing is left."""
        unwanted = np.empty(0, dtype=np.int32) if without is None else without
        if self._choice.device == "gpu":  # no selectors there: look further and leave them out afterwards
            further = min(wanted + len(unwanted), len(self))
            scores, rows = self._index.search(queries_BD, further, params=self._parameters(further, unwanted[:0]))
            scores = np.where(np.isin(rows + 1, unwanted), -np.inf, scores)
            order = np.argsort(-scores, axis=1, kind="stable")[:, :wanted]
            scores, rows = np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
            rows = np.where(np.isneginf(scores), -1, rows)
        else:
            scores, rows = self._index.search(queries_BD, wanted, params=self._parameters(wanted, unwanted))
        tokens_BC = (rows + 1).astype(np.int32)  # faiss marks "none left" by -1, which becomes PAD
        return tokens_BC, np.where(rows >= 0, scores, -np.inf).astype(np.float32)

    def _parameters(self, wanted: int, unwanted: Tokens) -> Any:
        selector = {}
        if len(unwanted):
            selector["sel"] = faiss.IDSelectorNot(faiss.IDSelectorBatch(unwanted.astype(np.int64) - 1))
        if self._choice.kind is IndexKind.EXACT:
            return faiss.SearchParameters(**selector) if selector else None
        per_list = len(self) / self._choice.num_lists
        enough = math.ceil(_COVER * (wanted + len(unwanted)) / per_list)
        num_probed = min(max(self._choice.num_probed, enough), self._choice.num_lists)
        return faiss.SearchParametersIVF(nprobe=num_probed, **selector)  # type: ignore[call-arg]

    def _rescored(self, queries_BD: Floats, tokens_BC: Tokens) -> tuple[Tokens, Floats]:
        """Candidates in the order of their exact scores, ties by token."""
        rows_BCD = self._rows(tokens_BC.ravel()).reshape(*tokens_BC.shape, -1)
        scores_BC = np.einsum("bcd,bd->bc", rows_BCD, queries_BD).astype(np.float32)
        scores_BC[tokens_BC == PAD] = -np.inf
        order = np.stack([np.lexsort((t, -s)) for t, s in zip(tokens_BC, scores_BC, strict=True)])
        return np.take_along_axis(tokens_BC, order, axis=1), np.take_along_axis(scores_BC, order, axis=1)


def shifted(vectors_ND: Floats, shift_N: Floats | None) -> Floats:
    """The vectors with their shifts as one more number each; as they are without."""
    whole = vectors_ND if shift_N is None else np.column_stack([vectors_ND, shift_N])
    return np.ascontiguousarray(whole, dtype=np.float32)


def blank(choice: IndexChoice, width: int) -> Any:
    """An index without items that still has to be trained."""
    metric = faiss.METRIC_INNER_PRODUCT
    if choice.kind is IndexKind.EXACT:
        if choice.storage == "float32":
            return faiss.IndexFlatIP(width)
        return faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_8bit, metric)
    centres = faiss.IndexFlatIP(width)
    index: faiss.IndexIVF
    if choice.storage == "float32":
        index = faiss.IndexIVFFlat(centres, width, choice.num_lists, metric)
    else:
        index = faiss.IndexIVFScalarQuantizer(
            centres, width, choice.num_lists, faiss.ScalarQuantizer.QT_8bit, metric, False
        )
    index.nprobe = choice.num_probed
    return index


def _on_gpu(index: Any) -> Any:
    """A copy in the first GPU's memory.

    Raises:
        ConfigError: this faiss has no GPU code, or sees no GPU.
    """
    if not hasattr(faiss, "StandardGpuResources") or not faiss.get_num_gpus():
        raise ConfigError(
            "index.device = gpu needs a GPU and `pip install faiss-gpu` in the place of faiss-cpu; use device = cpu"
        )
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
