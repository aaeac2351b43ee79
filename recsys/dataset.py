"""What training, optimization and evaluation read of a features artifact: one protocol, one view.

Protocols, defined once:

time      cut at T, the 0.9 quantile of timestamps. Everything fitted sees only events before T. Targets
          are all events of a user after T; seen items are not masked, since shops repeat.
last-out  a user's last event is the test target, the one before it the validation target. Seen items
          are masked, and no item is pruned beyond what the file has.
final     everything is fitted, nothing is held out: the release that goes live.
"""

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys import trend
from recsys.contracts import artifact
from recsys.contracts.errors import ArtifactError, DataError, ReplacedError
from recsys.contracts.events import DEFAULT_EVENT_TYPE
from recsys.contracts.ids import PAD, Item, Tokens, Vocabulary
from recsys.contracts.protocol import Protocol
from recsys.contracts.pruning import DAY_MS, PruningPolicy
from recsys.event_table import EventTable, is_wanted, negative_types, read_events
from recsys.histories import ITEMS_FILE

MIN_VALIDATION_EVENTS = 3
"""A user gives their last event to validation only if two are left to predict it from."""
NEW_DAYS = 30
"""An item that is older than this and not kept is rare, not new."""
_DESCRIPTIONS = ("title", "category", "price")
LEAST_LAST_OUT_USERS = 2_000
"""Looked at in validation, where there are as many: fewer differ too much from others, and more take long to encode."""
VALIDATION_QUANTILE = 0.9
"""Under a time cut, validation is the same cut once more, within the fitted events."""


