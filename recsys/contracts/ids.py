"""Item identity, in three names.

item_id     the shop's string.
item_index  our stable integer in the features artifact, 1 …; never reused.
token       a release's compact integer for a kept item, 1 … V; row of the embedding table. PAD = 0.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import repeat
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson

from recsys.contracts import packing
from recsys.contracts.errors import ArtifactError

PAD = 0
Tokens = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One kept item of a release."""

    item_id: str
    item_index: int
    num_events: int
    """Events on the item among those the release was fitted on."""
    num_recent: int = 0
    """Those of the last days among them (see `recsys/trend.py`)."""
    title: str | None = None
    category: str | None = None
    price: float | None = None
    is_new: bool = False
    """Not kept, too new for that: it can be recommended by what the catalogue says of it, and is in no history."""


class Vocabulary:
    """The kept items of a release, in order of item_index, then its new ones; that at position i has token i + 1."""

    FILE_NAME = "items.jsonl"

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = tuple(items)
        self.num_kept = sum(not item.is_new for item in self.items)
        """Tokens 1 … num_kept are those that histories are made of."""
        assert not any(item.is_new for item in self.items[: self.num_kept]), "new items come last"
        if len(self._token_of) != len(self.items):
            raise ArtifactError("vocabulary repeats an item_id; build the features again")

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def _token_of(self) -> dict[str | None, int]:
        return {item.item_id: token for token, item in enumerate(self.items, start=1)}

    @cached_property
    def num_events(self) -> npt.NDArray[np.int64]:
        """Events per token, shape [V + 1]; entry PAD is 0."""
        return np.array([0, *(item.num_events for item in self.items)], dtype=np.int64)

    @cached_property
    def num_recent(self) -> npt.NDArray[np.int64]:
        """Events of the last days per token, shape [V + 1]; entry PAD is 0."""
        return np.array([0, *(item.num_recent for item in self.items)], dtype=np.int64)

    def tokens(self, item_ids: Iterable[str | None]) -> Tokens:
        """One token per item_id, PAD where there is none, or the item is unknown or pruned."""
        return np.fromiter(map(self._token_of.get, item_ids, repeat(PAD)), dtype=np.int32)

    def history(self, item_ids: Iterable[str]) -> Tokens:
        """The kept items among these as tokens, in order: what a model is shown of a history."""
        tokens = self.tokens(item_ids)
        kept: Tokens = tokens[(tokens != PAD) & (tokens <= self.num_kept)]
        return kept

    def item(self, token: int) -> Item:
        """The item of a token in 1 … V."""
        assert 1 <= token <= len(self.items), token
        return self.items[token - 1]

    @cached_property
    def popularity(self) -> npt.NDArray[np.int64]:
        """What is counted of each token, shape [V + 1]: events of the last days, or all where none has a date."""
        return self.num_recent if self.num_recent.any() else self.num_events

    def popular(self) -> Tokens:
        """All tokens, most popular first, ties by all their events, then by token."""
        order = np.lexsort((-self.num_events[1:], -self.popularity[1:])) + 1
        return order.astype(np.int32)

    def save(self, folder: Path, *, packed: bool = False) -> None:
        """Write `items.jsonl`, one item a line, in token order."""
        lines = [json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in self.items]
        packing.write(folder / self.FILE_NAME, "".join(lines).encode(), packed)

    @classmethod
    def load(cls, folder: Path) -> "Vocabulary":
        """Read what `save` wrote."""
        content = packing.read(folder / cls.FILE_NAME)
        return cls([Item(**orjson.loads(line)) for line in content.splitlines()])
