"""A peer as a ranker: the log it is given, the lists it gives back; a stand-in program plays the peer."""

import sys
from pathlib import Path

import numpy as np
import pytest

from recsys import dataset
from recsys.contracts.errors import ConfigError, DataError
from recsys.contracts.protocol import Protocol
from recsys.pipeline import peers
from recsys.pipeline.peers import PeerRanker

BACKWARDS = """
import sys, polars as pl
log = pl.read_parquet(sys.argv[1])
lists = log.sort("timestamp").group_by("user_id").agg(pl.col("item_id").unique(maintain_order=True).reverse().head(3))
lists.explode("item_id").with_columns(rank=pl.int_range(pl.len()).over("user_id") + 1).write_parquet(sys.argv[3])
"""


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    script = tmp_path / "peer.py"
    script.write_text(BACKWARDS)
    monkeypatch.setattr(peers, "PYTHON", Path(sys.executable))
    monkeypatch.setattr(peers, "SCRIPT", script)
    return script


@pytest.mark.usefixtures("stand_in")
def test_a_peer_ranks_by_what_may_be_fitted(ring_features: Path) -> None:
    data = dataset.load(ring_features, Protocol.TIME)
    ranker = PeerRanker("ease", data, 3, seconds=1, num_threads=1)
    history = data.fit[0]
    newest = list(dict.fromkeys(history.tolist()))[::-1][:3]
    np.testing.assert_array_equal(ranker.rank([history], 5), [[*newest, 0, 0]])
    np.testing.assert_array_equal(ranker.rank([history], 2, [np.array(newest[:1])]), [newest[1:]])


def test_lists_that_are_kept_are_not_made_again(stand_in: Path, ring_features: Path, tmp_path: Path) -> None:
    data, kept = dataset.load(ring_features, Protocol.TIME), tmp_path / "peers" / "ease.parquet"
    first = PeerRanker("ease", data, 3, seconds=1, num_threads=1, kept=kept)
    stand_in.write_text("raise SystemExit('asked again')")
    again = PeerRanker("ease", data, 3, seconds=1, num_threads=1, kept=kept)
    np.testing.assert_array_equal(again.rank(list(data.fit), 3), first.rank(list(data.fit), 3))


def test_a_peer_that_fails_says_how(stand_in: Path, ring_features: Path) -> None:
    stand_in.write_text("raise SystemExit('no such model')")
    with pytest.raises(DataError, match="no such model"):
        PeerRanker("ease", dataset.load(ring_features, Protocol.TIME), 3, seconds=1, num_threads=1)


def test_a_peer_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, ring_features: Path) -> None:
    monkeypatch.setattr(peers, "PYTHON", Path("nowhere/python"))
    with pytest.raises(ConfigError, match="make peers"):
        PeerRanker("ease", dataset.load(ring_features, Protocol.TIME), 3, seconds=1, num_threads=1)
