"""Summaries of the most active users' closed windows, encoded in batch: nobody of them waits for one after a switch."""

import time
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from optimize.steps import Advance, Steps
from recsys.contracts.config import Config
from recsys.contracts.ids import Tokens
from recsys.dataset import Histories
from recsys.runtime.stored_summaries import StoredSummaries
from recsys.runtime.summaries import SummaryEngine
from recsys.store import HISTORY_CAP
from recsys.windows import WindowConfig, digest, serving_windows

_WINDOWS_OF_A_PART = 256
"""Encoded between two points from which a killed run goes on."""


class SummariesConfig(Config):
    """Which summaries are encoded beforehand; the endpoint encodes the others behind its first answers."""

    max_users: int = Field(default=10_000, ge=0)
    """The most active ones first: those with most events. Costs 12 kB of memory each while it is done."""
    max_minutes: float | None = Field(default=None, gt=0)
    """Stop after this long, with those who were most active."""


def build(
    engine: SummaryEngine,
    histories: Histories,
    window: WindowConfig,
    config: SummariesConfig,
    steps: Steps,
    settings: dict[str, Any],
    folder: Path,
    advance: Advance,
) -> dict[str, Any]:
    """Encode and write into `folder`; what the manifest says of it: windows, users, bytes, seconds.

    `settings` are what the encoding depends on beside the windows. Parts of it are steps: a killed run goes on after
    the last one.
    """
    started = time.monotonic()
    closed, of_user = _closed_windows(histories, window, config.max_users)
    names = list(closed)
    parts: list[Path] = []
    for start in range(0, len(names), _WINDOWS_OF_A_PART):
        if config.max_minutes is not None and time.monotonic() - started > 60 * config.max_minutes:
            break
        some = names[start : start + _WINDOWS_OF_A_PART]

        def encode(place: Path, some: list[str] = some) -> dict[str, Any]:
            np.save(place / "summaries.npy", engine.summaries([closed[name] for name in some]))
            return {}

        steps.run("summaries", settings | {"windows": some}, encode, after="rounded", part=len(parts))
        parts.append(steps.place("summaries", len(parts)) / "summaries.npy")
        advance("summaries", min(start + _WINDOWS_OF_A_PART, len(names)), len(names))
    if not parts:
        return {"num_windows": 0, "num_users": 0, "bytes": 0, "seconds": round(time.monotonic() - started, 2)}
    vectors_NMD = np.concatenate([np.load(part, allow_pickle=False) for part in parts])
    StoredSummaries.save(names[: len(vectors_NMD)], vectors_NMD, folder)
    done = set(names[: len(vectors_NMD)])
    return {
        "num_windows": len(vectors_NMD),
        "num_users": sum(done.issuperset(wanted) for wanted in of_user),
        "bytes": sum(
            (folder / name).stat().st_size for name in (StoredSummaries.DIGESTS_FILE, StoredSummaries.VECTORS_FILE)
        ),
        "seconds": round(time.monotonic() - started, 2),
    }


def _closed_windows(
    histories: Histories, window: WindowConfig, max_users: int
) -> tuple[dict[str, Tokens], list[list[str]]]:
    """By digest, those that an answer may read, of the users with most events first; and the digests of each user.

    Without those who have more events than the endpoint reads, which cuts their histories elsewhere.
    """
    lengths = np.where(histories.lengths < HISTORY_CAP, histories.lengths, 0)
    closed: dict[str, Tokens] = {}
    of_user: list[list[str]] = []
    for user in np.argsort(-lengths, kind="stable")[:max_users]:
        if lengths[user] <= window.size:
            break
        history = histories[user]
        windows = [history[each.start : each.stop] for each in serving_windows(len(history), window)[:-1]]
        of_user.append([digest(tokens) for tokens in windows])
        closed |= zip(of_user[-1], windows, strict=True)
    return closed, of_user
