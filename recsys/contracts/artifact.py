"""Artifacts: a folder that is there whole or not at all, verified when read.

A folder is written beside its place, its files are hashed and fsynced, then it is renamed into place
(exchanged atomically with an older one that stands there, where the file system can). `manifest.json` names
every file with size and sha256, and the digests of the artifacts it was made from.
"""

import ctypes
import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from recsys.contracts.errors import ArtifactError, DamagedError, ReplacedError
from recsys.contracts.files import fsync

MANIFEST_NAME: Final = "manifest.json"
FORMAT_VERSIONS: Final[Mapping[str, int]] = {"features": 2, "training": 1, "checkpoint": 1, "release": 1, "step": 1}
"""Version of each kind that this program writes and reads."""

_CURRENT_NAME = "current"
_MOST_NAMES = 100
"""That the pointer keeps."""
_RELEASE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS)
"""What a file system, or a kernel, answers that cannot exchange."""


class FileEntry(BaseModel):
    """One file of an artifact."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    sha256: str
    size_bytes: int


class Manifest(BaseModel):
    """What an artifact is, what it was made from, and every file in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: str
    format_version: int
    created_at: str
    parents: dict[str, str]
    """Digests of the artifacts this one was made from, by name."""
    config: dict[str, Any]
    """The settings as resolved."""
    metrics: dict[str, Any]
    files: dict[str, FileEntry]
    digest: str
    """sha256 over everything above."""


