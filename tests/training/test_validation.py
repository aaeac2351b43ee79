"""What validation says of a log where users take one of a few items of their own, whatever others take."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys import dataset
from recsys.contracts.protocol import Protocol
from recsys.dataset import ValidationSet
from recsys.model.decoder import SequenceModel
from recsys.runtime.fusion import Fusion
from recsys.training import fusion
from recsys.training.config import Recipe
from recsys.training.validation import Judge
from tests.conftest import write_events

NUM_ITEMS = 1_500


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = np.random.default_rng(0)
    users = np.repeat(np.arange(300), 20)
    own = generator.integers(1, NUM_ITEMS, (300, 10), endpoint=True)
    events = pl.DataFrame(
        {
            "user_id": [f"u{user}" for user in users],
            "item_index": own[users, generator.integers(0, 10, len(users))],
            "timestamp_ms": np.tile(np.arange(20), 300),
            "event_type": 0,
        }
    )
    place = tmp_path_factory.mktemp("drawn") / "features"
    write_events(place, events, NUM_ITEMS, {"split_ms": 20}, {"min_count": 4})
    return place


def by_counts_alone(validation: ValidationSet, num_items: int, recipe: Recipe) -> tuple[Fusion, float]:
    judges = Judge(validation, num_items, recipe, mask_seen=False).judges(
        SequenceModel(recipe.model, num_items, recipe.window.most_rows)
    )
    return fusion.fit(fusion.candidates_of(replace(judges, vectors_UD=np.zeros_like(judges.vectors_UD))), Fusion())


def test_rare_items_are_not_thought_to_come_next(features: Path, tiny_recipe: Recipe) -> None:
    """An item that is kept for its held-out events has few before them, which must not say that it comes next."""
    data = dataset.load(features, Protocol.TIME)
    validation = data.validation(1_000, seed=0)
    assert len(validation.pruned) > 50
    weights, ndcg = by_counts_alone(validation, len(data.vocabulary), tiny_recipe)
    as_if_kept = replace(validation, targets=[np.abs(row) for row in validation.targets], pruned=validation.pruned[:0])
    leaking, ndcg_of_leak = by_counts_alone(as_if_kept, len(data.vocabulary), tiny_recipe)
    assert leaking.trend < -1 < weights.trend
    assert ndcg_of_leak > 1.1 * ndcg
