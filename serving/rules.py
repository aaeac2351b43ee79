"""What the shop says about items: which may be shown, which come first. Shared by all workers through the store."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field

from recsys.contracts.config import Config
from recsys.contracts.ids import PAD, Floats, Tokens, Vocabulary
from recsys.runtime.filters import ItemFilters, ItemId

Mask = npt.NDArray[np.bool_]
RULES_DOCUMENT: Final = "rules"


class Filters(ItemFilters):
    """Which items may be shown; all conditions must hold. An item without the field does not match."""

    available: bool = True
    """Leave out items that are out of stock."""


_NO_FILTERS: Final = Filters()
_NOTHING: Final = np.empty(0, dtype=np.int32)


class Pin(Config):
    """An item at a fixed place of every list of recommendations that it may be in, whoever ranked the list."""

    item_id: ItemId
    position: int = Field(ge=1, le=100)


class Boost(Config):
    """Added to the log-odds of an item, or of every item of a category: 0.7 doubles the odds, whatever the release.

    It holds where there are odds: in the model's lists and among popular items, whose odds are their numbers of
    events of late. Items near the last event, and those popular in a context, are in their own order.
    """

    item_id: ItemId | None = None
    category: ItemId | None = None
    weight: float = Field(ge=-100, le=100)


class Rules(Config):
    """The whole rule book. It holds from the next request on."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "unavailable": ["22423"],
                    "denied": ["POSTAGE"],
                    "pins": [{"item_id": "85123A", "position": 1}],
                    "boosts": [{"category": "lamps", "weight": 0.7}],
                }
            ]
        }
    )

    unavailable: list[ItemId] = Field(default=[], max_length=1_000_000)
    """Out of stock."""
    denied: list[ItemId] = Field(default=[], max_length=100_000)
    """Never shown, whatever the request says."""
    pins: list[Pin] = Field(default=[], max_length=100)
    boosts: list[Boost] = Field(default=[], max_length=1_000)


class KeptRules(Rules):
    """The rule book as it was kept."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"pins": [{"item_id": "85123", "position": 1}], "unknown_items": ["85123"]}]}
    )
    unknown_items: list[ItemId]
    """Items of pins and boosts that no loaded release knows: these rules do nothing until one does."""

    @classmethod
    def of(cls, rules: Rules, vocabularies: Iterable[Vocabulary]) -> "KeptRules":
        """What is unknown to all of the vocabularies is named."""
        named = {pin.item_id for pin in rules.pins} | {boost.item_id for boost in rules.boosts if boost.item_id}
        unknown = sorted(named)
        for vocabulary in vocabularies:
            found = zip(unknown, vocabulary.tokens(unknown), strict=True)
            unknown = [item_id for item_id, token in found if token == PAD]
        return cls(**rules.model_dump(), unknown_items=unknown)


@dataclass(frozen=True, slots=True)
class CompiledRules:
    """Rules in a release's tokens; arrays over tokens have V + 1 entries, entry PAD = False."""

    available: Mask
    allowed: Mask
    shown: Mask
    """Both: what requests without filters of their own may be shown. Not to be written to."""
    pins: tuple[tuple[int, int], ...]
    """(position from 1, token), ascending."""
    boosted: Tokens
    weights: Floats
    """Of the boosted tokens, never 0."""
    popular: Tokens
    """All tokens, most events of late first, boosts counted."""
    popular_in: dict[int, Tokens] = field(default_factory=dict, compare=False)
    """The same by category, as far as somebody has asked; see `Catalogue.popular_like`."""


class Places(Protocol):
    """Which tokens may be shown: a mask, or what reads like one."""

    def __getitem__(self, token: int, /) -> Any:
        """Whether this one may."""
        ...


