"""Finished steps of a release under construction: a run that was killed goes on after the last of them."""

import fcntl
import os
import shutil
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from recsys.contracts import artifact
from recsys.contracts.artifact import ArtifactWriter, Manifest
from recsys.contracts.errors import ArtifactError, LockedError

Advance = Callable[[str, int, int], None]
"""Told of (step, done, total)."""


class Rules(NamedTuple):
    """What a step's files depend on besides its settings and parents."""

    number: int
    """Raised with each change of our code that changes the files."""
    libraries: tuple[str, ...]
    """Distributions whose versions count, installed or not."""

    def settings(self) -> dict[str, Any]:
        """As the step's manifest holds them."""
        return {"rules": self.number, "libraries": {name: _version(name) for name in self.libraries}}


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


class Steps:
    """Steps beside the releases they are for, each an artifact with its parents and settings.

    A step is done again where it is missing, damaged, or was made from something else: other parents, settings, rules
    or versions of libraries. Nobody else can have the steps
    of a checkpoint until `remove`, or until these are no longer referred to, or their process ends, however it does.
    """

    def __init__(
        self,
        releases: Path,
        parents: dict[str, str],
        rules: Mapping[str, Rules],
        advance: Advance = lambda *_: None,
    ) -> None:
        """Take the steps of the checkpoint; `rules` are those of each step, by its name. `advance` hears of each.

        Raises:
            LockedError: another run has them.
        """
        self.folder = releases / f".steps-{parents['checkpoint'][:8]}"
        self._parents = parents
        self._rules = rules
        self._advance = advance
        self._let_go = weakref.finalize(self, _let_go, self.folder, _lock(self.folder))

    def run(
        self,
        name: str,
        settings: dict[str, Any],
        make: Callable[[Path], dict[str, Any]],
        *,
        after: str | None = None,
        part: int | None = None,
    ) -> Manifest:
        """The step's manifest; `make` writes its files into a folder and returns what else is known of it.

        `after` is the step whose files it reads; `part` numbers the parts of a long step.
        """
        parents = dict(self._parents)
        if after is not None:
            parents[after] = artifact.read_manifest(self.folder / after).digest
        place = self.place(name, part)
        settings = settings | self._rules[name].settings()
        done = _finished(place)
        if done is not None and (done.parents, done.config) == (parents, settings):
            return done
        title = f"step {place.name}"
        self._advance(title, 0, 1)
        with artifact.writing(place, "step") as writer:
            manifest = writer.commit(parents=parents, config=settings, metrics=make(writer.folder))
        self._advance(title, 1, 1)
        return manifest

    def place(self, name: str, part: int | None = None) -> Path:
        """The folder of a step or of its part."""
        return self.folder / (name if part is None else f"{name}-{part:05d}")

    def hand_over(self, name: str, writer: ArtifactWriter) -> None:
        """Put the step's files into the release."""
        for file, entry in artifact.read_manifest(self.folder / name).files.items():
            writer.link(self.folder / name, file, entry)

    def remove(self) -> None:
        """The release is out."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._let_go()


def _lock(folder: Path) -> int:
    """Descriptor of the folder, which is made if it is missing; the kernel's lock on it goes with the descriptor.

    Raises:
        LockedError: another run holds it.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue  # the run that had it has just removed it
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise LockedError(
                f"{folder}: another optimize of this checkpoint is under way; wait for it, or give another --out"
            ) from None
        if folder.exists() and os.path.samestat(os.fstat(descriptor), folder.stat()):
            return descriptor
        os.close(descriptor)  # removed between opening and locking


def _let_go(folder: Path, descriptor: int) -> None:
    """Unlock; finished steps stay for the next run."""
    with suppress(OSError):
        folder.rmdir()  # nothing was finished, or all was removed
    os.close(descriptor)


def _finished(place: Path) -> Manifest | None:
    if not place.exists():
        return None
    try:
        return artifact.verify(place, "step")
    except ArtifactError:
        shutil.rmtree(place)
        return None
