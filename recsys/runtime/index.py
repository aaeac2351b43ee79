"""The item index: nearest items to a user vector by inner product, exact or by inverted lists."""

import math
from collections.abc import Iterator, Sequence
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, Self

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
_BLOCK_ROWS: Final = 16_384
"""Items that are multiplied at a time, for several queries."""
_BLOCK_PRODUCTS: Final = 4_000_000
"""Products of queries and items that are held at a time."""
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
    """gpu needs the extra `faiss-gpu`, whose files take the place of faiss-cpu's."""


class ItemIndex:
    """Search over item vectors; row i of the index is token i + 1.

    With shifts, vectors are one longer inside, and a query ends in 1: an item's shift is added to its score.

    Exact search on a processor multiplies all items, as every answer does. The rest is faiss' work, which is not even
    loaded without it: library and copy of the items take memory.
    """

    def __init__(
        self,
        choice: IndexChoice,
        items: ItemTable | None = None,
        shift_V: Floats | None = None,
        *,
        rows_VD: Floats | None = None,
        index: Any = None,
    ) -> None:
        """Of vectors with their shifts, of `items`, whose codes are multiplied where that is quicker, or of both.

        `index` is faiss' own; without it, it is made of the vectors once it is needed.
        """
        self._choice = choice
        self._items = items
        self._shift_V = shift_V
        self._scorer: CodeScorer | None = None
        if self._is_multiplied and rows_VD is None:
            assert items is not None, "nothing to make an index of"
            if len(items) >= PAYS_FROM and items.codes is not None:
                self._scorer = CodeScorer(*items.codes)
            else:
                rows_VD = shifted(items.vectors_VD(), shift_V)
        self._rows_VD = rows_VD
        if index is not None:
            self._faiss = self._placed(index)
        assert self.is_exact or items is not None, choice

    @classmethod
    def build(cls, items_VD: Floats, shift_V: Floats | None = None) -> Self:
        """Exact search over a copy of the item vectors, token order, PAD not among them.

        `shift_V` is added to their scores.
        """
        return cls(IndexChoice(), shift_V=shift_V, rows_VD=shifted(np.array(items_VD, dtype=np.float32), shift_V))

    @classmethod
    def open(cls, folder: Path, items: ItemTable, choice: IndexChoice, shift_V: Floats | None = None) -> Self:
        """The index of a release: inverted lists are read, everything else is built from the items.

        Raises:
            ArtifactError: the file of inverted lists is none.
            ConfigError: it is meant for a GPU, and this faiss has no code for one, or sees none.
        """
        if choice.kind is IndexKind.IVF:
            return cls(choice, items, shift_V, index=_read(folder / INDEX_FILE))
        opened = cls(choice, items, shift_V)
        if not opened._is_multiplied:
            opened._faiss  # noqa: B018 (built now: what cannot be is said before anybody asks)
        return opened

    @cached_property
    def _faiss(self) -> Any:
        """All items in faiss' own form."""
        assert self._items is not None, "what faiss searches is of items"
        rows = shifted(self._items.vectors_VD(), self._shift_V)
        index = blank(self._choice, rows.shape[1])
        index.train(rows)
        index.add(rows)
        return self._placed(index)

    def _placed(self, index: Any) -> Any:
        return _on_gpu(index) if self._choice.device == "gpu" else index

    def __len__(self) -> int:
        if self._items is not None:
            return len(self._items)
        assert self._rows_VD is not None, "an index without items is of vectors"
        return len(self._rows_VD)

    @property
    def width(self) -> int:
        """D."""
        if self._items is not None:
            return self._items.width
        assert self._rows_VD is not None, "an index without items is of vectors"
        return int(self._rows_VD.shape[1]) - (self._shift_V is not None)

    @property
    def is_exact(self) -> bool:
        """Whether the index's own answer is the answer."""
        return self._choice.kind is IndexKind.EXACT and self._choice.storage == "float32"

    @property
    def _is_multiplied(self) -> bool:
        """Whether all items are multiplied, here: `all_scores` has them."""
        return self.is_exact and self._choice.device == "cpu"

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
        cosines: Floats = products_V / self._norm_V
        return cosines

    def warm_up(self) -> None:
        """Pay for the first `cosines` now."""
        if self._is_multiplied:
            self._norm_V  # noqa: B018

    @cached_property
    def _norm_V(self) -> Floats:
        """Length of each vector; never 0."""
        norms = [np.sqrt(np.einsum("vd,vd->v", rows_RD, rows_RD)) for rows_RD in self._blocks()]
        lengths: Floats = np.maximum(np.concatenate(norms), 1e-12)
        return lengths

    def _blocks(self) -> Iterator[Floats]:
        """The vectors of all items without their shifts, in order, some at a time."""
        for start in range(0, max(1, len(self)), _BLOCK_ROWS):
            stop = min(start + _BLOCK_ROWS, len(self))
            if self._rows_VD is not None:
                yield self._rows_VD[start:stop, : self.width]
            else:
                yield self.vectors(np.arange(start, stop, dtype=np.int32) + 1)

    def _products(self, vector_D: Floats) -> Floats | None:
        """Inner products of all items and the vector, shape [V]; None where the index does not look at all of them."""
        if self._scorer is not None:
            return self._scorer(vector_D)
        return None if self._rows_VD is None else self._rows_VD[:, : self.width] @ vector_D

    def _rows(self, tokens: Tokens) -> Floats:
        """Vectors with their shifts, if there are any; PAD's mean nothing."""
        if self._rows_VD is not None:
            rows: Floats = self._rows_VD[tokens - 1]
            return rows
        assert self._items is not None, "an index without vectors is of items"
        return shifted(self._items.embed(tokens), None if self._shift_V is None else self._shift_V[tokens - 1])

    def _queries(self, queries_BD: Floats, is_shifted: bool = True) -> Floats:
        ends_B = np.full(len(queries_BD), is_shifted, dtype=np.float32)
        return shifted(queries_BD, None if self._shift_V is None else ends_B)

    def search(
        self, queries_BD: Floats, k: int, exclude: Sequence[Tokens] | None = None, *, is_shifted: bool = True
    ) -> tuple[Tokens, Floats]:
        """The k best items of each query, best first: (tokens_BK, scores_BK); PAD where fewer exist.

        `exclude` holds tokens that must not be returned, one array per query. Not `is_shifted`: by inner products
        alone, which `cosines` has where all items are looked at.
        """
        if exclude is None:
            return self._search(queries_BD, k, None, is_shifted)
        rows = [self._search(queries_BD[i : i + 1], k, without, is_shifted) for i, without in enumerate(exclude)]
        return np.concatenate([r[0] for r in rows]), np.concatenate([r[1] for r in rows])

    def _search(self, queries_BD: Floats, k: int, without: Tokens | None, is_shifted: bool) -> tuple[Tokens, Floats]:
        if self._is_multiplied:
            assert is_shifted, "all items are looked at: `cosines` has what is wanted"
            return self._best_of_products(queries_BD, k, without)
        limit = min(k, len(self))
        wanted = limit if self.is_exact else min(_RESCORED * limit, len(self))
        inside_BD = self._queries(queries_BD, is_shifted)
        tokens_BC, scores_BC = self._candidates(inside_BD, wanted, without)
        if not self.is_exact:
            tokens_BC, scores_BC = self._rescored(inside_BD, tokens_BC)
        tokens_BK = np.full((len(queries_BD), k), PAD, dtype=np.int32)
        scores_BK = np.full((len(queries_BD), k), -np.inf, dtype=np.float32)
        tokens_BK[:, :limit], scores_BK[:, :limit] = tokens_BC[:, :limit], scores_BC[:, :limit]
        return tokens_BK, scores_BK

    def _best_of_products(self, queries_BD: Floats, k: int, without: Tokens | None) -> tuple[Tokens, Floats]:
        tokens_BK = np.full((len(queries_BD), k), PAD, dtype=np.int32)
        scores_BK = np.full((len(queries_BD), k), -np.inf, dtype=np.float32)
        unwanted = np.empty(0, dtype=np.int32) if without is None else without
        unwanted = unwanted[(unwanted != PAD) & (unwanted <= len(self))]
        at_once = max(1, _BLOCK_PRODUCTS // max(1, len(self)))
        for start in range(0, len(queries_BD), at_once):
            for row, scores_V in enumerate(self._all_scores(queries_BD[start : start + at_once]), start):
                scores_V[unwanted - 1] = -np.inf
                tokens_BK[row], scores_BK[row] = best_of_all(scores_V, k)
        return tokens_BK, scores_BK

    def _all_scores(self, queries_BD: Floats) -> Floats:
        """The scores of all items for some queries, shape [B, V]; of one as `all_scores` has them."""
        if len(queries_BD) == 1:
            scores_V = self.all_scores(queries_BD[0])
            assert scores_V is not None, "all items are multiplied"
            return scores_V[None]
        products_BV = np.concatenate([queries_BD @ rows_RD.T for rows_RD in self._blocks()], axis=1)
        return products_BV if self._shift_V is None else products_BV + self._shift_V

    def _candidates(self, queries_BD: Floats, wanted: int, without: Tokens | None) -> tuple[Tokens, Floats]:
        """What the index itself finds, shape [B, C] each; PAD where nothing is left."""
        unwanted = np.empty(0, dtype=np.int32) if without is None else without
        if self._choice.device == "gpu":  # no selectors there: look further and leave them out afterwards
            further = min(wanted + len(unwanted), len(self))
            scores, rows = self._found(queries_BD, further, unwanted[:0])
            scores = np.where(np.isin(rows + 1, unwanted), -np.inf, scores)
            order = np.argsort(-scores, axis=1, kind="stable")[:, :wanted]
            scores, rows = np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
            rows = np.where(np.isneginf(scores), -1, rows)
        else:
            scores, rows = self._found(queries_BD, wanted, unwanted)
        tokens_BC = (rows + 1).astype(np.int32)  # faiss marks "none left" by -1, which becomes PAD
        return tokens_BC, np.where(rows >= 0, scores, -np.inf).astype(np.float32)

    def _found(self, queries_BD: Floats, wanted: int, unwanted: Tokens) -> tuple[Floats, Any]:
        """What faiss finds, higher scores first; of lists, whose vectors are levelled, less distance is more score."""
        parameters = self._parameters(wanted, unwanted)
        if self._faiss.d == queries_BD.shape[1]:  # exact search, and lists of before
            scores, rows = self._faiss.search(queries_BD, wanted, params=parameters)
            return scores, rows
        level_BD = np.column_stack([queries_BD, np.zeros(len(queries_BD), dtype=np.float32)])
        distances, rows = self._faiss.search(np.ascontiguousarray(level_BD), wanted, params=parameters)
        return -distances, rows

    def _parameters(self, wanted: int, unwanted: Tokens) -> Any:
        import faiss

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


def levelled(vectors_ND: Floats) -> Floats:
    """The vectors with one more number each, so that all are of one length.

    What is nearest to a query that ends in 0 is then what has the largest inner product with it, and lists of what is
    near one another are lists of what is found together. Lists of vectors as they are, by direction, are not: a long
    one is found by many.
    Source: Bachrach et al., RecSys 2014.
    """
    squares_N = np.einsum("nd,nd->n", vectors_ND, vectors_ND)
    return shifted(vectors_ND, np.sqrt(squares_N.max(initial=0.0) - squares_N))


def blank(choice: IndexChoice, width: int) -> Any:
    """An index without items that still has to be trained; lists are of levelled vectors, `width` counts theirs."""
    import faiss

    if choice.kind is IndexKind.EXACT:
        if choice.storage == "float32":
            return faiss.IndexFlatIP(width)
        return faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
    centres, metric = faiss.IndexFlatL2(width), faiss.METRIC_L2
    index: faiss.IndexIVF
    if choice.storage == "float32":
        index = faiss.IndexIVFFlat(centres, width, choice.num_lists, metric)
    else:
        index = faiss.IndexIVFScalarQuantizer(
            centres, width, choice.num_lists, faiss.ScalarQuantizer.QT_8bit, metric, True
        )
    index.nprobe = choice.num_probed
    return index


def _read(path: Path) -> Any:
    import faiss

    try:
        return faiss.read_index(str(path))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1]
        raise ArtifactError(f"{path}: not an index: {reason}; run `recsys optimize` again") from None


