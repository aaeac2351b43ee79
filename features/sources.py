"""Files to raw rows: every column a string, every row with its line number."""

import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import polars.selectors as cs

from features.delimited import read_delimited
from features.formats import Format, Layout
from features.lines import LINE, RawFile, read_json_lines, read_sequences, read_split
from recsys.contracts.errors import DataError

_SUFFIXES = {".csv", ".tsv", ".txt", ".dat", ".inter", ".data", ".jsonl", ".ndjson", ".json", ".parquet"}
_DELIMITERS = {".tsv": "\t", ".inter": "\t", ".data": "\t"}


def find_files(sources: list[Path], layout: Format) -> list[Path]:
    """The log's files, sorted by name within each folder.

    Raises:
        DataError: a source is missing, or a folder holds no file of the format.
    """
    if not sources:
        raise DataError("no event log given; name a file or a folder")
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
        return read_json_lines(content)
    if layout.layout is Layout.SEQUENCE:
        return read_sequences(content)
    if layout.layout is Layout.SPLIT and (layout.separator is None or layout.separator.encode() in content[:4096]):
        return read_split(content, layout.header, layout.separator)
    header = layout.header if layout.layout is Layout.TABLE or suffix == ".data" else ()
    if not header:
        _check_text(path, content)
    return read_delimited(content, _delimiter(layout, suffix), header)


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
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; check its permissions") from None
    if path.name.endswith(".gz"):
        try:
            data = gzip.decompress(data)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{path}: damaged or half-uploaded gzip ({error}); upload it again") from None
    return data.removeprefix(b"\xef\xbb\xbf")


def _check_text(path: Path, content: bytes) -> None:
    """Refuse a file whose first line is no UTF-8 text: no column would be found in it."""
    first = content[: content.find(b"\n") + 1] or content
    try:
        is_text = b"\0" not in first and bool(first.decode())
    except UnicodeDecodeError:
        is_text = False
    if not is_text:
        raise DataError(f"{path}: the first line is not UTF-8 text, found {first[:20]!r}; save the file as UTF-8")


def _parquet(path: Path) -> RawFile:
    try:
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path}: not a sound Parquet file ({str(error).splitlines()[0]}); write it again") from None
    columns = [_as_text(column) for column in frame.select(~(cs.nested() | cs.object()))]
    flat = pl.DataFrame([column for column in columns if column is not None])
    return RawFile(flat.with_row_index(LINE, offset=1), [])


def _as_text(column: pl.Series) -> pl.Series | None:
    """The column as strings; None for binary data that is no text, which no field of an event can be."""
    try:
        return column.cast(pl.String)
    except pl.exceptions.PolarsError:
        return None


def titles(beside: Path, layout: Format) -> Iterator[tuple[str, str, str]]:
    """(item_id, title, category) from the file of titles beside a log, if there is one."""
    if layout.titles_file is None or not (beside.parent / layout.titles_file).is_file():
        return
    for line in (beside.parent / layout.titles_file).read_text(encoding="latin-1").splitlines():
        fields = line.split("::")
        if len(fields) == 3:
            yield fields[0], fields[1], fields[2]
