"""Finished steps of a release under construction: a run that was killed goes on after the last of them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recsys.contracts import artifact
from recsys.contracts.artifact import ArtifactWriter, Manifest
from recsys.contracts.errors import ArtifactError


class Steps:
    """Steps beside the releases they are for, each an artifact with its parents and settings.

    A step is done again where it is missing, damaged, or was made from something else.
    """

    def __init__(self, releases: Path, parents: dict[str, str]) -> None:
        self.folder = releases / f".steps-{parents['checkpoint'][:8]}"
        self._parents = parents

    def run(
        self, name: str, settings: dict[str, Any], make: Callable[[Path], dict[str, Any]], *, after: str | None = None
    ) -> Manifest:
        """The step's manifest; `make` writes its files into a folder and returns what else is known of it.

        `after` is the step whose files it reads.
        """
        parents = dict(self._parents)
        if after is not None:
            parents[after] = artifact.read_manifest(self.folder / after).digest
        place = self.folder / name
        done = _finished(place)
        if done is not None and (done.parents, done.config) == (parents, settings):
            return done
        with artifact.writing(place, "step") as writer:
            return writer.commit(parents=parents, config=settings, metrics=make(writer.folder))

    def hand_over(self, name: str, writer: ArtifactWriter) -> None:
        """Put the step's files into the release."""
        for file, entry in artifact.read_manifest(self.folder / name).files.items():
            writer.link(self.folder / name, file, entry)

    def remove(self) -> None:
        """The release is out."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _finished(place: Path) -> Manifest | None:
    if not place.exists():
        return None
    try:
        return artifact.verify(place, "step")
    except ArtifactError:
        shutil.rmtree(place)
        return None
