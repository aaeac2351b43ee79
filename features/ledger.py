"""Which files the artifact has read already, and what tonight's run has to do."""

import gzip
import hashlib
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import polars as pl

from features.clean import KEY_SEED
from features.config import READING_FIELDS, READING_RULES, FeaturesConfig
from features.numbering import BUCKET_SEED
from features.sources import is_gzip, is_typed
from features.state import State
from features.tombstones import moving_away
from features.trouble import reading
from recsys.contracts.artifact import FORMAT_VERSIONS, sha256_of
from recsys.contracts.errors import DataError, RefusedError

_CONTENT: Final = "content_sha256"
"""Of what a .gz file holds: a log that was read and compressed since is no new log."""
ASKED_FOR: Final = "asked for"
"""The reason for a full build that is not the program's own."""
_BLOCK_BYTES: Final = 1 << 20


@dataclass(slots=True)
class Plan:
    """What to read."""

    new: list[Path]
    """Files to read, in order of names."""
    sources: list[dict[str, Any]]
    """The ledger: one entry per file ever read; the position is the file's source number."""
    why_full: str | None
    """Reason for reading everything again; None for an incremental run."""
    first_file: Path
    """The first of tonight's files, for messages."""
    fingerprint: dict[str, Any]
    """What the events were read by, those of tonight included."""
    absent: list[str] = field(default_factory=list)
    """Files read before whose content is not among tonight's, under whatever name; their events stay."""
    passed_over: list[str] = field(default_factory=list)
    """What is not read in tonight's folders."""


def fingerprint(config: FeaturesConfig) -> dict[str, Any]:
    """What decides which events files hold and where they are kept: settings, rules, and the hash of this polars."""
    probe = pl.Series(["probe"])
    hashes = [int(probe.hash(seed)[0]) for seed in (KEY_SEED, BUCKET_SEED)]
    settings = {name: getattr(config, name) for name in READING_FIELDS}
    return {**settings, "hash_probe": hashes, "reading_rules": READING_RULES}


@reading()
def plan(
    config: FeaturesConfig, files: list[Path], state: State, out: Path, *, has_times: bool, asked: str | None
) -> Plan:
    """Compare tonight's files with those of the artifact at `out`; all are read again if `asked`, for this reason.

    Files are known by name, size and time, or else by their sha256; a file with the content of another, compressed
    or not, is a copy and is not read.

    Raises:
        DataError: a file cannot be read, two files have one name, or a full rebuild would lose the events of absent
            files.
    """
    by_name = {path.name: path for path in sorted(files, key=lambda path: path.name)}
    if len(by_name) < len(set(files)):
        twice = next(path for path in files if by_name[path.name] != path)
        raise DataError(f"{twice}: {by_name[twice.name]} has the same name; files are known by name, rename one")
    why_full = _why_full(config, state, asked)
    known = {entry["name"]: dict(entry) for entry in state.metrics.get("source_files", [])}
    new_names = [name for name in by_name if name not in known]
    for name in by_name:
        if name in known and why_full is None:
            why_full = _difference(known[name], by_name[name])
    if why_full is None and not has_times and new_names and known and new_names[0] < max(known):
        why_full = f"{new_names[0]} comes before files already read, and the log has no times"
    fresh = _entries(by_name[name] for name in (new_names if why_full is None else by_name))
    absent = _absent(known, by_name, fresh, is_full=why_full is not None)
    if why_full is not None and absent:
        raise DataError(
            f"{by_name[next(iter(by_name))].parent}: a full rebuild is needed ({why_full}) but {len(absent)} files "
            f"read before are missing, such as {absent[0]!r}, and no file has their content under another name; put "
            f"them back, or do without: {moving_away(out)}, and run again"
        )
    sources = list(known.values()) if why_full is None else []
    new = _register(fresh, by_name, sources)
    copies = {entry["name"]: entry["copy_of"] for entry in fresh if "copy_of" in entry}
    if why_full is None and not absent and any(name < of and of in by_name for name, of in copies.items()):
        why_full = "a copy of a file comes before it, and a rebuild reads the first of them"
        sources = []
        new = _register(_entries(by_name.values()), by_name, sources)
    return Plan(new, sources, why_full, next(iter(by_name.values())), fingerprint(config), absent)


