"""What pruning costs: the scores of items, and the share of events and users that each threshold loses."""

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from features.catalogue import counts_by_type
from recsys.contracts.pruning import PruningPolicy
from recsys.histories import Generation

THRESHOLDS: Final = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)


def scores(
    policy: PruningPolicy,
    items: pl.DataFrame,
    event_types: list[str],
    last_ms: int,
    folder: Path,
    generations: list[Generation],
) -> npt.NDArray[np.float64]:
    """The policy's score of each item over all events, in order of item_index.

    Without a period it follows from the counts by type; with one, the stored events are scanned.
    """
    weights = policy.type_scores(event_types)
    since = policy.since_ms(last_ms)
    if since is None:
        return np.asarray(counts_by_type(items) @ weights)
    files = [folder / name for g in generations for name in g.file_names()]
    stored = pl.scan_parquet(files, missing_columns="insert", extra_columns="ignore", glob=False)
    recent = stored.select("item_index", "event_type", "timestamp_ms").filter(pl.col("timestamp_ms") >= since)
    counts = recent.group_by("item_index", "event_type").len().collect(engine="streaming")
    scored = weights[counts["event_type"].to_numpy()] * counts["len"].to_numpy()
    total = np.bincount(counts["item_index"].to_numpy(), weights=scored, minlength=len(items) + 1)
    return total[1:].astype(np.float64)


def cost(
    min_count: int, items: pl.DataFrame, scores: npt.NDArray[np.float64], sample: pl.DataFrame
) -> list[dict[str, Any]]:
    """One row per threshold: items kept, share of events lost, share of users left without an event.

    `sample` holds the events of one partition, a random part of the users (of a small log: all of them),
    by user. The shares of users are theirs.
    """
    num_events = items["num_events"].to_numpy().astype(np.int64)
    user = sample["user_index"].to_numpy()
    starts = np.flatnonzero(np.diff(user, prepend=-1 if len(user) == 0 else int(user[0]) - 1))
    best = np.maximum.reduceat(scores[sample["item_index"].to_numpy() - 1], starts) if len(user) else np.zeros(0)
    rows = []
    for threshold in sorted({*THRESHOLDS, min_count}):
        kept = (scores >= threshold) & (num_events > 0)
        rows.append(
            {
                "min_count": threshold,
                "num_items_kept": int(kept.sum()),
                "events_lost": round(1 - float(num_events[kept].sum() / max(1, num_events.sum())), 6),
                "users_lost": round(float((best < threshold).mean()), 6) if len(best) else 0.0,
            }
        )
    return rows
