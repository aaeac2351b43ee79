"""Rows set aside: file, line, reason, and what stood there."""

import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, Final

import polars as pl

from features.tombstones import Tombstones

QUARANTINE_FILE: Final = "quarantine.csv"
WITHHELD: Final = "(withheld: users have been forgotten)"
_COLUMNS = ("file", "line", "reason", "row")
_HAS_USER: Final = r"^(item|timestamp|event type|price|user is longer|\w+ is no number)\b"
"""Reasons of rows whose user could be read. The text of any other row may hold an id in other words: quoted, say."""
_SEPARATORS = re.compile(r"[,;|:\s\"']+")


class Quarantine:
    """Collects the bad rows of a run, in a file: there may be more than memory holds."""

    def __init__(self, tombstones: Tombstones, folder: Path) -> None:
        """`folder` is the run's own, and there when rows are added."""
        self._tombstones = tombstones
        self._path = folder / QUARANTINE_FILE
        self._reasons: Counter[str] = Counter()
        self._forgotten: list[str] = []

    def add(self, rows: pl.DataFrame) -> None:
        """Columns file, line, reason, row, user; the text of a forgotten user's row is not kept."""
        if len(self._tombstones) and len(rows):
            texts = [
                row if user is not None and not self._names_forgotten(user, row) else WITHHELD
                for user, row in rows.select("user", "row").iter_rows()
            ]
            rows = rows.with_columns(row=pl.Series(texts, dtype=pl.String))
        if len(rows):
            self._reasons.update(rows["reason"].to_list())
            with self._path.open("ab") as file:
                rows.select(_COLUMNS).write_csv(file, include_header=False)

    def _names_forgotten(self, user: str, row: str) -> bool:
        return any(self._tombstones.holds(word) for word in (user, *_SEPARATORS.split(row)))

    def forget(self, user_ids: list[str]) -> None:
        """Withhold the text of earlier rows that name these users, or whose user could not be read."""
        self._forgotten = user_ids

    def reasons(self, before: dict[str, Any]) -> dict[str, int]:
        """Rows by reason, those of earlier nights included."""
        return dict(sorted((Counter(before) + self._reasons).items()))

    def write(self, path: Path, older: Path | None) -> None:
        """The earlier rows, if any, then those of this run."""
        if older is not None:
            self._carry_over(older / QUARANTINE_FILE, path)
        else:
            pl.DataFrame(schema=dict.fromkeys(_COLUMNS, pl.String)).write_csv(path)
        if self._path.exists():
            with self._path.open("rb") as rows, path.open("ab") as file:
                shutil.copyfileobj(rows, file)

    def _carry_over(self, older: Path, path: Path) -> None:
        if not self._forgotten:
            shutil.copyfile(older, path)
            return
        rows = pl.read_csv(older, infer_schema=False, glob=False)
        may_name_one = pl.col("row").str.contains_any(self._forgotten) | ~pl.col("reason").str.contains(_HAS_USER)
        rows.with_columns(row=pl.when(may_name_one).then(pl.lit(WITHHELD)).otherwise("row")).write_csv(path)
