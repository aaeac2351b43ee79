"""How often a test set was looked at: one line an evaluation, in a file beside the releases.

Every look at a test set that leads to a choice wears it out; the report says how many there were.
Source: Dwork et al., Science 349(6248), 2015 (reuse of a holdout).
"""

import hashlib
import json
import os
from pathlib import Path

from pydantic import ValidationError

from recsys.contracts.artifact import Manifest
from recsys.contracts.config import Config, first_problem
from recsys.contracts.errors import DataError
from recsys.contracts.protocol import Protocol

LOG_FILE = "evaluations.jsonl"


class Look(Config):
    """One evaluation on a test set."""

    at: str
    """Time of the evaluation, ISO 8601."""
    test_set: str
    """What was looked at; see `test_set_digest`."""
    release: str
    """Digest of the release."""
    features: str
    """Digest of the features artifact."""
    protocol: Protocol
    metric: str
    """The primary metric."""
    value: float
    against: str | None
    """Digest of the release, or name of the baseline, that it was compared with."""


def test_set_digest(features: Manifest, protocol: Protocol) -> str:
    """The same for the same histories cut at the same place, also after the features were built again."""
    body = [features.metrics["content_digest"], features.metrics.get("split_ms"), protocol.value]
    return hashlib.sha256(json.dumps(body).encode()).hexdigest()


test_set_digest.__test__ = False  # type: ignore[attr-defined]  # not a pytest function


def read(log: Path) -> list[Look]:
    """All looks, oldest first; none where there is no file.

    Raises:
        DataError: a line is not a look.
    """
    if not log.exists():
        return []
    looks = []
    for number, line in enumerate(log.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            looks.append(Look.model_validate_json(line))
        except ValidationError as error:
            problem = first_problem(error, list(Look.model_fields))
            raise DataError(f"{log}, line {number}: {problem}; mend the line, or move the file away") from None
    return looks


def record(log: Path, look: Look) -> int:
    """Append a line, durable on return; returns how often this test set has been looked at, this time included.

    Raises:
        DataError: the log holds a line that is not a look; nothing is appended.
    """
    before = sum(old.test_set == look.test_set for old in read(log))
    with log.open("a", encoding="utf-8") as file:
        file.write(look.model_dump_json() + "\n")
        file.flush()
        os.fsync(file.fileno())
    return before + 1
