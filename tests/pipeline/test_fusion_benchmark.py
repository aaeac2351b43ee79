from pathlib import Path

import numpy as np
import pytest

from recsys.contracts.errors import ArtifactError, DataError
from recsys.contracts.protocol import Protocol
from recsys.pipeline import fusion_benchmark, rivals_tables
from recsys.pipeline.fusion_benchmark import REFERENCE
from recsys.pipeline.validation_users import by_others, validation_users
from recsys.runtime.fusion import Fusion
from recsys.training import train
from recsys.training.config import Recipe
from recsys.training.fusion import Candidates, candidates_of, fit
from tests.conftest import NUM_ITEMS, write_features


def favourites(num_users: int) -> dict[str, list[int]]:
    """Everybody takes the same three items of their own again and again, in any order."""
    generator = np.random.default_rng(0)
    chosen = {f"u{u:03d}": generator.choice(NUM_ITEMS, 3, replace=False) + 1 for u in range(num_users)}
    return {user: generator.choice(items, 24).tolist() for user, items in chosen.items()}


def short(recipe: Recipe, seed: int = 0) -> Recipe:
    values = recipe.model_dump()
    values["training"] |= {"max_epochs": 1, "seed": seed}
    return Recipe.from_mapping(values, "short")


@pytest.fixture(scope="module")
def repeats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("favourites") / "features"
    write_features(place, favourites(120), NUM_ITEMS, split_ms=22)
    return place


def test_a_term_that_matters_is_missed_by_users_it_was_not_found_on(
    repeats: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    places = [tmp_path / f"checkpoint-{seed}" for seed in range(2)]
    for seed, place in enumerate(places):
        train.run(short(tiny_recipe, seed), repeats, place, protocol=Protocol.TIME)
    values = fusion_benchmark.run(repeats, places, num_splits=2)
    assert values["num_users"] == 120
    ways = values["ways"]
    assert list(ways) == list(fusion_benchmark.WAYS)
    assert ways[REFERENCE]["difference"] is None
    lost = ways["without repeats"]["difference"]
    assert lost["high"] < 0
    assert lost["difference"] == pytest.approx(ways["without repeats"]["ndcg@10"] - ways[REFERENCE]["ndcg@10"])
    assert ways["counts alone"]["ndcg@10"] > ways["the decoder alone"]["ndcg@10"]
    assert ways["one search, no halves"]["weights"] != ways[REFERENCE]["weights"]
    terms = {"base", "frequency", "recency", "transition", "trend"}
    left_out = {
        "without repeats": {"base", "frequency", "recency"},
        "without transitions": {"transition"},
        "without the trend": {"trend"},
        "the decoder alone": terms,
    }
    for name, out in left_out.items():
        assert {term for term in terms if ways[name]["weights"][term] == 0} >= out
    assert max(abs(ways["10 logits at most"]["weights"][term]) for term in terms) <= 10
    text = rivals_tables.fusion_table(values)
    assert "2 trainings, 120 validation users halved 2 x" in text
    assert "| without repeats" in text


def test_the_same_command_gives_the_same_figures(repeats: Path, tiny_recipe: Recipe, tmp_path: Path) -> None:
    train.run(short(tiny_recipe), repeats, tmp_path / "checkpoint", protocol=Protocol.TIME)
    first, again = (fusion_benchmark.run(repeats, [tmp_path / "checkpoint"], num_splits=1) for _ in range(2))
    assert first == again


def test_weights_that_have_seen_the_validation_are_refused(
    ring_features: Path, ring_checkpoint: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    refit = tmp_path / "refit"
    train.run(short(tiny_recipe), ring_features, refit, protocol=Protocol.FINAL, refit=ring_checkpoint)
    with pytest.raises(ArtifactError, match="a refit, or of an older version: it has no weights that have not seen"):
        fusion_benchmark.run(ring_features, [refit], num_splits=1)


def test_a_checkpoint_of_other_features_is_refused(
    ring_features: Path, repeats: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    train.run(short(tiny_recipe), repeats, tmp_path / "checkpoint", protocol=Protocol.TIME)
    with pytest.raises(ArtifactError, match="features"):
        fusion_benchmark.run(ring_features, [tmp_path / "checkpoint"], num_splits=1)


def test_too_few_users_to_halve_are_named(tiny_recipe: Recipe, tmp_path: Path) -> None:
    write_features(tmp_path / "features", favourites(40), NUM_ITEMS, split_ms=22)
    train.run(short(tiny_recipe), tmp_path / "features", tmp_path / "checkpoint", protocol=Protocol.TIME)
    with pytest.raises(DataError, match="40 validation users, expected 120 or more, as they are halved twice"):
        fusion_benchmark.run(tmp_path / "features", [tmp_path / "checkpoint"], num_splits=1)


def test_weights_are_those_from_before_absorbing(repeats: Path, tiny_recipe: Recipe, tmp_path: Path) -> None:
    place = tmp_path / "checkpoint"
    manifest = train.run(short(tiny_recipe), repeats, place, protocol=Protocol.TIME)
    found = fit(candidates_of(validation_users(repeats, place).judges), Fusion())[1]
    assert found == pytest.approx(manifest.metrics["validation_ndcg@10"], abs=1e-6)


def test_a_checkpoint_that_was_cut_elsewhere_is_refused(repeats: Path, tiny_recipe: Recipe, tmp_path: Path) -> None:
    train.run(short(tiny_recipe), repeats, tmp_path / "night", protocol=Protocol.TIME, split_ms=20)
    with pytest.raises(ArtifactError, match=r"night: trained before .* ms, and these features are validated from"):
        validation_users(repeats, tmp_path / "night")


def test_a_log_that_leaves_nobody_to_validate_with_is_named(tiny_recipe: Recipe, tmp_path: Path) -> None:
    write_features(tmp_path / "features", {f"u{n}": [1, 2] for n in range(4)}, 2, split_ms=None)
    train.run(short(tiny_recipe), tmp_path / "features", tmp_path / "checkpoint", protocol=Protocol.FINAL)
    with pytest.raises(DataError, match="features: nobody to validate with under the protocol final"):
        validation_users(tmp_path / "features", tmp_path / "checkpoint")


def test_checkpoints_of_several_protocols_have_no_mean(repeats: Path, tiny_recipe: Recipe, tmp_path: Path) -> None:
    for protocol in (Protocol.TIME, Protocol.LAST_OUT):
        train.run(short(tiny_recipe), repeats, tmp_path / protocol, protocol=protocol)
    with pytest.raises(DataError, match=r"time of time and .*last-out of last-out: figures of several protocols"):
        fusion_benchmark.run(repeats, [tmp_path / "time", tmp_path / "last-out"], num_splits=1)


def test_no_user_is_judged_by_weights_that_were_found_on_them(
    repeats: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    train.run(short(tiny_recipe), repeats, tmp_path / "checkpoint", protocol=Protocol.TIME)
    candidates = candidates_of(validation_users(repeats, tmp_path / "checkpoint").judges)
    seen = []

    def find(half: Candidates) -> Fusion:
        seen.append(half)
        return Fusion(base=float(len(seen)))

    ndcg_U, weights = by_others(candidates, find, seed=0)
    assert [len(half) for half in seen] == [60, 60]
    assert weights == [Fusion(base=1), Fusion(base=2)]
    by_first, by_second = (candidates.ndcg_U(each) for each in weights)
    chosen_on_first = np.array([(seen[0].score == row).all(axis=1).any() for row in candidates.score])
    np.testing.assert_allclose(ndcg_U, np.where(chosen_on_first, by_second, by_first))
