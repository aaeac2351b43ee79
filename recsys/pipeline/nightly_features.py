"""The feature job over files and event stores."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from features import build
from features.build import FeaturesConfig
from recsys.contracts.artifact import Manifest

_URL: Final = re.compile(r"^(sqlite|postgresql)(\+\w+)?:")


def run(
    config: FeaturesConfig, sources: Sequence[str | Path], out: Path, *, full: bool = False, renumber: bool = False
) -> Manifest:
    """Bring the features at `out` up to date with logs and at most one event store, named by its URL.

    Raises:
        RecsysError: the store or a log cannot be used; the features are as they were.
    """
    urls = [str(source) for source in sources if _URL.match(str(source))]
    paths = [Path(source) for source in sources if not _URL.match(str(source))]
    if not urls:
        return build.run(config, paths, out, full=full, renumber=renumber)
    from recsys.pipeline import store_log  # loads SQLAlchemy, which files alone do not need

    return store_log.run(config, urls, paths, out, full=full, renumber=renumber)
