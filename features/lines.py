"""Text that is no table: decoded lines, JSON lines, split lines, one line a user."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import polars as pl

from features.values import json_text

LINE: Final = "__line"
"""Line number in the file, from 1; record number for Parquet."""

NO_OBJECT: Final = "not a JSON object"

BadLine = tuple[int, str, str]
"""A line that is no row: (line, reason, text)."""


@dataclass(frozen=True, slots=True)
class RawFile:
    """What one file, or a part of it, holds."""

    rows: pl.DataFrame
    """Columns of the file, as strings or as a Parquet file has them, and LINE."""
    bad: list[BadLine]
    share: float = 1.0
    """How much of the file has been read after this part."""
    open_end: bool | None = None
    """Whether the last line of this part, which is the file's then, has no line break; None where none is needed."""


def decoded(content: bytes, first_line: int = 1) -> list[tuple[int, str, bool]]:
    """(line number, text, whether it is UTF-8) of each line."""
    lines = []
    for number, line in enumerate(content.split(b"\n"), start=first_line):
        try:
            lines.append((number, line.decode().rstrip("\r"), True))
        except UnicodeDecodeError:
            lines.append((number, line.decode(errors="replace").rstrip("\r"), False))
    return lines


def read_json_lines(content: bytes, first_line: int = 1, known_names: Iterable[str] = ()) -> RawFile:
    """One JSON object a line; values become their text. `known_names` are columns in any case."""
    good: list[dict[str, Any]] = []
    bad: list[BadLine] = []
    for number, text, is_text in decoded(content, first_line):
        if not text.strip():
            continue
        try:
            row = json.loads(text) if is_text else None
            if "\\u" in text:
                json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError:  # half a character, such as "\\ud83d": JSON can say it, UTF-8 cannot
            row, is_text = None, False
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            values = {key: json_text(value) for key, value in row.items()}
            good.append({LINE: number, **values})
        else:
            bad.append((number, NO_OBJECT if is_text else "not UTF-8", text))
    names = list(dict.fromkeys([LINE, *known_names, *(key for row in good for key in row)]))
    schema = {name: pl.UInt32 if name == LINE else pl.String for name in names}
    return RawFile(pl.DataFrame(good, schema=schema), bad)


def read_split(content: bytes, names: tuple[str, ...], separator: str | None, first_line: int = 1) -> RawFile:
    """Lines of exactly `names` fields between `separator`, or white space."""
    frame, bad = _lines(content, first_line)
    split = frame.with_columns(fields=_fields(separator)).collect()
    right = pl.col("fields").list.len() == len(names)
    bad += [
        (line, f"{len(fields)} fields, expected {len(names)}", text)
        for line, text, fields in split.filter(~right).select(LINE, "text", "fields").rows()
    ]
    columns = [pl.col("fields").list.get(i).alias(name) for i, name in enumerate(names)]
    return RawFile(split.filter(right).select(LINE, *columns), bad)


def read_sequences(content: bytes, first_line: int = 1) -> RawFile:
    """One line a user, one row an item; all rows of a user have the number of the user's line."""
    frame, bad = _lines(content, first_line)
    split = frame.with_columns(fields=_fields(None)).collect()
    short = split.filter(pl.col("fields").list.len() < 2)
    bad += [(line, "a user without items", text) for line, text in short.select(LINE, "text").rows()]
    rows = split.filter(pl.col("fields").list.len() >= 2).select(
        LINE, user=pl.col("fields").list.first(), item=pl.col("fields").list.slice(1)
    )
    return RawFile(rows.explode("item"), bad)


def _lines(content: bytes, first_line: int) -> tuple[pl.LazyFrame, list[BadLine]]:
    """Non-empty UTF-8 lines as a frame (LINE, text), and the lines that are not text."""
    lines = [line for line in decoded(content, first_line) if line[1].strip()]
    bad = [(number, "not UTF-8", text) for number, text, is_text in lines if not is_text]
    good = [(number, text.strip()) for number, text, is_text in lines if is_text]
    return pl.LazyFrame(good, schema={LINE: pl.UInt32, "text": pl.String}, orient="row"), bad


def _fields(separator: str | None) -> pl.Expr:
    if separator is None:
        return pl.col("text").str.replace_all(r"\s+", " ").str.split(" ")
    return pl.col("text").str.split(separator)
