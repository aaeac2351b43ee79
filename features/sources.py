"""Files to raw rows: every column a string, every row with its line number."""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from features.formats import Format, Layout
from recsys.contracts.errors import DataError

LINE = "__line"
"""Line number in the file, from 1; record number for Parquet."""

_SUFFIXES = {".csv", ".tsv", ".txt", ".dat", ".inter", ".data", ".jsonl", ".ndjson", ".json", ".parquet"}
_DELIMITERS = {".tsv": "\t", ".inter": "\t", ".data": "\t"}


@dataclass(frozen=True, slots=True)
class RawFile:
    """What one file holds."""

    rows: pl.DataFrame
    """Columns of the file as strings, and LINE."""
    bad: list[tuple[int, str, str]]
    """Lines that are no rows: (line, reason, text)."""


def find_files(sources: list[Path], layout: Format) -> list[Path]:
    """The log's files, sorted by name within each folder.

    Raises:
        DataError: a source is missing, or a folder holds no file of the format.
    """
    files: list[Path] = []
    for source in sources:
        if source.is_dir():
            found = sorted(p for p in source.iterdir() if p.is_file() and _belongs(p, layout))
            if not found:
                raise DataError(f"{source}: no event log in this folder; expected files ending in {_known_suffixes()}")
            files += found
        elif source.is_file():
            files.append(source)
        else:
            raise DataError(f"{source}: no such file or folder; check the path")
    return files


def read(path: Path, layout: Format) -> RawFile:
    """All rows of one file.

    Raises:
        DataError: empty, a damaged gzip or Parquet, or not text at all.
    """
    if path.stat().st_size == 0:
        raise DataError(f"{path}: file is empty (0 bytes); wait for its upload, or remove it")
    suffix = _suffix(path)
    if suffix == ".parquet":
        return _parquet(path)
    content = _content(path)
    if not content.strip():
        raise DataError(f"{path}: file holds no text; wait for its upload, or remove it")
    if suffix in {".jsonl", ".ndjson", ".json"}:
        return _json_lines(content)
    if layout.layout is Layout.SEQUENCE:
        return _sequences(content)
    if layout.layout is Layout.SPLIT and (layout.separator is None or layout.separator.encode() in content[:4096]):
        return _split(content, layout)
    header = layout.header if layout.layout is Layout.TABLE or suffix == ".data" else ()
    return _delimited(content, _delimiter(layout, suffix), header)


def _belongs(path: Path, layout: Format) -> bool:
    if path.name.startswith(".") or path.name.upper().startswith("README"):
        return False
    return _suffix(path) in _SUFFIXES and re.fullmatch(layout.file_pattern, path.name) is not None


def _known_suffixes() -> str:
    return ", ".join(sorted(_SUFFIXES)) + " (also with .gz)"


def _suffix(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def _delimiter(layout: Format, suffix: str) -> str:
    if layout.layout is Layout.TABLE and layout.separator is not None:
        return layout.separator
    return _DELIMITERS.get(suffix, ",")


def _content(path: Path) -> bytes:
    data = path.read_bytes()
    if path.name.endswith(".gz"):
        try:
            data = gzip.decompress(data)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{path}: damaged or half-uploaded gzip ({error}); upload it again") from None
    return data.removeprefix(b"\xef\xbb\xbf")


def _parquet(path: Path) -> RawFile:
    try:
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path}: not a sound Parquet file ({str(error).splitlines()[0]}); write it again") from None
    return RawFile(frame.cast(pl.String).with_row_index(LINE, offset=1), [])


def _delimited(content: bytes, separator: str, header: tuple[str, ...]) -> RawFile:
    """The fast reader, and the exact one where it refuses a line."""
    options: dict[str, Any] = {"with_column_names": lambda names: _names(names, header)} if header else {}
    try:
        lazy = pl.scan_csv(
            io.BytesIO(content),
            separator=separator,
            has_header=not header,
            infer_schema=False,
            row_index_name=LINE,
            row_index_offset=1 if header else 2,
            **options,
        )
        return RawFile(lazy.collect(), [])
    except pl.exceptions.PolarsError:
        return _delimited_exactly(content, separator, header)


def _names(found: list[str], header: tuple[str, ...]) -> list[str]:
    if len(found) != len(header):
        raise pl.exceptions.ShapeError(f"{len(found)} fields in the first line")
    return list(header)