@dataclass(frozen=True, slots=True)
class Histories:
    """Kept histories of many users, flat: user u owns events [offsets[u], offsets[u + 1])."""

    user_ids: list[str]
    offsets: npt.NDArray[np.int64]
    tokens: Tokens
    timestamps_ms: npt.NDArray[np.int64]
    event_types: npt.NDArray[np.uint8] | None = None
    """Code of each event's type, its position in the artifact's `event_types`."""
    negative_types: tuple[int, ...] = ()
    """Codes of the types that say what a user does not want, such as returns: read, and never to be predicted."""

    def __len__(self) -> int:
        return len(self.user_ids)

    def __getitem__(self, user: int) -> Tokens:
        return self.tokens[self.offsets[user] : self.offsets[user + 1]]

    def __iter__(self) -> Iterator[Tokens]:
        return (self[user] for user in range(len(self)))

    def without(self, events: npt.NDArray[np.int64]) -> "Histories":
        """The same users without the events at these flat positions."""
        keep = np.ones(len(self.tokens), dtype=bool)
        keep[events] = False
        kept_before = np.concatenate([[0], np.cumsum(keep)])
        types = None if self.event_types is None else self.event_types[keep]
        return replace(
            self,
            offsets=kept_before[self.offsets],
            tokens=self.tokens[keep],
            timestamps_ms=self.timestamps_ms[keep],
            event_types=types,
        )

    @property
    def targets(self) -> Tokens:
        """What each event is as one to be predicted: its token, PAD where it is negative."""
        if self.event_types is None or not self.negative_types:
            return self.tokens
        is_negative = np.isin(self.event_types, self.negative_types)
        return np.where(is_negative, PAD, self.tokens).astype(self.tokens.dtype)

    def counts(self, chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """Events of each user where `chosen` (one entry an event) is true, shape [U]."""
        return np.diff(np.concatenate([[0], np.cumsum(chosen)])[self.offsets])

    def both_sides(self, later: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Users with an event where `later` (one entry an event) is true and one where it is false, shape [U]."""
        num_later = self.counts(later)
        return (num_later > 0) & (num_later < self.lengths)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Events per user, shape [U]."""
        return np.diff(self.offsets)


@dataclass(frozen=True, slots=True)
class ValidationSet:
    """A split of the fitted events that repeats the protocol's own: what choices are made on."""

    train: Histories
    contexts: list[Tokens]
    targets: list[Tokens]
    """Per context the events after it, at least one; a negative number for an item in `pruned`, which no list holds."""
    user_ids: list[str] = field(default_factory=list)
    """Whose contexts they are; empty where nobody knows."""
    from_ms: int | None = None
    """`train` holds all fitted events before this moment and none after it; None where users lose their last event."""
    pruned: Tokens = field(default_factory=lambda: np.empty(0, dtype=np.int32))
    """Kept items that the events of `train` alone would not have kept, in order: they are trained on and read, and
    have no place in lists. An item with few events in `train` was kept for those held out, so lists with such items
    would teach every choice that what is rare comes next."""

    def num_recent(self, num_items: int) -> npt.NDArray[np.int64]:
        """Events that are to be predicted on each item in the last days of `train` (see `recsys/trend.py`)."""
        return trend.num_recent(self.train.targets, self.train.timestamps_ms, self.from_ms, num_items)


@dataclass(frozen=True, slots=True)
class TestSet:
    """Users to be evaluated: what is known of each at the cut, and what came after it.

    A target is a token, or a negative number for an item outside the vocabulary (one number per item):
    no ranking can hold it, so it counts as a miss.
    """

    __test__ = False  # not a pytest class

    contexts: Histories
    targets: list[npt.NDArray[np.int64]]
    """Per user the items of the events after the cut, in order, repeats kept."""
    num_cold_users: int
    """Users with events after the cut and no kept event before it; not in `contexts`."""
    target_times_ms: list[npt.NDArray[np.int64]] = field(default_factory=list)
    """When each target happened, parallel to `targets`."""
    target_types: list[npt.NDArray[np.int64]] = field(default_factory=list)
    """Code of each target's event type, parallel to `targets`."""
    cold_targets: list[npt.NDArray[np.int64]] = field(default_factory=list)
    """Targets of the cold users, in the order of their ids."""
    cold_user_ids: list[str] = field(default_factory=list)
    """The cold users, parallel to `cold_targets`."""


@dataclass(frozen=True)
class Dataset:
    """A features artifact seen under one protocol."""

    manifest: artifact.Manifest
    protocol: Protocol
    vocabulary: Vocabulary
    fit: Histories
    """Events that may be fitted."""
    split_ms: int | None
    """T in milliseconds, None without a time split."""
    _events: EventTable
    _items: pl.DataFrame
    _token_of_index: Tokens
    _least: int
    """Least score of an item that is kept."""

    @property
    def fit_end_ms(self) -> int | None:
        """No fitted event is at this moment or later; None where the log has no times."""
        if self.split_ms is None or not len(self.fit.tokens):
            return None
        return int(self.fit.timestamps_ms.max()) + 1

    @property
    def events_per_item(self) -> float:
        """Fitted events on a kept item, on average."""
        return len(self.fit.tokens) / max(1, self.vocabulary.num_kept)

    def share_with_more_than(self, num_events: int) -> float:
        """Share of the users with a fitted event who have more than so many."""
        lengths = self.fit.lengths
        return float((lengths > num_events).sum() / max(1, (lengths > 0).sum()))

    @property
    def first_ms(self) -> npt.NDArray[np.int64]:
        """Time of each item's first event by item_index, shape [V + 1]; 0 at PAD and where there is no event."""
        return np.concatenate([[0], self._items["first_ms"].fill_null(0).to_numpy()]).astype(np.int64)

    def validation(self, num_users: int, seed: int, *, everyone: bool = False) -> ValidationSet:
        """The protocol's split once more, within the fitted events; at most `num_users` are looked at.

        Under last-out the last fitted event of every user is held out (the protocol's validation target). A fifth of
        them are looked at, or 2,000; with `everyone`, as many as asked for. Otherwise everything after the 0.9 quantile
        of the fitted timestamps is held out; where that leaves no user with events on both sides, or the log has no
        times, the last event of the users looked at, a fifth at most. As in the test, targets are events of the types
        to be predicted, and the last event is the last of those, with what comes after it; and items are pruned by
        what is left. What the protocol's own cut prunes is in neither contexts nor targets.
        """
        generator = np.random.default_rng(seed)
        wanted = self._is_wanted()
        if self.protocol is not Protocol.LAST_OUT and self.split_ms is not None and len(self.fit.tokens):
            moment = np.quantile(self.fit.timestamps_ms, VALIDATION_QUANTILE)
            later = self.fit.timestamps_ms >= moment
            has_target = self.fit.both_sides(later) & (self.fit.counts(later & wanted) > 0)
            chosen = self._chosen(np.flatnonzero(has_target), num_users, generator)
            if len(chosen):
                return replace(self._split(later, wanted, chosen), from_ms=math.ceil(moment))
        user = np.repeat(np.arange(len(self.fit)), self.fit.lengths)
        last = self.fit.offsets[:-1].copy()
        last[user[wanted]] = np.flatnonzero(wanted)  # the last write of a user stands
        long_enough = np.flatnonzero(last - self.fit.offsets[:-1] >= MIN_VALIDATION_EVENTS - 1)
        all_are = self.protocol is Protocol.LAST_OUT
        most = max(LEAST_LAST_OUT_USERS if all_are else 1, len(long_enough) // (1 if all_are and everyone else 5))
        chosen = self._chosen(long_enough, min(num_users, most), generator)
        shortened = long_enough if all_are else chosen
        held_out = np.isin(user, shortened) & (np.arange(len(user)) >= last[user])
        return self._split(held_out, wanted, chosen)

    def _is_wanted(self) -> npt.NDArray[np.bool_]:
        """Of each fitted event, whether its type is to be predicted."""
        if self.fit.event_types is None:
            return np.ones(len(self.fit.tokens), dtype=bool)
        return is_wanted(self.manifest, self.fit.event_types)

    @staticmethod
    def _chosen(users: npt.NDArray[np.int64], num_users: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
        return np.sort(generator.permutation(users)[:num_users])

    def _split(
        self, held_out: npt.NDArray[np.bool_], wanted: npt.NDArray[np.bool_], users: npt.NDArray[np.int64]
    ) -> ValidationSet:
        """Histories without the events held out, which end them; the wanted ones among those are users' targets."""
        train = self.fit.without(np.flatnonzero(held_out))
        spans = [slice(self.fit.offsets[user], self.fit.offsets[user + 1]) for user in users]
        targets = [self.fit.tokens[span][held_out[span] & wanted[span]] for span in spans]
        pruned = self._pruned(train)
        sign_V = np.ones(len(self.vocabulary) + 1, dtype=np.int32)
        sign_V[pruned] = -1
        return ValidationSet(
            train,
            [train[user] for user in users],
            [tokens * sign_V[tokens] for tokens in targets],
            [self.fit.user_ids[user] for user in users],
            pruned=pruned,
        )

    def _pruned(self, train: Histories) -> Tokens:
        """Kept items whose score by these events is too low; none under last-out, which prunes none."""
        if self.protocol is Protocol.LAST_OUT or train.event_types is None:
            return np.empty(0, dtype=np.int32)
        end_ms = None if self.split_ms is None or not len(train.tokens) else int(train.timestamps_ms.max()) + 1
        scores = np.bincount(
            train.tokens,
            _weights(self.manifest, train.event_types, train.timestamps_ms, end_ms),
            minlength=self.vocabulary.num_kept + 1,
        )
        return (np.flatnonzero(scores[PAD + 1 :] < self._least) + 1).astype(np.int32)

    def new_items(self, moment_ms: int, until_ms: int | None = None) -> list[Item]:
        """Items not kept by the events before a moment, and first seen at most `NEW_DAYS` before it, or later.

        Those that are first seen at `until_ms` or later do not exist yet. `num_events` counts before the moment.
        """
        before = self._events.is_fit & (self._events.timestamps_ms < moment_ms)
        scores = _scores(self._events, before, self.manifest, moment_ms, self._items.height)
        kept = scores >= self._least
        first_ms = self._items["first_ms"].fill_null(moment_ms).to_numpy()
        is_new = ~kept[1:] & (first_ms >= moment_ms - NEW_DAYS * DAY_MS)
        if until_ms is not None:
            is_new &= first_ms < until_ms
        wanted = before & ~np.isin(self._events.event_types, self.fit.negative_types)
        item_index, times_ms = self._events.item_index[wanted], self._events.timestamps_ms[wanted]
        num_events = np.bincount(item_index, minlength=self._items.height + 1)
        num_recent = trend.num_recent(item_index, times_ms, moment_ms, self._items.height)
        return [replace(item, is_new=True) for item in _described(self._items, is_new, num_events, num_recent)]

    def items_after(self, user_ids: list[str], moment_ms: int) -> list[npt.NDArray[np.int64]]:
        """item_index of each user's fitted events from a moment on that are to be predicted, kept or not, in order."""
        events, number_of = self._events, {user_id: n for n, user_id in enumerate(self._events.user_ids)}
        wanted_types = is_wanted(self.manifest, events.event_types)
        after = events.is_fit & wanted_types & (events.timestamps_ms >= moment_ms)
        user, item_index = events.user[after], events.item_index[after]
        wanted = np.array([number_of[user_id] for user_id in user_ids], dtype=np.int64)
        starts, stops = np.searchsorted(user, wanted), np.searchsorted(user, wanted, side="right")
        return [item_index[start:stop] for start, stop in zip(starts, stops, strict=True)]

    def test_set(self, shown: Vocabulary | None = None) -> TestSet:
        """Contexts and targets of the protocol's test.

        `shown` is a vocabulary that goes on after this data set's: targets among its new items are tokens too.

        Raises:
            DataError: protocol `final` holds nothing out.
        """
        if self.protocol is Protocol.FINAL:
            raise DataError("a final release was fitted on all events, so nothing is held out to evaluate on")
        events = self._events
        kept = events.is_fit & (self._token_of_index[events.item_index] != PAD)
        is_known, has_future = events.users_with(kept), events.users_with(events.is_target)
        known, cold = is_known & has_future, has_future & ~is_known
        targets = events.is_target & known[events.user]
        target_tokens = self._target_tokens(events.item_index, shown)
        return TestSet(
            _histories(events, kept & known[events.user], self._token_of_index, self.fit.negative_types),
            events.by_user(target_tokens, targets),
            int(cold.sum()),
            target_times_ms=events.by_user(events.timestamps_ms, targets),
            target_types=events.by_user(events.event_types.astype(np.int64), targets),
            cold_targets=events.by_user(target_tokens, events.is_target & cold[events.user]),
            cold_user_ids=[events.user_ids[user] for user in np.flatnonzero(cold)],
        )

    def _target_tokens(self, item_index: npt.NDArray[np.int64], shown: Vocabulary | None) -> npt.NDArray[np.int64]:
        token_of_index = self._token_of_index.copy()
        for token, item in enumerate(() if shown is None else shown.items, start=1):
            if item.is_new:
                token_of_index[item.item_index] = token
        tokens = token_of_index[item_index].astype(np.int64)
        return np.where(tokens == PAD, -item_index, tokens)


def load(
    features: Path,
    protocol: Protocol,
    min_count: int | None = None,
    vocabulary: Vocabulary | None = None,
    split_ms: int | None = None,
) -> Dataset:
    """Open a features artifact and cut it by a protocol, at `split_ms` in place of the artifact's own T if given.

    `min_count` prunes items with a lower score (default: the artifact's own setting; see
    `PruningPolicy`). Under last-out nothing is pruned. A `vocabulary` of an older model is taken as it is,
    so that the model can read the histories of today. Where the nightly job publishes meanwhile, what it has
    published is read.

    Raises:
        ArtifactError: no sound features artifact at `features`, or the vocabulary is of another shop.
        DataError: the protocol needs times that the log does not have, or pruning leaves nothing.
    """
    while True:
        manifest = artifact.verify(features, "features")
        with suppress(ReplacedError), artifact.in_place(features, manifest):
            return _load(features, manifest, protocol, min_count, vocabulary, split_ms)


def _load(
    features: Path,
    manifest: artifact.Manifest,
    protocol: Protocol,
    min_count: int | None,
    vocabulary: Vocabulary | None,
    split_ms: int | None,
) -> Dataset:
    split_ms = _split_ms(manifest) if split_ms is None else split_ms
    if protocol is Protocol.TIME and split_ms is None:
        raise DataError(
            f"{features}: the log has no timestamps, so it cannot be cut at a time; use --protocol last-out"
        )
    items = pl.read_parquet(features / ITEMS_FILE, glob=False).sort("item_index")
    if protocol is not Protocol.FINAL:
        items = _as_first_described(items, split_ms if protocol is Protocol.TIME else None)
    events = read_events(features, manifest, protocol, split_ms, items.height)
    negative = negative_types(manifest)
    is_positive = events.is_fit & ~np.isin(events.event_types, negative)
    num_events = np.bincount(events.item_index[is_positive], minlength=items.height + 1)
    end_ms = split_ms if protocol is Protocol.TIME else manifest.metrics.get("last_ms")
    scores = _scores(events, events.is_fit, manifest, end_ms, items.height)
    least = PruningPolicy.of(manifest.config).least(scores) if min_count is None else min_count
    if protocol is Protocol.LAST_OUT:
        scores, least = np.concatenate([[0.0], items["num_events"].to_numpy()]), 1
    if vocabulary is None:
        kept = _kept(features, events, protocol, scores, least)
        num_recent = _num_recent(events, is_positive, protocol, split_ms, items.height)
        vocabulary = Vocabulary(_described(items, kept[1:], num_events, num_recent))
    token_of_index = _token_of_index(features, vocabulary, items)
    fit = _histories(events, events.is_fit, token_of_index, negative)
    return Dataset(manifest, protocol, vocabulary, fit, split_ms, events, items, token_of_index, least)


def _as_first_described(items: pl.DataFrame, split_ms: int | None) -> pl.DataFrame:
    """The items as the shop first described them: nothing in this is from after the cut, but items first seen then.

    What a known item is first called after the cut is left out. Tables of before know the last description alone.
    """
    names = [name for name in _DESCRIPTIONS if f"first_{name}" in items.columns]
    if split_ms is None:
        return items.with_columns(pl.col(f"first_{name}").alias(name) for name in names)
    of_new = pl.col("first_ms").is_null() | (pl.col("first_ms") >= split_ms)
    return items.with_columns(
        pl.when(of_new | pl.col(f"first_{name}_ms").is_null() | (pl.col(f"first_{name}_ms") < split_ms))
        .then(pl.col(f"first_{name}"))
        .alias(name)
        for name in names
    )


def _kept(
    features: Path,
    events: EventTable,
    protocol: Protocol,
    scores: npt.NDArray[np.float64],
    least: int,
) -> npt.NDArray[np.bool_]:
    """Whether each item is kept, shape [V + 1], PAD never."""
    if protocol is Protocol.TIME and not events.is_fit.any():
        raise DataError(f"{features}: no event is before the cut, so nothing can be fitted; use --protocol last-out")
    kept = scores >= least
    kept[PAD] = False
    if not kept.any():
        raise DataError(f"{features}: no item has {least} events or more to be fitted on; lower min_count")
    return kept


def _scores(
    events: EventTable,
    counted: npt.NDArray[np.bool_],
    manifest: artifact.Manifest,
    end_ms: int | None,
    num_items: int,
) -> npt.NDArray[np.float64]:
    """The policy's score of each item over the events that count, which end at `end_ms`; shape [V + 1]."""
    weights = _weights(manifest, events.event_types[counted], events.timestamps_ms[counted], end_ms)
    return np.bincount(events.item_index[counted], weights, minlength=num_items + 1).astype(np.float64, copy=False)


def _weights(
    manifest: artifact.Manifest,
    event_types: npt.NDArray[np.uint8],
    timestamps_ms: npt.NDArray[np.int64],
    end_ms: int | None,
) -> npt.NDArray[np.float64]:
    """What each of some events, all before `end_ms`, adds to its item's score by the policy, parallel."""
    policy = PruningPolicy.of(manifest.config)
    weights = policy.type_scores(manifest.metrics.get("event_types", [DEFAULT_EVENT_TYPE]))[event_types]
    since_ms = None if end_ms is None else policy.since_ms(int(end_ms))
    return weights if since_ms is None else np.where(timestamps_ms >= since_ms, weights, 0.0)


def _token_of_index(features: Path, vocabulary: Vocabulary, items: pl.DataFrame) -> Tokens:
    """Token by item_index; every kept item of the vocabulary must have kept its number. New ones are in no history."""
    token_of_index = np.full(items.height + 1, PAD, dtype=np.int32)
    item_ids = items["item_id"]
    for token, item in enumerate(vocabulary.items[: vocabulary.num_kept], start=1):
        if item.item_index > items.height or item_ids[item.item_index - 1] != item.item_id:
            raise ArtifactError(
                f"{features}: item {item.item_index} is not {item.item_id!r} as in the vocabulary given; "
                "use features with the same numbering, or train again"
            )
        token_of_index[item.item_index] = token
    return token_of_index


def _split_ms(manifest: artifact.Manifest) -> int | None:
    split = manifest.metrics.get("split_ms")
    return None if split is None else int(split)


def _num_recent(
    events: EventTable, counted: npt.NDArray[np.bool_], protocol: Protocol, split_ms: int | None, num_items: int
) -> npt.NDArray[np.int64]:
    """Events of the last fitted days by item_index; none where users' histories end at different times, or at none."""
    end_ms = None if protocol is Protocol.LAST_OUT else split_ms
    if protocol is Protocol.FINAL and split_ms is not None:
        end_ms = trend.end_of(events.timestamps_ms[counted])
    return trend.num_recent(events.item_index[counted], events.timestamps_ms[counted], end_ms, num_items)


def _described(
    items: pl.DataFrame,
    chosen: npt.NDArray[np.bool_],
    num_events: npt.NDArray[np.int64],
    num_recent: npt.NDArray[np.int64],
) -> list[Item]:
    """The chosen rows of the table of items, with these counts by item_index."""
    rows: list[dict[str, Any]] = items.filter(pl.Series(chosen)).to_dicts()
    return [
        Item(
            item_id=row["item_id"],
            item_index=row["item_index"],
            num_events=int(num_events[row["item_index"]]),
            num_recent=int(num_recent[row["item_index"]]),
            title=row["title"],
            category=row["category"],
            price=row["price"],
        )
        for row in rows
    ]


def _histories(
    events: EventTable, chosen: npt.NDArray[np.bool_], token_of_index: Tokens, negative: tuple[int, ...]
) -> Histories:
    """Histories of the users that have a kept event among the chosen ones."""
    kept = np.flatnonzero(chosen)
    tokens = token_of_index[events.item_index[kept]]
    kept, tokens = kept[tokens != PAD], tokens[tokens != PAD]
    lengths = np.bincount(events.user[kept], minlength=len(events.user_ids))
    present = np.flatnonzero(lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths[present])]).astype(np.int64)
    user_ids = [events.user_ids[user] for user in present]
    return Histories(user_ids, offsets, tokens, events.timestamps_ms[kept], events.event_types[kept], negative)
