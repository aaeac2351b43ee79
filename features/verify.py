"""Looking for damage in a features artifact: all its files at once, without a lock."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from features import trouble
from recsys.contracts.artifact import Manifest, is_in_place, manifest_of
from recsys.contracts.errors import DamagedError


@dataclass(frozen=True, slots=True)
class Verified:
    """A sound artifact."""

    digest: str
    created_at: str
    num_files: int
    size_bytes: int
    """Of all files together, the manifest aside."""


def run(features: Path) -> Verified:
    """Hold every file of the artifact to its size and sha256; where a run publishes another meanwhile, those of that.

    Raises:
        ArtifactError: no features artifact of this program's version here.
        DamagedError: a file is not as it was written; the line names the first, and says how many more there are.
    """
    while problems := _problems(features, manifest := manifest_of(features, "features")):
        if is_in_place(features, manifest):
            more = f" ({len(problems) - 1:,} more files of it are damaged)" if len(problems) > 1 else ""
            raise DamagedError(f"{problems[0]}{more}")
    size_bytes = sum(entry.size_bytes for entry in manifest.files.values())
    return Verified(manifest.digest, manifest.created_at, len(manifest.files), size_bytes)


def _problems(features: Path, manifest: Manifest) -> list[str]:
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda file: trouble.problem_of(features, *file), manifest.files.items())
        return [problem for problem in found if problem is not None]
