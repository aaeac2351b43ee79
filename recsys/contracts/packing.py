"""Files of a release, packed by gzip or plain. The reader takes what it finds."""

import gzip
import zlib
from pathlib import Path
from typing import Final

from recsys.contracts.errors import ArtifactError

SUFFIX: Final = ".gz"


def place(path: Path, packed: bool) -> Path:
    """Where `path` is written: a packed file bears the suffix."""
    return path.with_name(path.name + SUFFIX) if packed else path


def found(path: Path) -> Path:
    """The packed file where there is one, else `path` itself."""
    packed = place(path, packed=True)
    return packed if packed.is_file() else path


def write(path: Path, content: bytes, packed: bool) -> None:
    """Write `content`; the same content gives the same bytes, packed or not."""
    place(path, packed).write_bytes(gzip.compress(content, mtime=0) if packed else content)


def read(path: Path) -> bytes:
    """What `write` was given.

    Raises:
        ArtifactError: the packed file is damaged.
    """
    stored = found(path)
    content = stored.read_bytes()
    if stored == path:
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ArtifactError(f"{stored}: damaged: {error}; build the artifact again") from None
