"""Other libraries' models as rankers: trained in their own environment on the very events that ours may fit."""

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from recsys.contracts.errors import ConfigError, DataError
from recsys.contracts.files import write_whole
from recsys.contracts.ids import PAD, Tokens
from recsys.dataset import Dataset, Histories

KINDS: Final = ("sasrec", "esasrec", "item_knn", "ease")
PYTHON: Final = Path(".venv-peers/rectools/bin/python")
SCRIPT: Final = Path("peers/rectools_rank.py")


class PeerRanker:
    """Lists that a peer made once, for all users who may be asked about."""

    def __init__(
        self, kind: str, data: Dataset, k: int, *, seconds: float, num_threads: int, kept: Path | None = None
    ) -> None:
        """Fit the peer on `data.fit` and keep its first `k` items of each user.

        Args:
            kind: One of `KINDS`.
            data: Features under a protocol; seen items are left out where it says so.
            k: Length of the lists.
            seconds: Longest training of a transformer.
            num_threads: Of the peer.
            kept: A file for the peer's lists; where it is there already, they are taken from it.

        Raises:
            ConfigError: the peer is not installed.
            DataError: it failed.
        """
        self.name = f"rectools_{kind}"
        if kept is not None and kept.exists():
            self._lists = _lists(pl.read_parquet(kept, glob=False), data.fit)
            return
        if not (PYTHON.exists() and SCRIPT.exists()):
            raise ConfigError(f"{PYTHON} is missing; run `make peers` in a checkout and call this from there")
        viewed = "drop" if data.protocol.masks_seen else "keep"
        with tempfile.TemporaryDirectory(prefix="recsys-peer-") as folder:
            log, out = Path(folder) / "log.parquet", Path(folder) / "lists.parquet"
            _write_log(data.fit, log)
            arguments = [str(log), kind, str(out), str(k), viewed, str(seconds), str(num_threads)]
            process = subprocess.run(  # noqa: S603
                [str(PYTHON), str(SCRIPT), *arguments],
                capture_output=True,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": str(num_threads)},
            )
            if process.returncode:
                raise DataError(f"{SCRIPT} {kind} failed: {process.stderr[-500:]}; run it by hand to see why")
            ranked = pl.read_parquet(out, glob=False)
        if kept is not None:
            write_whole(kept, ranked.write_parquet)
        self._lists = _lists(ranked, data.fit)

    def rank(self, histories: Sequence[Tokens], k: int, exclude: Sequence[Tokens] | None = None) -> Tokens:
        """See `recsys.evaluation.baselines.Ranker.rank`; lists are as long as was asked for at first, at most.

        A peer has no list for a user of whom nothing is known.
        """
        ranked = np.full((len(histories), k), PAD, dtype=np.int32)
        for row, history in enumerate(histories):
            found = self._lists[history.tobytes()] if len(history) else np.empty(0, dtype=np.int32)
            found = (found if exclude is None else found[~np.isin(found, exclude[row])])[:k]
            ranked[row, : len(found)] = found
        return ranked


def _write_log(fit: Histories, place: Path) -> None:
    """user_id (its position), item_id (its token), timestamp: one a second, since only order is used."""
    users = np.repeat(np.arange(len(fit)), fit.lengths)
    moments = np.arange(len(fit.tokens), dtype=np.int64) * 1000
    events = {"user_id": users, "item_id": fit.tokens.astype(np.int64), "timestamp": moments}
    pl.DataFrame(events).write_parquet(place)


def _lists(ranked: pl.DataFrame, fit: Histories) -> dict[bytes, Tokens]:
    """List of each history. A peer answers by history too, so equal histories have equal lists."""
    in_order = ranked.sort("user_id", "rank").group_by("user_id", maintain_order=True).agg("item_id")
    tokens = {user: np.array(items, dtype=np.int32) for user, items in in_order.iter_rows()}
    return {fit[user].tobytes(): tokens.get(user, np.empty(0, np.int32)) for user in range(len(fit))}
