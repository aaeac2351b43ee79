"""What choices are made on: NDCG@10 of held-out events, by the decoder fused with counts as it will serve."""

import numpy as np
import torch

from recsys.dataset import ValidationSet
from recsys.model.decoder import SequenceModel
from recsys.model.reference import encode
from recsys.runtime.fusion import Fusion, evidence
from recsys.runtime.index import ItemIndex
from recsys.training import fusion
from recsys.training.config import Recipe
from recsys.transitions import TransitionTable
from recsys.windows import answer_context, reachable


class Judge:
    """Validates a model again and again; what counts say of the contexts is looked up once."""

    def __init__(self, validation: ValidationSet, num_items: int, recipe: Recipe, *, mask_seen: bool) -> None:
        window, transitions = recipe.window, TransitionTable.fit(validation.train, num_items)
        contexts = [reachable(context, window) for context in validation.contexts]
        self._windows = [answer_context(context, window) for context in validation.contexts]
        self._known = [evidence(context, transitions) for context in contexts]
        self._exclude = [np.unique(context) for context in validation.contexts] if mask_seen else None
        self._targets, self._pruned = validation.targets, validation.pruned
        num_recent_V = validation.num_recent(num_items)
        self._num_recent_V = num_recent_V if recipe.training.trend else np.zeros_like(num_recent_V)
        self.fusion = Fusion()
        """The weights of the last look; all zero before the first."""

    def ndcg_at_10(self, model: SequenceModel) -> float:
        """Mean of NDCG@10 against all later events and against the next one, over the full catalogue.

        With the best weights of fusion, which `fusion` then holds.
        """
        self.fusion, ndcg = fusion.fit(fusion.candidates_of(self.judges(model)), self.fusion)
        return ndcg

    def settled(self, model: SequenceModel) -> tuple[Fusion, float]:
        """What a model is served with: weights that hold for other users, too, and the temperature of its scores.

        Both are explained in `recsys/training/fusion.py`.
        """
        judges = self.judges(model)
        weights = fusion.bagged(fusion.candidates_of(judges))
        return weights, fusion.temperature(judges, weights)

    def judges(self, model: SequenceModel) -> fusion.Judges:
        """The validation users as this model sees them."""
        vectors_UD = encode(model.eval(), self._windows)
        with torch.no_grad():
            index = ItemIndex.build(model.items_VD.cpu().numpy())
        return fusion.Judges(
            vectors_UD, index, self._known, self._targets, self._exclude, self._num_recent_V, self._pruned
        )
