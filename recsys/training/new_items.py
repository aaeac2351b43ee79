"""Whether new items may stand among the others, decided on validation: in what share of lists they pay.

Validation repeats the night: what had too few events before its moment is placed by title, category and price, and the
held-out events say whether a list is better with it. The decoder is that of before absorbing.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys import transitions as transition_counts
from recsys import trend
from recsys.contracts.ids import PAD, Floats
from recsys.dataset import Dataset, ValidationSet
from recsys.model.content import place, terms
from recsys.model.decoder import SequenceModel
from recsys.model.reference import encode
from recsys.runtime.fusion import Fusion, evidence, search
from recsys.runtime.index import ItemIndex
from recsys.runtime.new_items import LAST, shift_for
from recsys.training.config import Recipe
from recsys.windows import answer_context, reachable

# U validation users, K = DEPTH results, N new items, D width

DEPTH = 10
LEAST_TARGETS = 30
"""Fewer (user, new item) targets than this tell nothing."""
_SHARES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
"""What is tried. A share, not a shift of scores: scores grow while the model absorbs the held-out events."""
_DISCOUNT = 1 / np.log2(np.arange(2, 2 + DEPTH))

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What validation said. Figures without a trial are those of lists without new items."""

    share: float = 0.0
    """Of users whose list a new item reaches."""
    num_new: int = 0
    """New items with a title, category or price."""
    num_targets: int = 0
    """Held-out (user, new item) pairs."""
    recall_new: float = 0.0
    """Recall@10 of new targets with the share chosen."""
    recall_new_alone: float = 0.0
    """Recall@10 of new targets where only new items are ranked."""
    ndcg: float = 0.0
    """NDCG@10 of the lists with this share, against all later events and the next one, the mean of both."""
    ndcg_without: float = 0.0

    def plain(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)


def choose(model: SequenceModel, data: Dataset, validation: ValidationSet, recipe: Recipe, fusion: Fusion) -> Choice:
    """The share of lists with the best NDCG@10, if it gains more than its standard error.

    With `new_items_max_loss`, the share that finds the most new targets among those that lose no more than that share.
    """
    if validation.from_ms is None or not validation.user_ids:
        return Choice()
    lists = _Lists.of(model, data, validation, recipe, fusion)
    if lists is None or lists.num_targets < LEAST_TARGETS:
        return Choice() if lists is None else Choice(num_new=len(lists.new_index), num_targets=lists.num_targets)
    without = lists.ndcg(LAST)
    chosen, shift, best = 0.0, LAST, without
    for share in _SHARES:
        tried = shift_for(share, lists.kept_scores_UK[:, -1], lists.new_scores_UK[:, 0])
        ndcg = lists.ndcg(tried)
        if _is_better(ndcg, best, without, lists, tried, shift, recipe.training.new_items_max_loss):
            chosen, shift, best = share, tried, ndcg
    return Choice(
        share=chosen,
        num_new=len(lists.new_index),
        num_targets=lists.num_targets,
        recall_new=lists.recall_of_new(lists.merged(shift)),
        recall_new_alone=lists.recall_of_new(lists.new_UK),
        ndcg=float(best.mean()),
        ndcg_without=float(without.mean()),
    )


def _is_better(
    ndcg: Values, best: Values, without: Values, lists: "_Lists", tried: float, shift: float, max_loss: float
) -> bool:
    if max_loss > 0:
        affordable = ndcg.mean() >= without.mean() * (1 - max_loss)
        return bool(affordable and lists.recall_of_new(lists.merged(tried)) > lists.recall_of_new(lists.merged(shift)))
    gain = ndcg - without
    error = gain.std() / np.sqrt(len(gain))
    return bool(ndcg.mean() > best.mean() and gain.mean() > error)


