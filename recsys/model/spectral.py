"""Item vectors to start from: a truncated SVD of how often items stand near one another.

Training from random vectors spends its first epochs on finding out which items go together; the counts say so
at once (`docs/model.md` compares; `spectral_start = false` in a recipe starts from random vectors).
Source: Levy, Goldberg, NIPS 2014 (word2vec as factorisation of pointwise mutual information).
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

# V items, D width; a V axis here has V + 1 entries, entry 0 = PAD

NUM_ITERATIONS = 2
"""Power iterations of the randomised SVD."""


def item_vectors(follows_VV: Any, width: int, std: float, generator: torch.Generator) -> Tensor:
    """Vectors of shape [V, D] with this standard deviation; small random ones for items without neighbours.

    `follows_VV` are the pair counts of `recsys.transitions.count`; their order within a pair does not matter here.
    """
    mutual_VV = _positive_mutual_information(follows_VV)
    num_rows = mutual_VV.shape[0]
    vectors = torch.empty((num_rows, width)).normal_(0, std / 10, generator=generator)
    rank = min(width, num_rows - 1)
    if mutual_VV.nnz:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
            left, values, _ = torch.svd_lowrank(_as_torch(mutual_VV), q=rank, niter=NUM_ITERATIONS)
        found = left * values.sqrt()
        has_neighbours = torch.from_numpy(np.diff(mutual_VV.indptr) > 0)
        scale = std / found[has_neighbours].std().clamp_min(1e-12)
        vectors[has_neighbours, :rank] += scale * found[has_neighbours]
    return vectors


def _positive_mutual_information(follows_VV: Any) -> Any:
    """max(0, ln P(a, b) / P(a) P(b)) of the symmetric counts."""
    near_VV = (follows_VV + follows_VV.T).tocsr()
    totals = np.asarray(near_VV.sum(axis=1)).ravel()
    row = np.repeat(np.arange(len(totals)), np.diff(near_VV.indptr))
    expected = totals[row] * totals[near_VV.indices]
    near_VV.data = np.maximum(np.log(near_VV.data * totals.sum() / expected), 0).astype(np.float32)
    near_VV.eliminate_zeros()
    return near_VV


def _as_torch(matrix: Any) -> Tensor:
    """A scipy CSR array as a torch sparse tensor."""
    coordinates = matrix.tocoo()
    indices = torch.from_numpy(np.stack([coordinates.row, coordinates.col]).astype(np.int64))
    return torch.sparse_coo_tensor(
        indices, torch.from_numpy(coordinates.data), matrix.shape, check_invariants=False
    ).coalesce()
