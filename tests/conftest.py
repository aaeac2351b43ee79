"""Small artifacts that many tests start from."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys.contracts import artifact
from recsys.histories import SCHEMA
from recsys.training.config import Recipe

NUM_ITEMS = 30


def write_features(place: Path, histories: dict[str, list[int]], num_items: int, split_ms: int | None) -> None:
    """A features artifact; the event at position i of every history happens at i milliseconds."""
    flat = [index for history in histories.values() for index in history]
    counts = np.bincount(flat, minlength=num_items + 1)[1:]
    items = pl.DataFrame({"item_index": range(1, num_items + 1), "num_events": counts}).with_columns(
        pl.col("item_index").cast(pl.UInt32),
        item_id=pl.format("sku-{}", "item_index"),
        title=pl.format("Item {}", "item_index"),
        category=pl.lit(None, pl.String),
        price=pl.lit(None, pl.Float64),
    )
    lengths = [len(history) for history in histories.values()]
    users = pl.DataFrame({"user_id": list(histories)}).with_columns(
        user_index=pl.int_range(pl.len(), dtype=pl.UInt32), bucket=pl.lit(0, pl.UInt16)
    )
    frame = pl.DataFrame(
        {
            "user_index": np.repeat(np.arange(len(histories)), lengths),
            "timestamp_ms": [i for length in lengths for i in range(length)],
            "source": np.zeros(len(flat)),
            "row": np.arange(len(flat)),
            "item_index": flat,
            "event_type": np.zeros(len(flat)),
        },
    ).cast(SCHEMA)
    with artifact.writing(place, "features") as writer:
        items.write_parquet(writer.folder / "items.parquet")
        users.write_parquet(writer.folder / "users.parquet")
        (writer.folder / "histories" / "g00000").mkdir(parents=True)
        frame.write_parquet(writer.folder / "histories" / "g00000" / "part-00000.parquet")
        writer.commit(parents={}, config={"min_count": 2}, metrics={"split_ms": split_ms})


def cyclic_histories(num_users: int = 120, seed: int = 0) -> dict[str, list[int]]:
    """Users walk round a ring of items: the next item is known from the last one."""
    generator = np.random.default_rng(seed)
    return {
        f"u{u:03d}": [1 + int(start + i) % NUM_ITEMS for i in range(int(length))]
        for u, (start, length) in enumerate(generator.integers([0, 6], [NUM_ITEMS, 25], size=(num_users, 2)))
    }


@pytest.fixture(scope="session")
def ring_features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of the ring, cut at position 10."""
    place = tmp_path_factory.mktemp("ring") / "features"
    write_features(place, cyclic_histories(), NUM_ITEMS, split_ms=10)
    return place


@pytest.fixture(scope="session")
def tiny_recipe() -> Recipe:
    """A model that trains in seconds, with windows of 8 events."""
    return Recipe.from_mapping(
        {
            "model": {
                "width": 32,
                "num_layers": 1,
                "num_heads": 2,
                "head_dim": 16,
                "feedforward_width": 32,
                "dropout": 0,
            },
            "window": {"size": 8, "overlap_share": 0.25},
            "training": {
                "learning_rate": 0.01,
                "warmup_steps": 5,
                "batch_tokens": 256,
                "max_epochs": 12,
                "patience": 12,
            },
        },
        "tiny",
    )


@pytest.fixture(scope="session")
def ring_checkpoint(ring_features: Path, tiny_recipe: Recipe) -> Path:
    """A model of the ring, trained before the cut."""
    from recsys.dataset import Protocol
    from recsys.training import train

    train.run(tiny_recipe, ring_features, ring_features.parent / "checkpoint", protocol=Protocol.TIME)
    return ring_features.parent / "checkpoint"


@pytest.fixture(scope="session")
def ring_releases(ring_features: Path, ring_checkpoint: Path) -> Path:
    """A folder with one 8-bit release of the ring, current."""
    from optimize import build
    from optimize.config import GateConfig, OptimizeConfig

    config = OptimizeConfig(gate=GateConfig(min_top10_overlap=0.9))
    build.run(config, ring_checkpoint, ring_features, ring_features.parent / "releases")
    return ring_features.parent / "releases"
