"""Which columns a file has to have: those that the files before it have, but for what may be left out."""

from pathlib import Path
from typing import Any, Final

from features.clean import OPTIONAL
from features.event_files import is_one
from features.sources import is_json

_IN_EVERY_OBJECT: Final = {"event_type", "event_id"}
"""What a JSON log has in every object if it has it at all; descriptions are often left out where there is none."""


def lacking(path: Path, found: set[str], expected: set[str]) -> set[str]:
    """The expected fields that a file with the fields `found` should have and has not; a store's file has its own."""
    if is_one(path):
        return set()
    missing = expected - found
    return missing & _IN_EVERY_OBJECT if is_json(path) else missing


def optional(metrics: dict[str, Any]) -> set[str]:
    """Fields that a new file may lack although others have them: `--full` has accepted files without them.

    `metrics` are those of the artifact, or empty. An older program has not noted which these are: all that some of
    its files lacked may be.
    """
    if "fields" not in metrics:
        return set()
    return set(metrics.get("optional_fields", set(OPTIONAL) - set(metrics["fields"])))