def with_pins(
    tokens: Tokens, scores: Floats, k: int, rules: CompiledRules, allowed: Places, score: Callable[[Tokens], Floats]
) -> tuple[Tokens, Floats]:
    """The first k of a list with pinned items that may be shown at their places; `score` says it of those added."""
    places = {token: position for position, token in reversed(rules.pins) if allowed[token] and position <= k}
    if not places:
        return tokens[:k], scores[:k]
    score_of = dict(zip(tokens.tolist(), scores.tolist(), strict=True))
    added = np.array(sorted(places.keys() - score_of.keys()), dtype=np.int32)
    if len(added):
        score_of.update(zip(added.tolist(), score(added).tolist(), strict=True))
    listed = [token for token in tokens.tolist() if token not in places]
    for token, position in sorted(places.items(), key=lambda place: place[1]):
        listed.insert(position - 1, token)
    listed = listed[:k]
    return np.array(listed, dtype=np.int32), np.array([score_of[token] for token in listed], dtype=np.float32)


class Catalogue:
    """Fields of a release's items as arrays over tokens."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._popular = vocabulary.popular()
        names = sorted({item.category for item in vocabulary.items if item.category is not None})
        self._code_of = {name: code for code, name in enumerate(names)}
        codes = [-1, *(-1 if i.category is None else self._code_of[i.category] for i in vocabulary.items)]
        self._categories = np.array(codes, dtype=np.int32)
        self._prices = np.array([np.nan, *(np.nan if i.price is None else i.price for i in vocabulary.items)])

    def matching(self, filters: Filters, rules: CompiledRules) -> Mask:
        """Tokens that the filters and the rules allow. Not to be written to: it may be the rules' own."""
        if not filters.model_fields_set or filters == _NO_FILTERS:
            return rules.shown
        mask = rules.shown.copy() if filters.available else rules.allowed.copy()
        if filters.category is not None:
            mask &= np.isin(self._categories, [self._code_of.get(name, -2) for name in filters.category])
        if filters.min_price is not None:
            mask &= self._prices >= filters.min_price  # nan compares as False
        if filters.max_price is not None:
            mask &= self._prices <= filters.max_price
        return mask

    def popular_like(self, token: int, rules: CompiledRules) -> Tokens:
        """Items of the token's category, the most popular first; nothing where it has none. Kept with the rules."""
        code = int(self._categories[token])
        if code < 0:
            return _NOTHING
        known = rules.popular_in.get(code)
        if known is None:
            known = rules.popular_in[code] = rules.popular[self._categories[rules.popular] == code]
        return known

    def compile(self, rules: Rules) -> CompiledRules:
        """The rules in tokens; items outside the vocabulary are passed over."""
        available, allowed = self._everything(), self._everything()
        available[self._vocabulary.tokens(rules.unavailable)] = False
        allowed[self._vocabulary.tokens(rules.denied)] = False
        pins = [(pin.position, int(self._vocabulary.tokens([pin.item_id])[0])) for pin in rules.pins]
        weights = np.zeros(len(self._categories), dtype=np.float32)
        for boost in rules.boosts:
            if boost.category is not None:
                weights[self._categories == self._code_of.get(boost.category, -2)] += boost.weight
            if boost.item_id is not None:
                weights[self._vocabulary.tokens([boost.item_id])] += boost.weight
        weights[PAD] = 0
        boosted = np.flatnonzero(weights).astype(np.int32)
        shown = available & allowed
        shown.setflags(write=False)
        known_pins = tuple(sorted(pin for pin in pins if pin[1] != PAD))
        popular = self._boosted_popular(weights) if len(boosted) else self._popular
        return CompiledRules(available, allowed, shown, known_pins, boosted, weights[boosted], popular)

    def _boosted_popular(self, weights: Floats) -> Tokens:
        log_odds = np.log(np.maximum(self._vocabulary.popularity, 0.5)) + weights
        order = np.argsort(-log_odds[self._popular], kind="stable")  # quick: all but the boosted are sorted already
        popular: Tokens = self._popular[order]
        return popular

    def _everything(self) -> Mask:
        mask = np.ones(len(self._categories), dtype=np.bool_)
        mask[PAD] = False
        return mask
