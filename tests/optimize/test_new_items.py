"""A shop with four shelves: what is new on a user's shelf is what the user takes next."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from features import build as features_build
from features.config import FeaturesConfig
from optimize import build
from optimize.config import GateConfig, OptimizeConfig
from recsys import dataset
from recsys.contracts import artifact
from recsys.contracts.protocol import Protocol
from recsys.evaluation.divisions import NEVER_SEEN
from recsys.pipeline import evaluation
from recsys.pipeline.case_process import main as case_process
from recsys.runtime.recommender import Recommender, Users
from recsys.training import train
from recsys.training.config import Recipe
from recsys.training.new_items import Choice
from recsys.whole_histories import WholeHistories

SHELVES = ("red lamp", "blue mug", "green rug", "gold pen")
NUM_USERS, NUM_DAYS = 60, 60
LAUNCH_DAYS = (48, 55)
START = 1_600_000_000
"""The first launch is new at the moment of validation, day 48, the second at the cut, day 54."""


def write_log(place: Path, seed: int = 0) -> None:
    """Each user keeps to a shelf of six items; of what is younger than ten days, every second event is."""
    generator, rows = np.random.default_rng(seed), []
    for day in range(NUM_DAYS):
        for user in generator.permutation(NUM_USERS)[:30]:
            shelf = user % len(SHELVES)
            young = [launch for launch in LAUNCH_DAYS if launch <= day < launch + 10]
            item = (
                f"new-{shelf}-{young[0]}" if young and generator.random() < 0.5 else f"{shelf}-{generator.integers(6)}"
            )
            rows.append((f"u{user}", item, START + 86_400 * day + int(user), f"{SHELVES[shelf]} {item[-1]}"))
    schema = ["user_id", "item_id", "timestamp", "title"]
    pl.DataFrame(rows, schema=schema, orient="row").sort("timestamp").write_csv(place)


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Recipe) -> Path:
    """Features, a checkpoint, and releases with and without new items among the others."""
    folder = tmp_path_factory.mktemp("shelves")
    write_log(folder / "log.csv")
    features_build.run(FeaturesConfig(min_count=10), [folder / "log.csv"], folder / "features")
    training = tiny_recipe.training.model_copy(update={"max_epochs": 4})
    recipe = tiny_recipe.model_copy(update={"training": training})
    train.run(recipe, folder / "features", folder / "checkpoint", protocol=Protocol.TIME)
    for name, share in (("with", None), ("without", 0.0)):
        config = OptimizeConfig(new_items_share=share, num_comparison_windows=0, gate=GateConfig(min_top10_overlap=0.8))
        build.run(config, folder / "checkpoint", folder / "features", folder / name)
    return folder


def test_validation_lets_new_items_in_where_they_pay(shop: Path) -> None:
    chosen = Choice(**artifact.read_manifest(shop / "checkpoint").config["new_items"])
    assert chosen.num_new == 4
    assert chosen.share > 0
    assert chosen.ndcg > chosen.ndcg_without
    assert chosen.recall_new > 0.5


def test_new_items_stand_after_the_kept_ones_and_out_of_histories(shop: Path) -> None:
    vocabulary = Recommender.load(shop / "with").release.vocabulary
    kept = dataset.load(shop / "features", Protocol.TIME).vocabulary
    assert vocabulary.items[: vocabulary.num_kept] == kept.items
    assert {item.item_id for item in vocabulary.items if item.is_new} == {f"new-{shelf}-55" for shelf in range(4)}
    assert vocabulary.history(["0-1", "new-0-55", "0-2"]).tolist() == vocabulary.tokens(["0-1", "0-2"]).tolist()
    assert vocabulary.tokens(["new-0-55"])[0] > vocabulary.num_kept


def test_users_are_shown_what_is_new_on_their_shelf(shop: Path) -> None:
    contexts = dataset.load(shop / "features", Protocol.TIME).test_set().contexts
    for name, keep in (("with", None), ("without", lambda item: item.is_new)):
        recommender, right = Recommender.load(shop / name), []
        for user_id, context in zip(contexts.user_ids, contexts, strict=True):
            history = [recommender.release.vocabulary.item(int(token)).item_id for token in context]
            items = recommender.recommend(history, k=10, keep=keep)
            new = [item for item in items if item.is_new][:1]
            right += [item.title == f"{SHELVES[int(user_id[1:]) % 4]} 5" for item in new]
        assert np.mean(right) > 0.8
        assert len(right) > len(contexts) / 4


def test_items_that_do_not_pay_come_after_all_others(shop: Path) -> None:
    recommender = Recommender.load(shop / "without")
    everything = recommender.recommend(["0-1", "0-2"], k=100)
    num_kept = recommender.release.vocabulary.num_kept
    assert len(everything) == num_kept + 4
    assert [item.is_new for item in everything] == [False] * num_kept + [True] * 4


def test_the_segment_of_items_first_seen_after_the_cut_gains(shop: Path) -> None:
    found = evaluation.run(shop / "with", shop / "features", against=str(shop / "without"))
    values = next(segment.values for segment in found.segments if segment.name == NEVER_SEEN)
    assert values["against"]["recall@10"] == 0
    assert values["model"]["recall@10"] > 0.5
    assert found.to_json()["num_items"] == Recommender.load(shop / "with").release.vocabulary.num_kept + 4


def test_what_a_user_has_seen_is_left_out_even_if_it_is_new(shop: Path) -> None:
    recommender = Recommender.load(shop / "with")
    user_id, history = next(
        (u, h)
        for u in (f"u{n}" for n in range(0, NUM_USERS, 4))
        if "new-0-55" in (h := WholeHistories(shop / "features").of(u) or [])
    )
    alone = recommender.recommend(history, k=30, exclude_seen=True)
    together = recommender.recommend(Users(shop / "features", [user_id]), k=30, exclude_seen=True)[user_id]
    assert [item.item_id for item in alone] == [item.item_id for item in together]
    assert "new-0-55" not in {item.item_id for item in alone}


def test_a_process_that_answers_reads_histories_of_kept_items_alone(shop: Path, capsys: pytest.CaptureFixture) -> None:
    # histories of what has no transition counts cannot be ranked
    case_process("release", str(shop / "with"), "1", "16,18,20")
    assert '"peak_mb"' in capsys.readouterr().out
