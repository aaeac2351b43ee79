"""The files beside an artifact that hold the events of a store: one writer at a time, each file whole or not there."""

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Final

import polars as pl

from features.lock import locked
from features.tombstones import moving_away
from features.trouble import said
from recsys.contracts.errors import DataError
from recsys.contracts.files import write_text, write_whole

_ENDING: Final = "-events"
STORE_NAME: Final = "events-store-id"
"""The file that says whose events the others hold."""
_NAME: Final = re.compile(r"^events-(\d{15})-(\d{15})\.parquet$")


def folder_of(out: Path) -> Path:
    """Where the files of the artifact at `out` are."""
    return out.parent / f"{out.name}{_ENDING}"


def _artifact_of(place: Path) -> Path:
    return place.with_name(place.name.removesuffix(_ENDING))


@contextmanager
def held(out: Path) -> Iterator[Path]:
    """The folder of the files, made where it is missing, and its lock; what a killed run left in it is removed.

    Raises:
        LockedError: another run holds it.
    """
    place = folder_of(out)
    with locked(place), said(out):
        place.mkdir(parents=True, exist_ok=True)
        for leftover in place.glob(".events-*"):
            leftover.unlink()
        yield place


def is_one(path: Path) -> bool:
    """Whether a file has the name of a store's file."""
    return _NAME.match(path.name) is not None


def claim(place: Path, store_id: str) -> None:
    """Note whose events the files in the folder are; events of another store do not get among them.

    Raises:
        DataError: they are another store's.
    """
    path = place / STORE_NAME
    if not path.exists():
        write_text(path, f"{store_id}\n")
    elif (found := path.read_text().strip()) != store_id:
        aside = f"`mv {shlex.quote(str(place))} {shlex.quote(f'{place}.old')}`"
        raise DataError(
            f"{place}: holds events of store {found[:12]}, but the store given is {store_id[:12]}, whose events have "
            f"numbers of their own; give the other store, or begin anew: {aside}, "
            f"{moving_away(_artifact_of(place))}, and run again"
        )


def files(place: Path) -> list[Path]:
    """The files in the order of the numbers of their events."""
    return sorted(path for path in place.iterdir() if is_one(path))


def last_number(place: Path) -> int:
    """The highest number of an event in the files, 0 without any; those below are all there.

    Raises:
        DataError: two files hold the same events.
    """
    ranges = [
        (int(match[1]), int(match[2]), path) for path in files(place) if (match := _NAME.match(path.name)) is not None
    ]
    for (_, last, earlier), (first, _, later) in pairwise(ranges):
        if first <= last:
            raise DataError(
                f"{later}: holds events of {earlier.name} again, as two runs at once wrote; delete {earlier.name}, "
                f"then {moving_away(_artifact_of(place))}, and run again"
            )
    return max((last for _, last, _ in ranges), default=0)


def write(frame: pl.DataFrame, place: Path, first: int, last: int) -> Path:
    """Write the events with these numbers, user first; the new file."""
    path = place / f"events-{first:015d}-{last:015d}.parquet"
    write_whole(path, frame.write_parquet)
    return path


def without(place: Path, user_ids: list[str]) -> bool:
    """Remove the users from the files; whether any held one of them."""
    user = pl.nth(0).is_in(user_ids)
    holding = [
        path
        for path in files(place)
        if user_ids and pl.scan_parquet(path, glob=False).select(user.any()).collect().item()
    ]
    for path in holding:
        write_whole(path, pl.read_parquet(path, glob=False).filter(~user).write_parquet)
    return bool(holding)
