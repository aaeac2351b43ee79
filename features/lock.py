"""One run at a time on an artifact. The lock is the kernel's: it goes with the process that holds it."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from features.trouble import of_disk
from recsys.contracts.artifact import recover, remove_leftovers
from recsys.contracts.errors import LockedError


@contextmanager
def locked(out: Path) -> Iterator[str | None]:
    """Hold the lock of the artifact at `out`; gives a line about a run that died here, if one did.

    What a dead run left half-written is removed, and what it put aside is put back.

    Raises:
        LockedError: another run holds it.
        DataError: the folder of `out` cannot be written.
    """
    path = out.parent / f".{out.name}.lock"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        descriptor, died = _acquire(path, out)
    except OSError as error:
        raise of_disk(error, out) from None
    try:
        remove_leftovers(out.parent, out.name)
        shutil.rmtree(scratch_of(out), ignore_errors=True)
        recover(out)
        _sign(descriptor, out)  # after what may fill the disk was removed
        yield f"{died} ended without finishing; what it left was removed" if died else None
    finally:
        path.unlink()
        os.close(descriptor)


def _sign(descriptor: int, out: Path) -> None:
    """Who holds the lock."""
    holder = f"process {os.getpid()} since {datetime.now(UTC).isoformat(timespec='seconds')}"
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, holder.encode(), 0)
    except OSError as error:
        raise of_disk(error, out) from None


def _acquire(path: Path, out: Path) -> tuple[int, str]:
    """The locked file, and who held it last: empty unless that run died, since a run that ends removes the file."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        holder = os.pread(descriptor, 200, 0).decode(errors="replace")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise LockedError(
                f"{out}: another run is at work ({holder or 'it has just begun'}); wait for it, or stop it"
            ) from None
        if path.exists() and os.fstat(descriptor).st_ino == path.stat().st_ino:
            return descriptor, holder
        os.close(descriptor)  # it was removed by the run that ended in between


def scratch_of(out: Path) -> Path:
    """Where a run on `out` keeps what it needs only while it runs."""
    return out.parent / f".{out.name}.scratch"