def _delimited_exactly(content: bytes, separator: str, header: tuple[str, ...]) -> RawFile:
    """Line by line: a line with another number of fields than the header, or not UTF-8, is set aside."""
    lines = _decoded(content)
    good: list[tuple[int, list[str]]] = []
    bad: list[tuple[int, str, str]] = []
    names = list(header)
    reader = csv.reader((text for _, text, _ in lines), delimiter=separator)
    start = 0
    for fields in reader:
        number, _, is_text = lines[start]
        text = "\n".join(line for _, line, _ in lines[start : reader.line_num])
        is_text = all(ok for _, _, ok in lines[start : reader.line_num])
        start = reader.line_num
        if not names:
            names = fields
        elif not fields:
            continue
        elif not is_text:
            bad.append((number, "not UTF-8", text))
        elif len(fields) != len(names):
            bad.append((number, f"{len(fields)} fields, expected {len(names)}", text))
        else:
            good.append((number, fields))
    columns: dict[str, Any] = {LINE: pl.Series([n for n, _ in good], dtype=pl.UInt32)}
    for i, name in enumerate(names):
        columns[name] = pl.Series([fields[i] or None for _, fields in good], dtype=pl.String)
    return RawFile(pl.DataFrame(columns), bad)


def _decoded(content: bytes) -> list[tuple[int, str, bool]]:
    """(line number, text, whether it is UTF-8) of each line."""
    lines = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        try:
            lines.append((number, line.decode().rstrip("\r"), True))
        except UnicodeDecodeError:
            lines.append((number, line.decode(errors="replace").rstrip("\r"), False))
    return lines


def _json_lines(content: bytes) -> RawFile:
    good: list[dict[str, Any]] = []
    bad: list[tuple[int, str, str]] = []
    for number, text, is_text in _decoded(content):
        if not text.strip():
            continue
        try:
            row = json.loads(text) if is_text else None
        except ValueError:
            row = None
        if isinstance(row, dict):
            values = {key: None if value is None else str(value) for key, value in row.items()}
            good.append({LINE: number, **values})
        else:
            bad.append((number, "not a JSON object" if is_text else "not UTF-8", text))
    names = list(dict.fromkeys(key for row in good for key in row)) or [LINE]
    schema = {name: pl.UInt32 if name == LINE else pl.String for name in names}
    return RawFile(pl.DataFrame(good, schema=schema), bad)


def _lines(content: bytes) -> tuple[pl.LazyFrame, list[tuple[int, str, str]]]:
    """Non-empty UTF-8 lines as a frame (LINE, text), and the lines that are not text."""
    decoded = [line for line in _decoded(content) if line[1].strip()]
    bad = [(number, "not UTF-8", text) for number, text, is_text in decoded if not is_text]
    good = [(number, text.strip()) for number, text, is_text in decoded if is_text]
    return pl.LazyFrame(good, schema={LINE: pl.UInt32, "text": pl.String}, orient="row"), bad


def _fields(separator: str | None) -> pl.Expr:
    if separator is None:
        return pl.col("text").str.replace_all(r"\s+", " ").str.split(" ")
    return pl.col("text").str.split(separator)


def _split(content: bytes, layout: Format) -> RawFile:
    frame, bad = _lines(content)
    count = len(layout.header)
    split = frame.with_columns(fields=_fields(layout.separator)).collect()
    wrong = split.filter(pl.col("fields").list.len() != count)
    bad += [
        (line, f"{len(fields)} fields, expected {count}", text)
        for line, text, fields in wrong.select(LINE, "text", "fields").rows()
    ]
    right = split.filter(pl.col("fields").list.len() == count)
    columns = [pl.col("fields").list.get(i).alias(name) for i, name in enumerate(layout.header)]
    return RawFile(right.select(LINE, *columns), bad)


def _sequences(content: bytes) -> RawFile:
    frame, bad = _lines(content)
    split = frame.with_columns(fields=_fields(None)).collect()
    short = split.filter(pl.col("fields").list.len() < 2)
    bad += [(line, "a user without items", text) for line, text in short.select(LINE, "text").rows()]
    rows = split.filter(pl.col("fields").list.len() >= 2).select(
        LINE, user=pl.col("fields").list.first(), item=pl.col("fields").list.slice(1)
    )
    return RawFile(rows.explode("item"), bad)


def titles(beside: Path, layout: Format) -> Iterator[tuple[str, str, str]]:
    """(item_id, title, category) from the file of titles beside a log, if there is one."""
    if layout.titles_file is None or not (beside.parent / layout.titles_file).is_file():
        return
    for line in (beside.parent / layout.titles_file).read_text(encoding="latin-1").splitlines():
        fields = line.split("::")
        if len(fields) == 3:
            yield fields[0], fields[1], fields[2]