def _on_gpu(index: Any) -> Any:
    """A copy in the first GPU's memory.

    Raises:
        ConfigError: this faiss has no GPU code, or sees no GPU.
    """
    import faiss

    if not hasattr(faiss, "StandardGpuResources") or not faiss.get_num_gpus():
        raise ConfigError(
            "index.device = gpu needs a GPU and the extra: pip install 'recsys[faiss-gpu]'; use device = cpu"
        )
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)


def best_of_all(scores_V: Floats, k: int) -> tuple[Tokens, Floats]:
    """The same as `best` of the scores of all items, in the order of tokens; −inf marks what is left out."""
    least = np.partition(scores_V, -k)[-k] if k < len(scores_V) else -np.inf
    rows = np.flatnonzero((scores_V >= least) & (scores_V > -np.inf))
    return best((rows + 1).astype(np.int32), scores_V[rows], k)


def best(tokens: Tokens, scores: Floats, k: int) -> tuple[Tokens, Floats]:
    """The k highest scores, ties by token, filled up with PAD."""
    order = np.lexsort((tokens, -scores))[:k]
    found, values = np.full(k, PAD, dtype=np.int32), np.full(k, -np.inf, dtype=np.float32)
    found[: len(order)], values[: len(order)] = tokens[order], scores[order]
    return found, values
