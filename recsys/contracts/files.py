"""Files that are there whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path


def write_whole(place: Path, fill: Callable[[Path], object]) -> None:
    """Let `fill` write a file beside `place`, and put it there once it is on the disk. Makes the folder.

    Until then its name begins with a dot, so that no reader of logs sees it; a later writer overwrites what an
    interrupted one has left. A link stays one: what it points to is replaced. For one writer of a place at a time.
    """
    place = place.resolve()
    place.parent.mkdir(parents=True, exist_ok=True)
    unfinished = place.with_name(f".{place.name}")
    fill(unfinished)
    fsync(unfinished)
    unfinished.replace(place)
    fsync(place.parent)


def write_text(place: Path, text: str) -> None:
    """`write_whole` of text in UTF-8."""
    write_whole(place, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))


def fsync(path: Path) -> None:
    """What was written to a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
