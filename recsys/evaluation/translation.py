"""A ranker of another vocabulary, such as last night's release, asked and heard in the tokens of this one."""

# B histories of a batch, k length of a list, V items of a vocabulary (a V axis has V + 1 entries, entry 0 = PAD)

from collections.abc import Sequence

import numpy as np

from recsys.contracts.errors import ArtifactError
from recsys.contracts.ids import PAD, Tokens, Vocabulary
from recsys.evaluation.baselines import Ranker

_NOTHING: Tokens = np.empty(0, dtype=np.int32)


class Translated:
    """Items are the same where their item_id is.

    Events on items that the ranker does not know are left out of what it is shown; of a user without any other event
    it knows nothing, and says what it has for such. Items that only it knows are left out of its lists, and the next
    ones move up: it is judged on the catalogue of today.

    Raises:
        ArtifactError: the two have no item in common.
    """

    def __init__(self, ranker: Ranker, theirs: Vocabulary, ours: Vocabulary) -> None:
        self.name = ranker.name
        self._ranker = ranker
        self._theirs_V = np.concatenate([[PAD], theirs.tokens(item.item_id for item in ours.items)])
        self._num_kept = theirs.num_kept
        self._ours_V = np.concatenate([[PAD], ours.tokens(item.item_id for item in theirs.items)])
        self._num_foreign = int((self._ours_V[1:] == PAD).sum())
        if self._num_foreign == len(theirs):
            raise ArtifactError(f"none of its {len(theirs):,} items is in these features; compare releases of one shop")

    def rank(self, histories: Sequence[Tokens], k: int, exclude: Sequence[Tokens] | None = None) -> Tokens:
        """See `Ranker.rank`."""
        known = [tokens[tokens <= self._num_kept] for tokens in map(self._known, histories)]
        hidden = [self._known(row) for row in exclude] if exclude is not None else [_NOTHING] * len(known)
        ranked = np.full((len(histories), k), PAD, dtype=np.int32)
        for row, answer in zip(ranked, self._ranker.rank(known, k + self._num_foreign, hidden), strict=True):
            ours = self._ours_V[answer]
            ours = ours[ours != PAD][:k]
            row[: len(ours)] = ours
        return ranked

    def _known(self, tokens: Tokens) -> Tokens:
        """Our tokens as theirs, unknown ones left out."""
        found = self._theirs_V[tokens]
        known: Tokens = found[found != PAD]
        return known