def _digest(fields: dict[str, Any]) -> str:
    body = {key: value for key, value in fields.items() if key != "digest"}
    return hashlib.sha256(json.dumps(body, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class ArtifactWriter:
    """A folder under construction; `commit` makes it an artifact."""

    def __init__(self, place: Path, kind: str) -> None:
        self.place = place
        self.kind = kind
        self.folder = place.parent / f".{place.name}.writing-{uuid.uuid4().hex[:8]}"
        self.manifest: Manifest | None = None
        self._linked: dict[str, FileEntry] = {}

    def link(self, older: Path, name: str, entry: FileEntry) -> None:
        """Take over an unchanged file of an older artifact, without reading it where the disk has hard links.

        Raises:
            ArtifactError: the older file is missing or has another size.
        """
        source, target = older / name, self.folder / name
        if not source.is_file() or source.stat().st_size != entry.size_bytes:
            raise ArtifactError(f"{source}: missing, truncated or altered; build the artifact again with --full")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError:  # a disk without hard links: the copy is hashed again
            shutil.copyfile(source, target)
        else:
            self._linked[name] = entry

    def commit(self, *, parents: dict[str, str], config: dict[str, Any], metrics: dict[str, Any]) -> Manifest:
        """Hash and fsync every file, write the manifest, and put the folder in its place.

        Who may read the folder may read its files, whatever wrote them: safetensors lets only the owner.
        """
        mode = self.folder.stat().st_mode & 0o666

        def entry(path: Path) -> tuple[str, FileEntry]:
            name = path.relative_to(self.folder).as_posix()
            if name in self._linked:
                return name, self._linked[name]
            path.chmod(mode)
            fsync(path)
            return name, FileEntry(sha256=sha256_of(path), size_bytes=path.stat().st_size)

        with ThreadPoolExecutor() as pool:
            files = dict(pool.map(entry, sorted(p for p in self.folder.rglob("*") if p.is_file())))
        fields: dict[str, Any] = {
            "kind": self.kind,
            "format_version": FORMAT_VERSIONS[self.kind],
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "parents": parents,
            "config": config,
            "metrics": metrics,
            "files": {name: entry.model_dump() for name, entry in files.items()},
        }
        manifest = Manifest(**fields, digest=_digest(fields))
        target = self.folder / MANIFEST_NAME
        target.write_text(json.dumps(manifest.model_dump(), indent=2, ensure_ascii=False) + "\n")
        fsync(target)
        _check_replaceable(self.place, self.kind)
        for folder in [self.folder, *(p for p in self.folder.rglob("*") if p.is_dir())]:
            fsync(folder)
        _put_in_place(self.folder, self.place)
        self.manifest = manifest
        return manifest


@contextmanager
def writing(place: Path, kind: str) -> Iterator[ArtifactWriter]:
    """A writer whose folder disappears unless `commit` was reached; what dead runs left of `place` is removed, too.

    Raises:
        ArtifactError: `place` exists and is not an artifact of this kind, or holds files that are no part of it
            (nothing is overwritten or removed by mistake).
    """
    _check_replaceable(place, kind)
    remove_leftovers(place.parent, place.name)
    writer = ArtifactWriter(place, kind)
    descriptor = _made_and_locked(writer.folder)
    try:
        yield writer
        assert writer.manifest is not None, "commit was not called"
    finally:
        shutil.rmtree(writer.folder, ignore_errors=True)
        os.close(descriptor)


def remove_leftovers(parent: Path, name: str | None = None) -> None:
    """Remove what runs that died have half-written in `parent`: of the artifact `name`, or of any.

    A folder that is being written is locked by the kernel for its process, so what is not locked has nobody.
    """
    for folder in parent.glob(f".{'*' if name is None else glob.escape(name)}.writing-{'[0-9a-f]' * 8}"):
        with suppress(OSError):  # somebody is at work in it, or has just finished; or this disk has no locks
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)


def _made_and_locked(folder: Path) -> int:
    """Descriptor of the new folder; the kernel's lock on it goes with the descriptor."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # taken for a leftover before it was locked
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            with suppress(OSError):  # a disk without locks, where leftovers stay
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if folder.exists():
                return descriptor
            os.close(descriptor)


def _check_replaceable(place: Path, kind: str) -> None:
    if not place.exists() or not any(place.iterdir() if place.is_dir() else [place]):
        return
    manifest = read_manifest(place) if (place / MANIFEST_NAME).exists() else None
    if manifest is None or manifest.kind != kind:
        found = "something else" if manifest is None else manifest.kind
        raise ArtifactError(f"{place}: holds {found}, will not be replaced by {kind}; choose another folder")
    there = sorted(path for path in place.rglob("*") if path.is_symlink() or not path.is_dir())
    names = [path.relative_to(place).as_posix() for path in there]
    foreign = [name for name in names if name not in manifest.files and name != MANIFEST_NAME]
    if foreign:
        raise ArtifactError(
            f"{place}: holds files that are no part of its {kind} artifact and would be lost with it ({len(foreign)}, "
            f"such as {foreign[0]!r}); move them to another folder, or choose another place for the artifact"
        )


def _put_in_place(folder: Path, place: Path) -> None:
    """Rename `folder` to `place`; an older folder there is exchanged in one step and left at `folder`.

    Where the file system cannot exchange, two steps replace the older folder; see `recover` for a run killed between.
    """
    if not place.exists():
        os.rename(folder, place)
    elif (code := _exchange(folder, place)) in _NO_EXCHANGE:
        _replace(folder, place)
    elif code:
        raise ArtifactError(f"{place}: cannot be replaced: {os.strerror(code)}; check the folder and run again")
    fsync(place.parent)


def _exchange(one: Path, other: Path) -> int:
    """Exchange two folders in one step; the number of the error, 0 for none."""
    libc = ctypes.CDLL(None, use_errno=True)
    paths = os.fsencode(one), os.fsencode(other)
    failed = libc.renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) != 0
    return ctypes.get_errno() if failed else 0


def _replace(folder: Path, place: Path) -> None:
    older = older_of(place)
    shutil.rmtree(older, ignore_errors=True)
    os.rename(place, older)
    try:
        os.rename(folder, place)
    except BaseException:
        os.rename(older, place)
        raise
    fsync(place.parent)
    shutil.rmtree(older, ignore_errors=True)


def older_of(place: Path) -> Path:
    """Where an artifact is while another takes its place, if the file system cannot exchange the two."""
    return place.parent / f".{place.name}.older"


def recover(place: Path) -> None:
    """Put right what was left by a run that died while it replaced `place`; nobody else may write there meanwhile."""
    older = older_of(place)
    if (place / MANIFEST_NAME).exists():
        shutil.rmtree(older, ignore_errors=True)
    elif not place.exists() and (older / MANIFEST_NAME).exists():
        os.rename(older, place)
        fsync(place.parent)


def read_manifest(folder: Path) -> Manifest:
    """The manifest, its own digest checked; the files are not read.

    Raises:
        ArtifactError: no manifest, or it cannot be read.
        DamagedError: not JSON, altered, or fields missing.
    """
    path = folder / MANIFEST_NAME
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        manifest = Manifest.model_validate(fields)
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(f"{folder}: no artifact here ({MANIFEST_NAME} is missing); check the path") from None
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}; check its permissions") from None
    except (ValueError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise DamagedError(f"{path}: damaged manifest ({reason}); build the artifact again") from None
    if _digest(fields) != manifest.digest:
        raise DamagedError(f"{path}: damaged manifest (altered after it was written); build the artifact again")
    return manifest


def manifest_of(folder: Path, kind: str) -> Manifest:
    """The manifest of an artifact of this kind, and of the version that this program reads; the files are not read.

    Raises:
        ArtifactError: another kind or version; or see `read_manifest`.
    """
    manifest = read_manifest(folder)
    if manifest.kind != kind:
        raise ArtifactError(f"{folder}: holds {manifest.kind}, expected {kind}; check the path")
    if manifest.format_version != FORMAT_VERSIONS[kind]:
        raise ArtifactError(
            f"{folder}: {kind} of format version {manifest.format_version}, this program reads "
            f"{FORMAT_VERSIONS[kind]}; build it again with this program"
        )
    return manifest


def verify(folder: Path, kind: str) -> Manifest:
    """The manifest of an artifact whose every file has the size and sha256 it names.

    Where a run puts another artifact in its place meanwhile, it is that of the other one.

    Raises:
        ArtifactError: another kind or version.
        DamagedError: a file is missing, truncated or altered.
    """
    while True:
        manifest = manifest_of(folder, kind)
        looked_at = ((name, damage(folder / name, entry)) for name, entry in manifest.files.items())
        name, problem = next((found for found in looked_at if found[1] is not None), ("", None))
        if problem is None:
            return manifest
        if is_in_place(folder, manifest):
            raise DamagedError(f"{folder / name}: {problem}; build the artifact again")


def is_in_place(folder: Path, manifest: Manifest) -> bool:
    """Whether the folder holds the artifact of this manifest; a run may have put another one there since."""
    try:
        return read_manifest(folder).digest == manifest.digest
    except ArtifactError:
        return False


@contextmanager
def in_place(folder: Path, manifest: Manifest) -> Iterator[None]:
    """All that is read from the folder within is of the artifact of this manifest.

    Raises:
        ReplacedError: it is not: a run has put another artifact there meanwhile.
    """
    replaced = ReplacedError(f"{folder}: another run has published here while this was read; run again")
    try:
        yield
    except Exception:
        if not is_in_place(folder, manifest):
            raise replaced from None
        raise
    if not is_in_place(folder, manifest):
        raise replaced


def damage(path: Path, entry: FileEntry, *, is_hashed: bool = True) -> str | None:
    """In what a file is not as its entry says, or None; unless `is_hashed`, only its size is looked at."""
    if not path.is_file():
        return "file is missing"
    size = path.stat().st_size
    if size != entry.size_bytes:
        return f"truncated or altered, {size} bytes found, {entry.size_bytes} expected"
    if is_hashed and (found := sha256_of(path)) != entry.sha256:
        return f"altered, sha256 {found[:12]} found, {entry.sha256[:12]} expected"
    return None


def check_parent(child: Manifest, name: str, parent: Manifest, where: Path) -> None:
    """Refuse an artifact that was not made from `parent`.

    Raises:
        ArtifactError: with both digests.
    """
    made_from = child.parents.get(name, "none")
    if made_from != parent.digest:
        raise ArtifactError(
            f"{where}: this {child.kind} was made from {name} {made_from[:12]}, "
            f"but the {name} given is {parent.digest[:12]}; use the one it was made from, or build it again"
        )


def set_current(releases: Path, name: str) -> None:
    """Switch the `current` pointer atomically to a release of the folder; its file keeps the names before it, too.

    Raises:
        ArtifactError: it cannot be written, and is as it was.
    """
    assert _RELEASE_NAME.fullmatch(name), name
    with _moving(releases):
        try:
            before = current_names(releases)
        except ArtifactError:  # not ours any more: activating a release again is the way out
            before = []
        _point(releases, before if before[:1] == [name] else [name, *before])


def step_back(releases: Path, names: list[str]) -> None:
    """Switch `current` back from the first of `names` to the second; `names` as `current_names` has given them.

    Raises:
        ArtifactError: it was moved since, or cannot be written, and is as it was.
    """
    assert len(names) > 1, names
    with _moving(releases):
        if current_names(releases) != names:
            raise ArtifactError(
                f"{releases / _CURRENT_NAME}: was moved meanwhile; look where it points, then roll back"
            )
        _point(releases, names[1:])


@contextmanager
def _moving(releases: Path) -> Iterator[None]:
    """Only one process at a time reads the pointer and then moves it."""
    try:
        descriptor = os.open(releases, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ArtifactError(f"{releases / _CURRENT_NAME}: not written: {error.strerror}; check the folder") from None


def _point(releases: Path, names: list[str]) -> None:
    fresh = releases / f".{_CURRENT_NAME}-{uuid.uuid4().hex[:8]}"
    fresh.write_text("".join(f"{name}\n" for name in names[:_MOST_NAMES]))
    fsync(fresh)
    os.replace(fresh, releases / _CURRENT_NAME)
    fsync(releases)


def current_names(releases: Path) -> list[str]:
    """The release that `current` points to, then those it pointed to before, the last one first; [] without a pointer.

    Raises:
        ArtifactError: it names something that cannot be a release.
    """
    try:
        names = (releases / _CURRENT_NAME).read_text().strip().splitlines() or [""]
    except FileNotFoundError:
        return []
    for name in names:
        if not _RELEASE_NAME.fullmatch(name):
            problem = f"not a release name: {name[:80]!r}; activate a release again"
            raise ArtifactError(f"{releases / _CURRENT_NAME}: {problem}")
    return names


def current_name(releases: Path) -> str | None:
    """Name of the release that `current` points to, or None where there is no pointer.

    Raises:
        ArtifactError: it names something that cannot be a release.
    """
    return next(iter(current_names(releases)), None)


def resolve_release(path: Path) -> Path:
    """The release folder itself, or the current one of a folder of releases.

    Raises:
        ArtifactError: neither a release nor a folder with a `current` pointer.
    """
    if (path / MANIFEST_NAME).exists():
        return path
    name = current_name(path)
    if name is None:
        raise ArtifactError(
            f"{path}: no release here (neither {MANIFEST_NAME} nor `{_CURRENT_NAME}`); run `recsys optimize`"
        )
    return path / name
