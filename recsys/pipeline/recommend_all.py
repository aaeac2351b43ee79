"""Recommendations of many users to one Parquet file, a batch of users in memory at a time."""

import os
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recsys.contracts.errors import ConfigError, DataError, UnknownUserError
from recsys.contracts.ids import PAD, Item
from recsys.pipeline.progress import bar
from recsys.pipeline.recommend import check_some_left
from recsys.runtime.recommender import Recommender, UserBatch
from recsys.whole_histories import WholeHistories

SCHEMA = {"user_id": pl.String, "item_id": pl.String, "score": pl.Float32, "rank": pl.UInt16}
SOURCE = {"source": pl.String}
"""Who ranked the list, as the endpoint says it: `model` or `popular`."""


@dataclass(slots=True, kw_only=True)
class Counts:
    """What a run has written so far."""

    num_users: int = 0
    """Users with rows."""
    num_unknown: int = 0
    """Users without an item that the release knows: popular items, or no rows."""
    num_rows: int = 0


def run(
    release: Path,
    features: Path,
    out: Path,
    *,
    users: Path | None,
    k: int,
    exclude_seen: bool,
    exclude: Collection[str] = (),
    keep: Callable[[Item], bool] | None = None,
    popular_for_unknown: bool = True,
    with_source: bool = False,
    num_threads: int = 1,
) -> dict[str, Any]:
    """Write the lists of all users of the features, or of those that the file `users` names, one a line.

    Rows of a user stand together, rank 1 first, equal scores in the order of tokens. The file is written beside
    its place and renamed; the same input gives the same bytes. Users without an item that the release knows get the
    popular items, whose scores are numbers of events of late, or no rows. `with_source` adds the column `source`,
    which is `model` or `popular`. `exclude` are item_ids to leave out; `keep` says of an item whether it may be shown.

    Raises:
        UnknownUserError: the features lack a user of the file.
        ConfigError: `out` is no Parquet file, or the filters leave no item.
    """
    started = time.monotonic()
    if out.suffix != ".parquet":
        raise ConfigError(f"--out {out}: expected a file that ends in .parquet")
    stored = WholeHistories(features)
    chosen = None if users is None else _read_users(users, stored, features)
    recommender = Recommender.load(release, num_threads=num_threads)
    counts = Counts()
    hidden = recommender.hidden(exclude, keep)
    check_some_left(recommender, hidden)
    batches = recommender.batches(
        stored, k, chosen, hidden, exclude_seen=exclude_seen, popular_for_unknown=popular_for_unknown
    )
    num_users = len(stored) if chosen is None else len(chosen)
    _write(_frames(recommender, batches, counts, num_users, with_source=with_source), out)
    return {
        "out": str(out),
        "release": recommender.release.name,
        "num_users": counts.num_users,
        "num_users_without_known_items": counts.num_unknown,
        "popular_for_unknown": popular_for_unknown,
        "num_rows": counts.num_rows,
        "seconds": round(time.monotonic() - started, 2),
    }


def _read_users(path: Path, stored: WholeHistories, features: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; expected one user_id a line") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text; expected one user_id a line") from None
    wanted = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not wanted:
        raise DataError(f"{path}: no user in it; expected one user_id a line")
    unknown = stored.unknown(wanted)
    if unknown:
        raise UnknownUserError(
            f"{path}: {len(unknown):,} of {len(wanted):,} users are not in {features}, the first is {unknown[0]!r}; "
            "remove them, or build the features with them"
        )
    return wanted


def _frames(
    recommender: Recommender, batches: Iterator[UserBatch], counts: Counts, num_users: int, *, with_source: bool
) -> Iterator[pl.DataFrame]:
    """One table a batch."""
    item_ids = np.array([None, *(item.item_id for item in recommender.release.vocabulary.items)], dtype=object)
    schema, num_done = SCHEMA | (SOURCE if with_source else {}), 0
    with bar("recommend") as advance:
        for batch in batches:
            shown_BK = batch.tokens_BK != PAD
            rank_BK = np.broadcast_to(np.arange(1, shown_BK.shape[1] + 1), shown_BK.shape)
            lengths_B = shown_BK.sum(axis=1)
            columns = {
                "user_id": np.repeat(np.array(batch.user_ids, dtype=object), lengths_B),
                "item_id": item_ids[batch.tokens_BK[shown_BK]],
                "score": batch.scores_BK[shown_BK],
                "rank": rank_BK[shown_BK],
                "source": np.repeat(np.where(batch.is_popular_B, "popular", "model").astype(object), lengths_B),
            }
            frame = pl.DataFrame({name: columns[name] for name in schema}, schema=schema)
            counts.num_users += len(batch.user_ids)
            counts.num_unknown += batch.num_left_out + int(batch.is_popular_B.sum())
            counts.num_rows += len(frame)
            num_done += len(batch.user_ids) + batch.num_left_out
            advance("users", num_done, num_users)
            yield frame


def _write(frames: Iterator[pl.DataFrame], out: Path) -> None:
    """One file that is there whole or not at all: a piece a batch in a folder beside it, then streamed together."""
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}")
    beside.mkdir()
    try:
        pieces = []
        for number, frame in enumerate(frames):
            pieces.append(beside / f"{number:08d}.parquet")
            frame.write_parquet(pieces[-1])
        whole = beside / "whole.parquet"
        pl.scan_parquet(pieces, glob=False).sink_parquet(whole, engine="streaming", maintain_order=True)
        with whole.open("rb") as written:
            os.fsync(written.fileno())
        whole.replace(out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
