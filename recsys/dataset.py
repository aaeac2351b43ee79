"""What training, optimization and evaluation read of a features artifact: one protocol, one view.

Protocols, defined once:

time      cut at T, the 0.9 quantile of timestamps. Everything fitted sees only events before T. Targets
          are all events of a user after T; seen items are not masked, since shops repeat.
last-out  a user's last event is the test target, the one before it the validation target. Seen items
          are masked, and no item is pruned beyond what the file has.
final     everything is fitted, nothing is held out: the release that goes live.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.contracts import artifact
from recsys.contracts.errors import DataError
from recsys.contracts.ids import PAD, Item, Tokens, Vocabulary

ITEMS_FILE = "items.parquet"
HISTORIES_FOLDER = "histories"
MIN_VALIDATION_EVENTS = 3
"""A user gives their last event to validation only if two are left to predict it from."""
VALIDATION_QUANTILE = 0.9
"""Under a time cut, validation is the same cut once more, within the fitted events."""


class Protocol(StrEnum):
    """Which events may be fitted and which are targets."""

    TIME = "time"
    LAST_OUT = "last-out"
    FINAL = "final"

    @property
    def masks_seen(self) -> bool:
        """Whether items of the history are left out of the ranking."""
        return self is Protocol.LAST_OUT


@dataclass(frozen=True, slots=True)
class Histories:
    """Kept histories of many users, flat: user u owns events [offsets[u], offsets[u + 1])."""

    user_ids: list[str]
    offsets: npt.NDArray[np.int64]
    tokens: Tokens
    timestamps_ms: npt.NDArray[np.int64]

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
        return Histories(self.user_ids, kept_before[self.offsets], self.tokens[keep], self.timestamps_ms[keep])

    def both_sides(self, later: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Users with an event where `later` (one entry an event) is true and one where it is false, shape [U]."""
        num_later = np.diff(np.concatenate([[0], np.cumsum(later)])[self.offsets])
        both: npt.NDArray[np.bool_] = (num_later > 0) & (num_later < self.lengths)
        return both

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
    """Per context the events after it, at least one."""


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
    """Targets of the cold users, in the order of their ids within a file."""


