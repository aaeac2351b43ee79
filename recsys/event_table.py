"""All events of a features artifact, flat, and what a protocol says of each: fitted, held out, or neither."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.contracts import artifact
from recsys.contracts.errors import DataError
from recsys.contracts.events import DEFAULT_EVENT_TYPE, NEGATIVE_TYPES
from recsys.contracts.protocol import Protocol
from recsys.histories import ITEMS_FILE, USERS_FILE, bucket_of_user, generations, ranks, read_partition


@dataclass(frozen=True, slots=True)
class EventTable:
    """All events, flat, users in order of user_id, each user's events in order."""

    user_ids: list[str]
    user: npt.NDArray[np.int64]
    item_index: npt.NDArray[np.int64]
    timestamps_ms: npt.NDArray[np.int64]
    event_types: npt.NDArray[np.uint8]
    is_fit: npt.NDArray[np.bool_]
    """May be fitted under the protocol."""
    is_target: npt.NDArray[np.bool_]
    """Is held out by the protocol and to be ranked."""

    def users_with(self, events: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Whether each user has one of these events."""
        return np.bincount(self.user[events], minlength=len(self.user_ids)) > 0

    def by_user(self, values: npt.NDArray[np.int64], events: npt.NDArray[np.bool_]) -> list[npt.NDArray[np.int64]]:
        """Values of these events, one array for each user that has one."""
        sizes = np.bincount(self.user[events], minlength=len(self.user_ids))
        return np.split(values[events], np.cumsum(sizes[sizes > 0])[:-1]) if events.any() else []


def read_events(
    features: Path, manifest: artifact.Manifest, protocol: Protocol, split_ms: int | None, num_items: int
) -> EventTable:
    """The events of types that are read or predicted, as the protocol sees them.

    Raises:
        DataError: the histories do not fit the table of items.
    """
    users = pl.read_parquet(features / USERS_FILE, glob=False).sort("user_id")
    layout = generations(features)
    num_partitions = max(generation.num_partitions for generation in layout)
    bucket, rank = bucket_of_user(users), source_rank(manifest)
    columns = ["user_index", "item_index", "timestamp_ms", "event_type"]
    parts = [
        read_partition(features, layout, number, num_partitions, bucket, rank).select(columns)
        for number in range(num_partitions)
    ]
    frame = pl.concat(parts)
    if len(frame) and int(frame["item_index"].max() or 0) > num_items:  # type: ignore[arg-type]
        raise DataError(f"{features}: histories hold an item_index that {ITEMS_FILE} lacks; build the features again")
    place = np.zeros(int(users["user_index"].max() or 0) + 1, dtype=np.int64)  # type: ignore[arg-type]
    place[users["user_index"].to_numpy()] = np.arange(len(users))
    user = place[frame["user_index"].to_numpy()]
    order = np.argsort(user, kind="stable")
    kinds = frame["event_type"].to_numpy()[order]
    in_past, is_target = in_history(manifest, kinds), is_wanted(manifest, kinds)
    seen = in_past | is_target
    order, kinds = order[seen], kinds[seen]
    user, time = user[order], frame["timestamp_ms"].to_numpy()[order]
    item_index = frame["item_index"].to_numpy()[order].astype(np.int64)
    is_fit, held_out = _cut(protocol, split_ms, user, time, is_target[seen])
    return EventTable(users["user_id"].to_list(), user, item_index, time, kinds, is_fit & in_past[seen], held_out)


def source_rank(manifest: artifact.Manifest) -> npt.NDArray[np.int64]:
    """Place of each source in the order of names: events of one moment are in this order."""
    return ranks([entry["name"] for entry in manifest.metrics.get("source_files", [{"name": ""}])])


def in_history(manifest: artifact.Manifest, event_types: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Whether each event is of a type that makes the history."""
    return _is_of_types(manifest, "history_types", event_types)


def is_wanted(manifest: artifact.Manifest, event_types: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Whether each event is of a type that is to be predicted."""
    return _is_of_types(manifest, "target_types", event_types) & ~np.isin(event_types, negative_types(manifest))


def negative_types(manifest: artifact.Manifest) -> tuple[int, ...]:
    """Codes of the event types that are read and never predicted."""
    names = manifest.metrics.get("event_types", [DEFAULT_EVENT_TYPE])
    negative = manifest.config.get("negative_types", NEGATIVE_TYPES)
    return tuple(code for code, name in enumerate(names) if name in negative)


def _is_of_types(
    manifest: artifact.Manifest, setting: str, event_types: npt.NDArray[np.uint8]
) -> npt.NDArray[np.bool_]:
    names = manifest.metrics.get("event_types", [DEFAULT_EVENT_TYPE])
    chosen = manifest.config.get(setting) or names
    is_chosen: npt.NDArray[np.bool_] = np.array([name in chosen for name in names])[event_types]
    return is_chosen


def _cut(
    protocol: Protocol,
    split_ms: int | None,
    user: npt.NDArray[np.int64],
    time: npt.NDArray[np.int64],
    is_target: npt.NDArray[np.bool_],
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which events may be fitted, and which are held out as targets."""
    if protocol is Protocol.TIME:
        assert split_ms is not None
        return time < split_ms, (time >= split_ms) & is_target
    if protocol is Protocol.FINAL:
        return np.ones(len(user), dtype=bool), np.zeros(len(user), dtype=bool)
    position = np.arange(len(user))
    last = np.full(int(user.max(initial=-1)) + 1, len(user))
    last[user[is_target]] = position[is_target]  # the last write of a user stands
    return position < last[user], position == last[user]
