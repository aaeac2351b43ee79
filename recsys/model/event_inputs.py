"""Inputs beside the item: an event's type and the time since the event before, as vectors added to the item's.

Rivals of the plain input in `recsys benchmark choices`; `docs/model.md` has the figures. Both are fixed once an event
has happened, so a new event changes no state of an earlier one, and a session is continued as before. The time from
the last event to the *request* is no input: it differs between two requests with no event between them, so an answer
would have to be computed again for each of them, and training does not know when a user would have asked.
"""

# B batch, L window length, D width, F numbers of an event (token first), n events of all histories

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from recsys.contracts.ids import PAD
from recsys.dataset import Histories
from recsys.model.config import ModelConfig
from recsys.model.decoder import SequenceModel

Numbers = npt.NDArray[np.int32]

NO_GAP = 1
"""Gap number of a history's first event. Others are 2 + ⌊log2(1 + seconds)⌋."""
MOST_GAP = 30
"""2 + ⌊log2⌋ of about eight years; longer gaps count as that."""


def type_numbers(histories: Histories) -> Numbers:
    """1 + code of each event's type, shape [n]."""
    assert histories.event_types is not None, "these histories have no event types"
    return histories.event_types.astype(np.int32) + 1


def gap_numbers(histories: Histories) -> Numbers:
    """Steps of the logarithm of the time since the event before in the user's kept history, shape [n].

    Counted on whole histories, so that a window's first event has the gap that it has in the window before.
    """
    gap_ms = np.diff(histories.timestamps_ms, prepend=0).clip(min=0)
    steps = 2 + np.log2(1 + gap_ms / 1000).astype(np.int32)
    numbers = np.minimum(steps, MOST_GAP).astype(np.int32)
    numbers[histories.offsets[:-1][histories.lengths > 0]] = NO_GAP
    return numbers


class EventInputsModel(SequenceModel):
    """Reads rows of numbers, shape [B, L, F]: the token, then one number for each table of vectors, PAD for none."""

    def __init__(self, config: ModelConfig, num_items: int, max_length: int, highest: Sequence[int]) -> None:
        """`highest` is the highest number of each table. All of its vectors start at zero: as the plain input."""
        super().__init__(config, num_items, max_length)
        self.beside = nn.ModuleList(nn.Embedding(1 + number, config.width, padding_idx=PAD) for number in highest)
        for table in self.beside:
            nn.init.zeros_(table.weight)  # type: ignore[arg-type]

    def embed(self, tokens_BL: Tensor) -> Tensor:
        """The item's vector and those of the event's other numbers, added up, shape [B, L, D]."""
        token_BL, *others_BL = tokens_BL.unbind(dim=2)
        parts = [self.embedding(token_BL)]
        parts += [table(number_BL) for table, number_BL in zip(self.beside, others_BL, strict=True)]
        return torch.stack(parts).sum(dim=0)