@dataclass(frozen=True)
class Dataset:
    """A features artifact seen under one protocol."""

    manifest: artifact.Manifest
    protocol: Protocol
    vocabulary: Vocabulary
    fit: Histories
    """Events that may be fitted."""
    _frames: list[pl.DataFrame]
    _token_of_index: Tokens

    @property
    def split_ms(self) -> int | None:
        """T in milliseconds, None without a time split."""
        return _split_ms(self.manifest)

    def validation(self, num_users: int, seed: int) -> ValidationSet:
        """The protocol's split once more, within the fitted events; at most `num_users` are looked at.

        Under last-out the last fitted event of every user is held out (the protocol's validation target). Otherwise
        everything after the 0.9 quantile of the fitted timestamps is; where that leaves no user with events on
        both sides, or the log has no times, the last event of the users looked at.
        """
        generator = np.random.default_rng(seed)
        if self.protocol is not Protocol.LAST_OUT and self.split_ms is not None and len(self.fit.tokens):
            moment = np.quantile(self.fit.timestamps_ms, VALIDATION_QUANTILE)
            later = self.fit.timestamps_ms >= moment
            chosen = self._chosen(np.flatnonzero(self.fit.both_sides(later)), num_users, generator)
            if len(chosen):
                return self._split(np.flatnonzero(later), chosen)
        long_enough = np.flatnonzero(self.fit.lengths >= MIN_VALIDATION_EVENTS)
        chosen = self._chosen(long_enough, min(num_users, max(1, len(long_enough) // 5)), generator)
        shortened = long_enough if self.protocol is Protocol.LAST_OUT else chosen
        return self._split(self.fit.offsets[1:][shortened] - 1, chosen)

    @staticmethod
    def _chosen(users: npt.NDArray[np.int64], num_users: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
        return np.sort(generator.permutation(users)[:num_users])

    def _split(self, held_out: npt.NDArray[np.int64], users: npt.NDArray[np.int64]) -> ValidationSet:
        """Histories without the events at these flat positions, which end each history; targets of these users."""
        train = self.fit.without(held_out)
        contexts = [train[user] for user in users]
        targets = [self.fit[user][len(context) :] for user, context in zip(users, contexts, strict=True)]
        return ValidationSet(train, contexts, targets)

    def test_set(self) -> TestSet:
        """Contexts and targets of the protocol's test.

        Raises:
            DataError: protocol `final` holds nothing out.
        """
        if self.protocol is Protocol.FINAL:
            raise DataError("a final release was fitted on all events, so nothing is held out to evaluate on")
        context_frames: list[pl.DataFrame] = []
        known_frames: list[pl.DataFrame] = []
        cold_frames: list[pl.DataFrame] = []
        for frame in self._frames:
            is_before = _before_test(self.protocol, self.split_ms)
            after = frame.filter(~is_before).group_by("user_id", maintain_order=True)
            future = after.agg("item_index", "timestamp_ms", "event_type")
            before = self._kept(frame.filter(is_before))
            known = future.join(before.select("user_id").unique(), on="user_id", how="semi").sort("user_id")
            context_frames.append(before.join(known.select("user_id"), on="user_id", how="semi"))
            known_frames.append(known)
            cold_frames.append(future.join(known, on="user_id", how="anti").sort("user_id"))
        known, cold = pl.concat(known_frames), pl.concat(cold_frames)
        return TestSet(
            _histories(context_frames),
            [self._target_tokens(row) for row in _lists(known, "item_index")],
            len(cold),
            target_times_ms=_lists(known, "timestamp_ms"),
            target_types=_lists(known, "event_type"),
            cold_targets=[self._target_tokens(row) for row in _lists(cold, "item_index")],
        )

    def _kept(self, frame: pl.DataFrame) -> pl.DataFrame:
        return _with_tokens(frame, self._token_of_index)

    def _target_tokens(self, item_index: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        token = self._token_of_index[item_index].astype(np.int64)
        return np.where(token == PAD, -item_index, token)


def load(features: Path, protocol: Protocol, min_count: int | None = None) -> Dataset:
    """Open a features artifact and cut it by a protocol.

    `min_count` prunes items with fewer fitted events (default: the artifact's own setting). Under
    last-out nothing is pruned.

    Raises:
        ArtifactError: no sound features artifact at `features`.
        DataError: the protocol needs times that the log does not have, or pruning leaves nothing.
    """
    manifest = artifact.verify(features, "features")
    if protocol is Protocol.TIME and _split_ms(manifest) is None:
        raise DataError(
            f"{features}: the log has no timestamps, so it cannot be cut at a time; use --protocol last-out"
        )
    items = pl.read_parquet(features / ITEMS_FILE).sort("item_index")
    frames = [_flat(path, items.height) for path in sorted((features / HISTORIES_FOLDER).glob("*.parquet"))]
    if min_count is None:
        min_count = int(manifest.config["min_count"])
    fit_frames = [frame.filter(_before_test(protocol, _split_ms(manifest))) for frame in frames]
    num_events = _count(fit_frames, items.height)
    kept = num_events >= (0 if protocol is Protocol.LAST_OUT else min_count)
    kept[PAD] = False
    if not kept.any():
        raise DataError(f"{features}: no item has {min_count} events or more to be fitted on; lower min_count")
    vocabulary = _vocabulary(items, num_events, kept)
    token_of_index = np.where(kept, np.cumsum(kept), PAD).astype(np.int32)
    fit = _histories([_with_tokens(frame, token_of_index) for frame in fit_frames])
    return Dataset(manifest, protocol, vocabulary, fit, frames, token_of_index)


def user_item_ids(features: Path, user_id: str) -> list[str] | None:
    """The whole unpruned history of one user as item_ids, or None if the artifact has no such user."""
    artifact.verify(features, "features")
    histories = pl.scan_parquet(features / HISTORIES_FOLDER / "*.parquet").filter(pl.col("user_id") == user_id)
    rows = histories.select("item_index").collect()
    if rows.is_empty():
        return None
    items = pl.read_parquet(features / ITEMS_FILE, columns=["item_index", "item_id"])
    events = rows.explode("item_index").join(items, on="item_index", how="left", maintain_order="left")
    return events["item_id"].to_list()


def _split_ms(manifest: artifact.Manifest) -> int | None:
    split = manifest.metrics.get("split_ms")
    return None if split is None else int(split)


def _flat(path: Path, num_items: int) -> pl.DataFrame:
    """One row an event, users in order, each user's events in order, with their distance to the end."""
    columns = ["user_id", "item_index", "timestamp_ms", "event_type"]
    frame = pl.read_parquet(path, columns=columns).sort("user_id").explode(columns[1:])
    if len(frame) and int(frame["item_index"].cast(pl.Int64).max() or 0) > num_items:  # type: ignore[arg-type]
        raise DataError(f"{path}: holds an item_index that {ITEMS_FILE} lacks; build the features again")
    position = pl.int_range(pl.len()).over("user_id")
    return frame.with_columns(left=pl.len().over("user_id") - 1 - position)


def _lists(frame: pl.DataFrame, column: str) -> list[npt.NDArray[np.int64]]:
    """A column of lists as arrays."""
    return [row.to_numpy().astype(np.int64) for row in frame[column]]


def _before_test(protocol: Protocol, split_ms: int | None) -> pl.Expr:
    if protocol is Protocol.TIME:
        return pl.col("timestamp_ms") < split_ms
    return (pl.col("left") >= 1) if protocol is Protocol.LAST_OUT else pl.lit(True)


def _count(frames: list[pl.DataFrame], num_items: int) -> npt.NDArray[np.int64]:
    total = np.zeros(num_items + 1, dtype=np.int64)
    for frame in frames:
        total += np.bincount(frame["item_index"].to_numpy(), minlength=num_items + 1)
    return total


def _vocabulary(items: pl.DataFrame, num_events: npt.NDArray[np.int64], kept: npt.NDArray[np.bool_]) -> Vocabulary:
    rows: list[dict[str, Any]] = items.filter(pl.Series(kept[1:])).to_dicts()
    return Vocabulary(
        [
            Item(
                item_id=row["item_id"],
                item_index=row["item_index"],
                num_events=int(num_events[row["item_index"]]),
                title=row["title"],
                category=row["category"],
                price=row["price"],
            )
            for row in rows
        ]
    )


def _with_tokens(frame: pl.DataFrame, token_of_index: Tokens) -> pl.DataFrame:
    tokens = pl.Series("token", token_of_index[frame["item_index"].to_numpy()])
    return frame.with_columns(tokens).filter(pl.col("token") != PAD)


def _histories(frames: list[pl.DataFrame]) -> Histories:
    """Histories of the users that have a kept event, users in order within each frame."""
    frame = pl.concat([frame.select("user_id", "token", "timestamp_ms") for frame in frames])
    runs = frame.group_by("user_id", maintain_order=True).len()
    offsets = np.concatenate([[0], np.cumsum(runs["len"].to_numpy())]).astype(np.int64)
    return Histories(
        runs["user_id"].to_list(),
        offsets,
        frame["token"].to_numpy().astype(np.int32),
        frame["timestamp_ms"].to_numpy().astype(np.int64),
    )
