"""Forgotten users, known by keyed hashes only: enough to leave them out for ever, not to name them."""

import hashlib
import json
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Self

import polars as pl

TOMBSTONES_FILE: Final = "forgotten.json"


class Tombstones:
    """A secret key and the users' hashes under it."""

    def __init__(self, key: bytes, hashes: Iterable[str] = ()) -> None:
        self._key = key
        self._hashes = frozenset(hashes)

    def __len__(self) -> int:
        return len(self._hashes)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The list of an artifact; an empty one with a fresh key where there is none."""
        path = folder / TOMBSTONES_FILE
        if not path.exists():
            return cls(secrets.token_bytes(32))
        values = json.loads(path.read_text())
        return cls(bytes.fromhex(values["key"]), values["users"])

    def save(self, folder: Path) -> None:
        """Write the list; sorted, so that the order tells nothing."""
        values = {"key": self._key.hex(), "users": sorted(self._hashes)}
        (folder / TOMBSTONES_FILE).write_text(json.dumps(values, indent=1) + "\n")

    def with_users(self, user_ids: Iterable[str]) -> "Tombstones":
        """The same list with more users."""
        return Tombstones(self._key, self._hashes | {self._hash(user_id) for user_id in user_ids})

    def holds(self, user_id: str) -> bool:
        """Whether the user has been forgotten."""
        return bool(self._hashes) and self._hash(user_id) in self._hashes

    def without_forgotten(self, users: pl.DataFrame) -> pl.DataFrame:
        """The rows whose `user_id` has not been forgotten."""
        if not self._hashes:
            return users
        return users.filter(pl.Series([not self.holds(user_id) for user_id in users["user_id"]], dtype=pl.Boolean))

    def _hash(self, user_id: str) -> str:
        return hashlib.blake2b(user_id.encode(), key=self._key, digest_size=16).hexdigest()