@dataclass(frozen=True, slots=True)
class _Lists:
    """Two lists a user by item_index, of kept and of new items, with scores; and what they are judged by."""

    kept_UK: npt.NDArray[np.int64]
    kept_scores_UK: Floats
    new_UK: npt.NDArray[np.int64]
    new_scores_UK: Floats
    new_index: npt.NDArray[np.int64]
    targets: list[npt.NDArray[np.int64]]

    @classmethod
    def of(
        cls, model: SequenceModel, data: Dataset, validation: ValidationSet, recipe: Recipe, fusion: Fusion
    ) -> "_Lists | None":
        """The lists at validation's moment; None where no new item can be placed."""
        assert validation.from_ms is not None
        new = [i for i in data.new_items(validation.from_ms, data.fit_end_ms) if terms(i)]
        new_index = np.array([item.item_index for item in new], dtype=np.int64)
        index_V = np.array([PAD, *(item.item_index for item in data.vocabulary.items)], dtype=np.int64)
        num_before_V = np.bincount(validation.train.tokens, minlength=len(index_V))
        is_hidden_V = np.isin(index_V, new_index) | (num_before_V == 0)
        is_hidden_V[validation.pruned] = True
        hidden = np.flatnonzero(is_hidden_V)[1:].astype(np.int32)
        shown = np.setdiff1d(np.arange(1, len(index_V)), hidden)
        items_VD = model.items_VD.detach().cpu().numpy()
        vectors_ND = place(
            [data.vocabulary.item(int(token)) for token in shown],
            items_VD[shown - 1],
            new,
            recipe.training.new_items_ridge,
        )
        if vectors_ND is None:
            return None
        users_UD = encode(model.eval(), [answer_context(context, recipe.window) for context in validation.contexts])
        index = ItemIndex.build(items_VD, trend.shifts(fusion.trend, validation.num_recent(len(items_VD))))
        table = transition_counts.TransitionTable.fit(validation.train, len(items_VD))
        found = [
            search(
                index, users_UD[u : u + 1], evidence(reachable(context, recipe.window), table), DEPTH, hidden, fusion
            )
            for u, context in enumerate(validation.contexts)
        ]
        new_rows_UK, new_scores_UK = ItemIndex.build(vectors_ND).search(users_UD, DEPTH)
        return cls(
            index_V[np.stack([tokens for tokens, _ in found])],
            np.stack([scores for _, scores in found]),
            np.concatenate([[PAD], new_index])[new_rows_UK],
            new_scores_UK,
            new_index,
            data.items_after(validation.user_ids, validation.from_ms),
        )

    @property
    def num_targets(self) -> int:
        """Held-out (user, new item) pairs."""
        return sum(len(np.intersect1d(wanted, self.new_index)) for wanted in self.targets)

    def merged(self, shift: float) -> npt.NDArray[np.int64]:
        """The first ten of both lists."""
        items = np.concatenate([self.kept_UK, self.new_UK], axis=1)
        scores = np.concatenate([self.kept_scores_UK, self.new_scores_UK + shift], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH]
        merged: npt.NDArray[np.int64] = np.take_along_axis(items, order, axis=1)
        return merged

    def ndcg(self, shift: float) -> Values:
        """Of each user: the mean of NDCG@10 against all later items and against the next one."""
        values = np.empty(len(self.targets))
        for user, (row, wanted) in enumerate(zip(self.merged(shift), self.targets, strict=True)):
            ideal = _DISCOUNT[: len(np.unique(wanted))].sum()
            values[user] = ((np.isin(row, wanted) / ideal + (row == wanted[0])) * _DISCOUNT).sum() / 2
        return values

    def recall_of_new(self, lists_UK: npt.NDArray[np.int64]) -> float:
        """Mean over the users with new targets of the share of them in the list."""
        wanted = [np.intersect1d(row, self.new_index) for row in self.targets]
        shares = [np.isin(row, ranked).mean() for row, ranked in zip(wanted, lists_UK, strict=True) if len(row)]
        return float(np.mean(shares)) if shares else 0.0
