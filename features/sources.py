"""Files to raw rows: every column a string, every row with its line number."""

import errno
import gzip
import os
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import polars as pl
import polars.selectors as cs

from features.delimited import MAX_RECORD_LINES, read_delimited
from features.event_files import STORE_NAME
from features.formats import Format, Layout
from features.lines import LINE, RawFile, read_json_lines, read_sequences, read_split
from features.trouble import reading
from recsys.contracts.errors import DataError, RefusedError

BLOCK_BYTES: Final = 8 << 20
"""Text is read in blocks of whole lines of about this size: the C library gives larger ones new pages each time."""
MAX_LINE_BYTES: Final = 16 << 20
"""Longest line that is read on after a block."""
BATCH_ROWS: Final = 1_000_000
"""Parquet is read in parts of this many rows."""

_JSON = {".jsonl", ".ndjson", ".json"}
_TYPED = {".parquet", *_JSON}
_SUFFIXES = {".csv", ".tsv", ".txt", ".dat", ".inter", ".data", *_TYPED}
_DELIMITERS = {".tsv": "\t", ".inter": "\t", ".data": "\t"}


@reading()
def find_files(sources: list[Path], layout: Format) -> list[Path]:
    """The log's files, sorted by name within each folder.

    Raises:
        DataError: a source is missing or cannot be read, a folder has no file of the format, or a link leads nowhere.
    """
    if not sources:
        raise DataError("no event log given; name a file or a folder")
    files: list[Path] = []
    for source in sources:
        if source.is_dir():
            found = sorted(p for p in source.iterdir() if _belongs(p, layout) and _is_file(p))
            if not found:
                others = ", ".join(passed_over([source], layout)[:3]) or "nothing"
                raise DataError(
                    f"{source}: no event log in this folder; expected files ending in {_known_suffixes()}, "
                    f"found {others}"
                )
            files += found
        elif source.is_file():
            files.append(source)
        else:
            raise DataError(f"{source}: no such file or folder; check the path")
    return files


def passed_over(sources: list[Path], layout: Format) -> list[str]:
    """Names of what is not read in the folders, folders within them included; notes and hidden files aside."""
    others = {
        f"{path.name}/" if path.is_dir() else path.name
        for source in sources
        if source.is_dir()
        for path in source.iterdir()
        if not _is_note(path) and not (_belongs(path, layout) and path.is_file())
    }
    return sorted(others - {layout.titles_file, STORE_NAME})


def is_gzip(path: Path) -> bool:
    """Whether a file's name says that it is compressed."""
    return path.name.lower().endswith(".gz")


def read(path: Path, layout: Format) -> Iterator[RawFile]:
    """All rows of one file, part by part, so that memory does not grow with the file.

    Raises:
        DataError: it cannot be read.
        RefusedError: empty, a damaged gzip or Parquet, or not text at all.
    """
    with reading():
        yield from _parts(path, layout)


def _parts(path: Path, layout: Format) -> Iterator[RawFile]:
    if path.stat().st_size == 0:
        raise RefusedError(f"{path}: file is empty (0 bytes); wait for its upload, or remove it")
    if _suffix(path) == ".parquet":
        yield from _parquet(path)
        return
    parts = _blocks(path)
    first_line, content, share = next(parts, (1, b"", 1.0))
    reader = _reader(path, layout, content)
    names: tuple[str, ...] = ()
    while content:
        raw = reader(content, first_line, names)
        names = tuple(name for name in raw.rows.columns if name != LINE)
        open_end = None if is_json(path) else content[content.rfind(b"\n") + 1 :].strip() != b""
        yield RawFile(raw.rows, raw.bad, share, open_end)
        first_line, content, share = next(parts, (1, b"", 1.0))


def _reader(path: Path, layout: Format, content: bytes) -> Callable[[bytes, int, tuple[str, ...]], RawFile]:
    """What reads a block of this file: (content, first line, names of the columns so far)."""
    suffix = _suffix(path)
    if not content.strip():
        raise RefusedError(f"{path}: file holds no text; wait for its upload, or remove it")
    if suffix in _JSON:
        return read_json_lines
    if layout.layout is Layout.SEQUENCE:
        return lambda block, line, _: read_sequences(block, line)
    if layout.layout is Layout.SPLIT and (layout.separator is None or layout.separator.encode() in content[:4096]):
        return lambda block, line, _: read_split(block, layout.header, layout.separator, line)
    header = layout.header if layout.layout is Layout.TABLE or suffix == ".data" else ()
    if not header:
        _check_text(path, content)
    return lambda block, line, names: read_delimited(block, _delimiter(layout, suffix), names or header, line)


