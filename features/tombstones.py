"""Forgotten users, known by keyed hashes only: enough to leave them out for ever, not to name them."""

import hashlib
import json
import secrets
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Self

import polars as pl

from recsys.contracts.artifact import FileEntry, read_manifest, sha256_of
from recsys.contracts.errors import ArtifactError, DataError

TOMBSTONES_FILE: Final = "forgotten.json"


def moving_away(folder: Path) -> str:
    """The command that puts an artifact aside; what is built in its place leaves the same users out."""
    kept, beside, old = (
        shlex.quote(str(path)) for path in (folder / TOMBSTONES_FILE, _beside(folder), f"{folder}.old")
    )
    return f"`cp {kept} {beside} && mv {shlex.quote(str(folder))} {old}`"


def _named(folder: Path) -> FileEntry | None:
    """What the manifest says of the list; None without a manifest, or with a damaged one: its reader says so."""
    try:
        return read_manifest(folder).files.get(TOMBSTONES_FILE)
    except ArtifactError:
        return None


def _expected(folder: Path) -> str:
    return (
        "expected the list of forgotten users that the manifest names; put it back from a copy, or else move "
        f"{folder} away, build anew and forget them again"
    )


def _beside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.{TOMBSTONES_FILE}")


class Tombstones:
    """A secret key and the users' hashes under it."""

    def __init__(self, key: bytes, hashes: Iterable[str] = ()) -> None:
        self._key = key
        self._hashes = frozenset(hashes)

    def __len__(self) -> int:
        return len(self._hashes)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The list of an artifact, or the one kept beside its place; an empty one with a fresh key where there is none.

        Raises:
            DataError: it is damaged, or not the one that the artifact's manifest names.
        """
        named = _named(folder)
        if named is not None and not (folder / TOMBSTONES_FILE).exists():
            raise DataError(f"{folder / TOMBSTONES_FILE}: missing, {_expected(folder)}")
        path = next((path for path in (folder / TOMBSTONES_FILE, _beside(folder)) if path.exists()), None)
        if path is None:
            return cls(secrets.token_bytes(32))
        try:
            values = json.loads(path.read_bytes())
            found = cls(bytes.fromhex(values["key"]), values["users"])
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{path}: damaged list of forgotten users; put it back from a copy") from None
        if named is not None and sha256_of(path) != named.sha256:
            raise DataError(f"{path}: altered, {_expected(folder)}")
        return found

    def save(self, folder: Path) -> None:
        """Write the list; sorted, so that the order tells nothing."""
        values = {"key": self._key.hex(), "users": sorted(self._hashes)}
        (folder / TOMBSTONES_FILE).write_text(json.dumps(values, indent=1) + "\n")

    def with_users(self, user_ids: Iterable[str]) -> "Tombstones":
        """The same list with more users."""
        return Tombstones(self._key, self._hashes | {self._hash(user_id) for user_id in user_ids})

    def holds(self, user_id: str) -> bool:
        """Whether the user has been forgotten; who was as 17850.0, which typed logs were read as once, is 17850."""
        if not self._hashes:
            return False
        return self._hash(user_id) in self._hashes or (
            user_id.isdecimal() and self._hash(f"{user_id}.0") in self._hashes
        )

    def without_forgotten(self, users: pl.DataFrame) -> pl.DataFrame:
        """The rows whose `user_id` has not been forgotten."""
        if not self._hashes:
            return users
        return users.filter(pl.Series([not self.holds(user_id) for user_id in users["user_id"]], dtype=pl.Boolean))

    def _hash(self, user_id: str) -> str:
        return hashlib.blake2b(user_id.encode(), key=self._key, digest_size=16).hexdigest()
