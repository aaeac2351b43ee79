"""Small artifacts that many tests start from, and the programs that some need."""

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import polars as pl
import pytest

from recsys.contracts import artifact
from recsys.histories import SCHEMA
from recsys.training.config import Recipe

NUM_ITEMS = 30


def pytest_configure(config: pytest.Config) -> None:
    """Tests compute on the processor, to the last bit; only those that are asked for by `-m gpu` see a GPU.

    Workers of pytest-xdist compute in a thread each: more would wait for each other.
    """
    if "gpu" not in config.option.markexpr.replace("not gpu", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if hasattr(config, "workerinput"):  # one of several processes
        os.environ["OMP_NUM_THREADS"] = "1"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, or a worker would be at one of them when the others have ended."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def service_program(name: str, package: str, elsewhere: Sequence[Path] = ()) -> Path:
    """A program that a `service` test drives; the test is skipped without it, or fails where it must run."""
    found = shutil.which(name, path=os.pathsep.join([os.environ["PATH"], *map(str, elsewhere)]))
    if found is None:
        missing = f"{name} is not installed: apt-get install {package}"
        if os.environ.get("RECSYS_REQUIRE_SERVICES"):
            pytest.fail(missing)
        pytest.skip(missing)
    return Path(found).resolve()


def write_events(
    place: Path,
    events: pl.DataFrame,
    num_items: int,
    metrics: dict[str, Any],
    config: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """A features artifact of events in order: columns user_id, item_index, timestamp_ms, event_type."""
    of_items = events.group_by("item_index").agg(num_events=pl.len(), first_ms=pl.col("timestamp_ms").min())
    items = (
        pl.DataFrame({"item_index": range(1, num_items + 1)}, schema={"item_index": pl.UInt32})
        .join(of_items.with_columns(pl.col("item_index").cast(pl.UInt32)), on="item_index", how="left")
        .with_columns(
            pl.col("num_events", "first_ms").fill_null(0),
            item_id=pl.format("sku-{}", "item_index"),
            title=pl.format("Item {}", "item_index"),
            category=pl.lit(None, pl.String),
            price=pl.lit(None, pl.Float64),
        )
        .sort("item_index")
    )
    users = events.select(pl.col("user_id").unique(maintain_order=True)).with_columns(
        user_index=pl.int_range(pl.len(), dtype=pl.UInt32), bucket=pl.lit(0, pl.UInt16)
    )
    stored = events.join(users, on="user_id", maintain_order="left").with_columns(source=0, row=pl.int_range(pl.len()))
    with artifact.writing(place, "features") as writer:
        items.write_parquet(writer.folder / "items.parquet")
        users.write_parquet(writer.folder / "users.parquet")
        (writer.folder / "histories" / "g00000").mkdir(parents=True)
        partition = writer.folder / "histories" / "g00000" / "part-00000.parquet"
        stored.select(SCHEMA.keys()).cast(SCHEMA).write_parquet(partition)
        digest = hashlib.sha256(events.write_csv().encode()).hexdigest()
        writer.commit(parents={}, config={"min_count": 2, **config}, metrics={"content_digest": digest, **metrics})


def write_features(place: Path, histories: dict[str, list[int]], num_items: int, split_ms: int | None) -> None:
    """A features artifact; the event at position i of every history happens at i milliseconds."""
    events = pl.DataFrame(
        [(user, item, i, 0) for user, history in histories.items() for i, item in enumerate(history)],
        schema={"user_id": pl.String, "item_index": pl.UInt32, "timestamp_ms": pl.Int64, "event_type": pl.UInt8},
        orient="row",
    )
    write_events(place, events, num_items, {"split_ms": split_ms})


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
                "num_threads": 1,
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