def _blocks(path: Path) -> Iterator[tuple[int, bytes, float]]:
    """(number of the first line, whole lines, share of the file read so far), about BLOCK_BYTES at a time."""
    size, line, held_back = path.stat().st_size, 1, b""
    try:
        with path.open("rb") as raw, gzip.open(raw) if is_gzip(path) else raw as file:
            while read := file.read(BLOCK_BYTES):
                read = read.removeprefix(b"\xef\xbb\xbf") if line == 1 and not held_back else read
                rest = file.readline(MAX_LINE_BYTES)
                block = b"".join((held_back, read, rest))
                if len(rest) == MAX_LINE_BYTES and not rest.endswith(b"\n"):
                    number = line + block.count(b"\n")
                    raise RefusedError(
                        f"{path}: line {number:,} is longer than {MAX_LINE_BYTES >> 20} MiB; expected one row a line, "
                        "correct the file"
                    )
                end = _safe_end(block)
                block, held_back = block[:end], block[end:]
                if block:
                    yield line, block, min(1.0, raw.tell() / size)
                line += block.count(b"\n")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise RefusedError(f"{path}: damaged or half-uploaded gzip ({error}); upload it again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; check its permissions") from None
    if held_back:
        yield line, held_back, 1.0


def _safe_end(block: bytes) -> int:
    """Where to end a block so that no quoted record is cut in two.

    A record over several lines begins and ends with a line that has an odd number of quotes, and spans at
    most MAX_RECORD_LINES. So what is kept ends before the first of the last odd lines, found backwards up to
    so many lines without one.
    """
    safe = end = len(block)
    num_even = 0
    while end > 0 and num_even < MAX_RECORD_LINES:
        start = block.rfind(b"\n", 0, end - 1) + 1
        if block.count(b'"', start, end) % 2:
            safe, num_even = start, 0
        else:
            num_even += 1
        end = start
    return safe


def _is_file(path: Path) -> bool:
    if path.is_symlink() and not path.exists():
        raise DataError(f"{path}: a link that leads nowhere, to {path.readlink()}; mend it, or remove it")
    return path.is_file()


def _is_note(path: Path) -> bool:
    return path.name.startswith(".") or path.name.upper().startswith("README")


def _belongs(path: Path, layout: Format) -> bool:
    return (
        not _is_note(path) and _suffix(path) in _SUFFIXES and re.fullmatch(layout.file_pattern, path.name) is not None
    )


def _known_suffixes() -> str:
    return ", ".join(sorted(_SUFFIXES)) + " (also with .gz)"


def _suffix(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def is_json(path: Path) -> bool:
    """Whether a file of this name has one JSON object a line, which may leave out what it has no value for."""
    return _suffix(path) in _JSON


def is_typed(name: str) -> bool:
    """Whether a file of this name has values of several types, and not texts alone."""
    return _suffix(Path(name)) in _TYPED


def _delimiter(layout: Format, suffix: str) -> str:
    if layout.layout is Layout.TABLE and layout.separator is not None:
        return layout.separator
    return _DELIMITERS.get(suffix, ",")


def _check_text(path: Path, content: bytes) -> None:
    """Refuse a file whose first line is no UTF-8 text: no column would be found in it."""
    first = content[: content.find(b"\n") + 1] or content
    try:
        is_text = b"\0" not in first and bool(first.decode())
    except UnicodeDecodeError:
        is_text = False
    if not is_text:
        raise RefusedError(f"{path}: the first line is not UTF-8 text, found {first[:20]!r}; save the file as UTF-8")


def _parquet(path: Path) -> Iterator[RawFile]:
    """Parts of BATCH_ROWS rows, or one of none, in the types of the file except for what no text is."""
    try:
        scan = pl.scan_parquet(path, glob=False)
        num_rows = int(scan.select(pl.len()).collect().item())
        for start in range(0, max(1, num_rows), BATCH_ROWS):  # of no rows, too, the columns are checked
            frame = scan.slice(start, BATCH_ROWS).select(~(cs.nested() | cs.object())).collect()
            columns = [_readable(column) for column in frame]
            flat = pl.DataFrame([column for column in columns if column is not None])
            share = min(1.0, (start + BATCH_ROWS) / max(1, num_rows))
            yield RawFile(flat.with_row_index(LINE, offset=start + 1), [], share)
    except (FileNotFoundError, PermissionError) as error:  # of polars, which says neither number nor name apart
        number = errno.ENOENT if isinstance(error, FileNotFoundError) else errno.EACCES
        raise OSError(number, os.strerror(number), str(path)) from None
    except (pl.exceptions.PolarsError, OSError) as error:
        raise RefusedError(f"{path}: not a sound Parquet file ({str(error).splitlines()[0]}); write it again") from None


def _readable(column: pl.Series) -> pl.Series | None:
    """Numbers and moments as they are, the rest as strings; None for binary data that is no text, and for durations."""
    if column.dtype.is_numeric() or (column.dtype.is_temporal() and column.dtype != pl.Duration):
        return column
    try:
        return column.cast(pl.String)
    except pl.exceptions.PolarsError:
        return None


def titles(beside: Path, layout: Format) -> pl.DataFrame:
    """item_id, title and category from the file of titles beside a log; no rows if there is none."""
    rows: list[list[str]] = []
    if layout.titles_file is not None and (beside.parent / layout.titles_file).is_file():
        lines = (beside.parent / layout.titles_file).read_text(encoding="latin-1").splitlines()
        rows = [line.split("::") for line in lines if line.count("::") == 2]
    schema = {"item_id": pl.String, "title": pl.String, "category": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row").unique("item_id", keep="first", maintain_order=True)
