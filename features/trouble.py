"""Troubles of a run that are no mistake in the log: a full disk, missing permissions, a damaged artifact."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import polars as pl

from recsys.contracts import artifact
from recsys.contracts.errors import DamagedError, DataError, RecsysError
from recsys.histories import ITEMS_FILE

_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def said(out: Path) -> Iterator[None]:
    """What stops a run on the artifact at `out` is one line. Only after a failure are all its files verified.

    Raises:
        DataError: the disk is full, or a file or folder may not be read or written.
        DamagedError: something else failed, and a file of the artifact is not as its manifest says.
    """
    try:
        yield
    except RecsysError:
        raise
    except (Exception, pl.exceptions.PanicException) as error:  # damaged Parquet may lead to any error
        if _is_full(error) or isinstance(error, PermissionError):
            raise of_disk(error, out) from None
        _check_all(out)
        if isinstance(error, OSError):
            raise of_disk(error, out) from None
        raise


def of_disk(error: BaseException, out: Path) -> DataError:
    """The error as a line that says what to do."""
    if _is_full(error):
        return DataError(f"{out}: the disk is full; the artifact is as it was, free some space and run again")
    where = getattr(error, "filename", None) or out
    what = getattr(error, "strerror", None) or str(error)
    if isinstance(error, FileExistsError | NotADirectoryError):
        return DataError(f"{where}: {what}; expected a folder here, choose another place for the artifact")
    return DataError(
        f"{where}: {what}; expected that this user may read and write the artifact and the folder it is in: "
        f"check the permissions of {where} and {out.parent}"
    )


def _is_full(error: BaseException) -> bool:
    texts = (f"os error {number}" for number in _FULL)  # polars says no more
    return getattr(error, "errno", None) in _FULL or (
        isinstance(error, pl.exceptions.ComputeError) and any(text in str(error) for text in texts)
    )


@contextmanager
def reading() -> Iterator[None]:
    """A file of the log that cannot be read is one line.

    Raises:
        DataError: it cannot.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(
            f"{error.filename or error}: went away while the log was read; expected files that stay until a run ends: "
            "put it back, or run again without it"
        ) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise DataError(
            f"{where}cannot be read: {error.strerror}; expected a log that this user may read, check its permissions"
        ) from None


def check(out: Path, name: str, entry: artifact.FileEntry, *, is_hashed: bool = True) -> None:
    """Refuse a damaged file of the features at `out`, with what mends it.

    Raises:
        DamagedError: the file is missing or not as its entry says.
    """
    problem = problem_of(out, name, entry, is_hashed=is_hashed)
    if problem is not None:
        raise DamagedError(problem)


def problem_of(out: Path, name: str, entry: artifact.FileEntry, *, is_hashed: bool = True) -> str | None:
    """The line about a damaged file, or None where it is as its entry says."""
    problem = artifact.damage(out / name, entry, is_hashed=is_hashed)
    return None if problem is None else f"{out / name}: {problem}; {_WAYS_OUT.get(name, _WAY_OUT)}"


_WAYS_OUT: Final = {
    ITEMS_FILE: "it has the numbers of the items: put it back from a copy, or number them anew with --renumber"
}
_WAY_OUT: Final = "put it back from a copy, or build the artifact again with --full"


def _check_all(out: Path) -> None:
    if (out / artifact.MANIFEST_NAME).exists():
        for name, entry in artifact.read_manifest(out).files.items():
            check(out, name, entry)