def _absent(
    known: dict[str, dict[str, Any]], by_name: dict[str, Path], fresh: list[dict[str, Any]], *, is_full: bool
) -> list[str]:
    """Known files with events that are not among tonight's, nor is their content under another name."""
    unchanged = [] if is_full else [entry for name, entry in known.items() if name in by_name]
    there = {_content_of(entry) for entry in (*fresh, *unchanged)}
    return [
        name
        for name, entry in known.items()
        if name not in by_name and _content_of(entry) not in there and entry.get("num_events") != 0
    ]


def renewed(sources: list[dict[str, Any]], rewritten: Sequence[Path]) -> list[dict[str, Any]]:
    """The ledger with the present size, time and sha256 of files that were changed on purpose."""
    by_name = {path.name: path for path in rewritten}
    return [
        entry | _entry(path) | _digests(path) if (path := by_name.get(entry["name"])) else entry for entry in sources
    ]


def _why_full(config: FeaturesConfig, state: State, asked: str | None) -> str | None:
    manifest = state.manifest
    if manifest is None:
        return "first build"
    if manifest.format_version != FORMAT_VERSIONS["features"]:
        return f"format version {manifest.format_version} was found"
    if asked is not None:
        return asked
    before, now = manifest.metrics.get("fingerprint", {}), fingerprint(config)
    changed = [name for name in now if before.get(name) != now[name]]
    if changed == ["reading_rules"] and not _would_read_otherwise(state):
        return None
    return f"{changed[0]} changed" if changed else None


def _would_read_otherwise(state: State) -> bool:
    """Whether other rules for the values of typed files may change what was read."""
    return any(is_typed(entry["name"]) for entry in state.metrics["source_files"]) and state.may_hold_floats()


def _entries(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Entries of files that are to be registered."""
    paths = list(paths)
    with ThreadPoolExecutor() as pool:
        return [_entry(path) | digests for path, digests in zip(paths, pool.map(_digests, paths), strict=True)]


def _content_of(entry: dict[str, Any]) -> str:
    return str(entry.get(_CONTENT, entry["sha256"]))


def _entry(path: Path) -> dict[str, Any]:
    status = path.stat()
    return {"name": path.name, "size_bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def _digests(path: Path) -> dict[str, str]:
    """sha256 of the file, and of what it holds if it is compressed; a damaged one is refused where it is read."""
    digests = {"sha256": sha256_of(path)}
    if is_gzip(path):
        content = hashlib.sha256()
        with suppress(EOFError, gzip.BadGzipFile, zlib.error), gzip.open(path) as file:
            while block := file.read(_BLOCK_BYTES):
                content.update(block)
            digests[_CONTENT] = content.hexdigest()
    return digests


def _difference(known: dict[str, Any], path: Path) -> str | None:
    """Why a file of a known name is not the known file; its time is renewed where only that differs."""
    found = _entry(path)
    if all(known[key] == found[key] for key in found):
        return None
    if known["size_bytes"] == found["size_bytes"] and sha256_of(path) == known["sha256"]:
        known["mtime_ns"] = found["mtime_ns"]
        return None
    return f"{path.name} changed since it was read"


@reading()
def check_unchanged(path: Path, entry: dict[str, Any]) -> None:
    """Refuse a file that is not what its entry was made of: what was read may be a part of it.

    Raises:
        RefusedError: it has another size or time.
    """
    found = _entry(path)
    if any(entry[key] != found[key] for key in found):
        raise RefusedError(
            f"{path}: changed while it was read, {found['size_bytes']:,} bytes found, {entry['size_bytes']:,} "
            "expected; wait for the end of its upload, and run again"
        )


def _register(fresh: list[dict[str, Any]], by_name: dict[str, Path], sources: list[dict[str, Any]]) -> list[Path]:
    """Add entries to the ledger; returns the files that are no copies of others."""
    by_digest = {
        entry[key]: entry["name"] for entry in reversed(sources) for key in ("sha256", _CONTENT) if key in entry
    }
    new = []
    for entry in fresh:
        original = by_digest.setdefault(_content_of(entry), entry["name"])
        if original != entry["name"]:
            entry["copy_of"] = original
        else:
            new.append(by_name[entry["name"]])
        sources.append(entry)
    return new
