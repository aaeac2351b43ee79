"""How often a test set was looked at: one line an evaluation, beside the releases or in a benchmark's folder.

Every look at a test set that leads to a choice wears it out; the report says how many there were.
Source: Dwork et al., Science 349(6248), 2015 (reuse of a holdout).
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from pydantic import ValidationError

from recsys.contracts.config import Config, first_problem
from recsys.contracts.errors import DataError
from recsys.contracts.protocol import Protocol
from recsys.dataset import Dataset

LOG_FILE = "evaluations.jsonl"


class Look(Config):
    """One evaluation on a test set."""

    at: str
    """Time of the evaluation, ISO 8601."""
    test_set: str
    """What was looked at; see `test_set_digest`."""
    release: str
    """Digest of the release; of the checkpoint where none was made of it, or not yet."""
    features: str
    """Digest of the features artifact."""
    protocol: Protocol
    metric: str
    """The primary metric."""
    value: float | None
    """Its mean over users; None where it was not computed."""
    against: str | None
    """Digest of the release, or name of the baseline, that it was compared with."""

    @classmethod
    def now(
        cls, data: Dataset, release: str, value: float | None, *, metric: str = "ndcg@10", against: str | None = None
    ) -> Self:
        """A look at the test set of `data` at this moment."""
        return cls(
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            test_set=test_set_digest(data),
            release=release,
            features=data.manifest.digest,
            protocol=data.protocol,
            metric=metric,
            value=value,
            against=against,
        )


def test_set_digest(data: Dataset) -> str:
    """The same for the same histories cut at the same place, also after the features were built again."""
    body = [data.manifest.metrics["content_digest"], data.split_ms, data.protocol.value]
    return hashlib.sha256(json.dumps(body).encode()).hexdigest()


test_set_digest.__test__ = False  # type: ignore[attr-defined]  # not a pytest function


def read(log: Path) -> list[Look]:
    """All looks, oldest first; none where there is no file.

    Raises:
        DataError: a line is not a look.
    """
    if not log.exists():
        return []
    with log.open("rb") as file, _locked(file.fileno(), fcntl.LOCK_SH):
        return _parsed(log, file.read())


def record(log: Path, look: Look) -> int:
    """Append a line, durable on return; returns how often this test set has been looked at, this time included.

    Several may write and read at a time: none is lost, and nobody sees half a line.

    Raises:
        DataError: the log holds a line that is not a look; nothing is appended.
    """
    line = f"{look.model_dump_json()}\n".encode()
    descriptor = os.open(log, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    with os.fdopen(descriptor, "rb") as file, _locked(descriptor, fcntl.LOCK_EX):
        before = _parsed(log, file.read())
        if os.write(descriptor, line) != len(line):
            raise DataError(f"{log}: the disk is full; mend the last line, free some space and run again")
        os.fsync(descriptor)
    return 1 + sum(other.test_set == look.test_set for other in before)


@contextmanager
def _locked(descriptor: int, kind: int) -> Iterator[None]:
    """The kernel's lock on an open file: without it a reader sees a line that crosses a page in two pieces."""
    fcntl.flock(descriptor, kind)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _parsed(log: Path, content: bytes) -> list[Look]:
    looks = []
    for number, line in enumerate(content.decode(errors="replace").splitlines(), start=1):
        try:
            looks.append(Look.model_validate_json(line))
        except ValidationError as error:
            problem = first_problem(error, list(Look.model_fields))
            raise DataError(f"{log}, line {number}: {problem}; mend the line, or move the file away") from None
    return looks
