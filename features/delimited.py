"""Delimited text: the fast reader where each line is one row, the exact one everywhere else.

A reader that pads short lines, or lets an unclosed quote swallow the lines after it, loses events in
silence. So the fast reader's answer is taken only if it has as many rows as the file has lines; the
exact reader sets aside the very lines that are no rows and goes on with the next one.
"""

import csv
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

import polars as pl

from features.lines import LINE, BadLine, RawFile, decoded

MAX_RECORD_LINES: Final = 100
"""A quoted field may span this many lines; beyond, its quote counts as unclosed."""

_Line = tuple[int, str, bool]


def read_delimited(content: bytes, separator: str, header: tuple[str, ...], first_line: int = 1) -> RawFile:
    """Rows with the number of fields of the header; `header` names them where the content has none.

    Blank lines are no rows and no errors.
    """
    if content.endswith((b"\n\n", b"\n\r\n")):
        content = content.rstrip(b"\r\n")
    fast = _fast(content, separator, header, first_line)
    return _exact(content, separator, header, first_line) if fast is None else fast


def _fast(content: bytes, separator: str, header: tuple[str, ...], first_line: int) -> RawFile | None:
    """The rows, or None where line and row are not one and the same."""
    try:
        frame = pl.read_csv(
            content,
            separator=separator,
            has_header=not header,
            infer_schema=False,
            row_index_name=LINE,
            row_index_offset=first_line if header else first_line + 1,
        )
    except pl.exceptions.PolarsError:
        return None
    num_lines = content.count(b"\n") + (not content.endswith(b"\n"))
    if frame.height + (0 if header else 1) != num_lines or (header and frame.width != len(header) + 1):
        return None
    if header:
        frame.columns = [LINE, *header]
    return _without_short_lines(frame, content, separator, first_line)


def _without_short_lines(frame: pl.DataFrame, content: bytes, separator: str, first_line: int) -> RawFile:
    """Set aside lines that the fast reader padded: those whose last field is null because it is not there."""
    expected = frame.width - 1
    suspects = frame.filter(pl.col(frame.columns[-1]).is_null())[LINE].to_list()
    if not suspects or expected == 1:
        return RawFile(frame, [])
    lines = content.split(b"\n")
    bad: list[BadLine] = []
    gone: list[int] = []
    for number in suspects:
        text = lines[number - first_line].decode().rstrip("\r")
        fields = next(csv.reader([text], delimiter=separator)) if '"' in text else text.split(separator)
        if len(fields) != expected:
            gone.append(number)
            if text.strip():
                bad.append((number, _wrong_count(fields, expected), text))
    return RawFile(frame.filter(~pl.col(LINE).is_in(gone)) if gone else frame, bad)


def _exact(content: bytes, separator: str, header: tuple[str, ...], first_line: int) -> RawFile:
    """Record by record; a line that is no row, or not UTF-8, is set aside and costs no other line."""
    names = list(header)
    good: list[tuple[int, list[str]]] = []
    bad: list[BadLine] = []
    lines = decoded(content, first_line)
    for (number, text, is_text), fields in _records(lines, separator, len(names)):
        if not names:
            names = fields or [text]
        elif not is_text:
            bad.append((number, "not UTF-8", text))
        elif fields is None:
            bad.append((number, "unclosed quote", text))
        elif len(fields) != len(names):
            bad.append((number, _wrong_count(fields, len(names)), text))
        else:
            good.append((number, fields))
    columns: dict[str, Any] = {LINE: pl.Series([n for n, _ in good], dtype=pl.UInt32)}
    for i, name in enumerate(names):
        columns.setdefault(name, pl.Series([fields[i] or None for _, fields in good], dtype=pl.String))
    return RawFile(pl.DataFrame(columns), bad)


def _records(lines: list[_Line], separator: str, expected: int) -> Iterator[tuple[_Line, list[str] | None]]:
    """(first line, fields) of each record; fields are None where a quote is left open."""
    start = 0
    while start < len(lines):
        first = lines[start]
        if not first[1].strip():
            start += 1
            continue
        if '"' not in first[1]:
            fields: list[str] | None = first[1].split(separator)
            end = start + 1
        else:
            fields, end = _quoted(lines, start, separator, expected)
        expected = expected or len(fields or ())
        is_text = all(ok for _, _, ok in lines[start:end])
        yield (first[0], "\n".join(text for _, text, _ in lines[start:end]), is_text), fields
        start = end


def _quoted(lines: list[_Line], start: int, separator: str, expected: int) -> tuple[list[str] | None, int]:
    """A record with quotes and where it ends; a record over several lines must be flawless."""
    window = islice(lines, start, start + MAX_RECORD_LINES)
    reader = csv.reader((text + "\n" for _, text, _ in window), delimiter=separator, strict=True)
    try:
        fields = next(reader)
        if reader.line_num == 1 or len(fields) == expected:
            return fields, start + reader.line_num
    except csv.Error:
        pass  # the line alone decides, below
    text = lines[start][1]
    if text.count('"') % 2:
        return None, start + 1
    try:
        return next(csv.reader([text], delimiter=separator)), start + 1
    except csv.Error:
        return None, start + 1


def _wrong_count(fields: list[str], expected: int) -> str:
    return f"{len(fields)} fields, expected {expected}"
