"""What a new file has to have in common with the files before it: their columns, but for what may be left out."""

from pathlib import Path
from typing import Any, Final

from features.clean import OPTIONAL, CleanBatch
from features.event_files import is_one
from features.sources import is_json
from recsys.contracts.errors import RefusedError

_IN_EVERY_OBJECT: Final = {"event_type", "event_id"}
"""What a JSON log has in every object if it has it at all; descriptions are often left out where there is none."""


class Expected:
    """What the files before tonight's have: their columns, and whether their last lines end."""

    def __init__(self, metrics: dict[str, Any]) -> None:
        """`metrics` are those of the artifact; empty ones, as of a full build, expect nothing."""
        self.fields = set(metrics.get("fields", []))
        self._optional = optional(metrics)
        self._ends = [entry["open_end"] for entry in metrics.get("source_files", []) if "open_end" in entry]

    def check_columns(self, path: Path, found: set[str]) -> None:
        """Refuse a new file that lacks a field.

        Raises:
            RefusedError: it does.
        """
        missing = sorted(lacking(path, found, self.fields - self._optional)) if found else []
        if missing:
            raise RefusedError(
                f"{path}: the header changed: no column for {', '.join(missing)}, which the files before it have; "
                "correct the file, or accept the new header with --full"
            )

    def check_end(self, path: Path, batch: CleanBatch) -> None:
        """Refuse a new file whose last row has no line break, unless one before it has none either.

        Raises:
            RefusedError: it has none.
        """
        if batch.open_end and self._ends and not any(self._ends):
            raise RefusedError(
                f"{path}: line {batch.events['row'][-1]:,}, the last one, has no line break at its end, and those of "
                "the files before it have: it may be cut off; upload the file again, or end the line if it is whole, "
                "or accept such files with --full"
            )


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
