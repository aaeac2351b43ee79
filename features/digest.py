"""The content digest: equal for equal content, whatever the layout of files or the numbering of items.

An event is (user_id, item_id, moment, event type, source name, row); source and row are what orders events of
one moment. The digest is the sum of the events' 64-bit hashes, so that a night adds only its own events, a
removed event is subtracted, and no order of users or files enters. The items' descriptions are hashed as a
table in the order of item_id.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
import polars as pl

from recsys.histories import Integers

_MOMENT, _ROW = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)


def string_hashes(strings: Iterable[str], kind: str) -> Integers:
    """A stable 64-bit hash per string, other for each kind."""
    start = hashlib.blake2b(digest_size=8, person=kind.encode())  # a copy takes half the time of a new one

    def digest(string: str) -> bytes:
        hashing = start.copy()
        hashing.update(string.encode())
        return hashing.digest()

    return np.frombuffer(b"".join(map(digest, strings)), dtype="<u8")


def events_sum(events: pl.DataFrame, user: Integers, item: Integers, kind: Integers, source: Integers) -> int:
    """Sum of the hashes of the events, modulo 2^64; the other arguments are hashes by user_index and so on."""
    total = np.zeros((), dtype=np.uint64)
    for part in events.iter_slices(1 << 17):  # in the processor's cache
        with np.errstate(over="ignore"):
            x = part["timestamp_ms"].to_numpy().astype(np.uint64) * _MOMENT
            x += part["row"].to_numpy().astype(np.uint64) * _ROW
            x += user[part["user_index"].to_numpy()]
            x += item[part["item_index"].to_numpy()]
            x += kind[part["event_type"].to_numpy()]
            x += source[part["source"].to_numpy()]
            total += _mixed(x).sum(dtype=np.uint64)
    return int(total)


def _mixed(x: Integers) -> Integers:
    """The finalizer of SplitMix64. Source: Steele, Lea, Flood, OOPSLA 2014."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Integers = x ^ (x >> np.uint64(31))
    return mixed


def content_digest(sum_of_events: int, items: pl.DataFrame) -> str:
    """Hex digest of the events' sum and of the items that have events."""
    described = items.filter(pl.col("num_events") > 0).sort("item_id")
    table = described.select("item_id", "num_events", "first_ms", "last_ms", "title", "category", "price")
    return hashlib.sha256(f"{sum_of_events:016x}\n{table.write_csv()}".encode()).hexdigest()
