"""The new items of a release: their vectors, and how far their scores are shifted so that they reach so many lists."""

import numpy as np

from recsys.contracts.ids import Floats, Item
from recsys.contracts.protocol import Protocol
from recsys.dataset import VALIDATION_QUANTILE, Dataset
from recsys.model.checkpoint import Checkpoint
from recsys.model.content import DEFAULT_RIDGE, place, terms
from recsys.model.reference import encode
from recsys.runtime.fusion import Fusion, evidence, search
from recsys.runtime.index import ItemIndex
from recsys.runtime.new_items import LAST, NewItems, shift_for
from recsys.transitions import TransitionTable
from recsys.windows import answer_context, reachable

# N new items, D width, U users

DEPTH = 10
NUM_USERS = 1000
"""A seeded sample of active users, on whose lists the shift is measured: validation, too, is on those who came back."""


def place_new(checkpoint: Checkpoint, data: Dataset) -> tuple[list[Item], Floats]:
    """The newest items of the features that the checkpoint has no row for, and their vectors by content, shape [N, D].

    At most as many as there are kept ones, so that the index at most doubles.
    """
    kept = checkpoint.vocabulary
    nothing: tuple[list[Item], Floats] = [], np.empty((0, checkpoint.model.config.width), dtype=np.float32)
    end_ms = data.split_ms if data.protocol is Protocol.TIME else data.fit_end_ms
    if end_ms is None or data.protocol is Protocol.LAST_OUT:
        return nothing
    known = {item.item_id for item in kept.items}
    new = [item for item in data.new_items(end_ms) if item.item_id not in known and terms(item)]
    new = sorted(new, key=lambda item: item.item_index)[-len(kept) :]
    ridge = float(checkpoint.manifest.config["training"].get("new_items_ridge", DEFAULT_RIDGE))
    vectors_ND = place(kept.items, checkpoint.model.items_VD.detach().numpy(), new, ridge)
    return nothing if vectors_ND is None else (new, vectors_ND)


def settings(checkpoint: Checkpoint, data: Dataset, vectors_ND: Floats, share: float | None, seed: int) -> NewItems:
    """The shift with which new items reach this share of lists; by default the share that validation chose."""
    if share is None:
        share = float(checkpoint.manifest.config.get("new_items", {}).get("share", 0.0))
    if not share or not len(vectors_ND):
        return NewItems(share=0.0, shift=LAST)
    fusion = Fusion.from_mapping(checkpoint.manifest.config["fusion"], "checkpoint: fusion")
    index = ItemIndex.build(checkpoint.model.items_VD.detach().numpy(), checkpoint.trend_V)
    table = TransitionTable.fit(data.fit, len(checkpoint.vocabulary))
    last_ms_U = data.fit.timestamps_ms[data.fit.offsets[1:] - 1]
    active = np.flatnonzero(last_ms_U >= np.quantile(data.fit.timestamps_ms, VALIDATION_QUANTILE))
    users = np.sort(np.random.default_rng(seed).permutation(active)[:NUM_USERS])
    contexts = [data.fit[user] for user in users]
    vectors_UD = encode(checkpoint.model, [answer_context(context, checkpoint.window) for context in contexts])
    last_U = np.empty(len(users), dtype=np.float32)
    for u, context in enumerate(contexts):
        known = evidence(reachable(context, checkpoint.window), table)
        out = np.unique(context) if data.protocol.masks_seen else context[:0]
        last_U[u] = search(index, vectors_UD[u : u + 1], known, DEPTH, out, fusion)[1][-1]
    best_U = ItemIndex.build(vectors_ND).search(vectors_UD, 1)[1][:, 0]
    return NewItems(share=share, shift=shift_for(share, last_U, best_U))
