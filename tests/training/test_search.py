from pathlib import Path

import pytest

from recsys.contracts.errors import ConfigError, DataError
from recsys.contracts.protocol import Protocol
from recsys.training import search
from recsys.training.config import Recipe


def short(recipe: Recipe, **changes: object) -> Recipe:
    training = recipe.training.model_copy(update={"max_epochs": 2, **changes})
    return recipe.model_copy(update={"training": training})


def run(recipe: Recipe, features: Path, out: Path, trials: int) -> search.Found:
    return search.run(recipe, features, out, protocol=Protocol.TIME, num_trials=trials, minutes=trials * 1.0)


def test_the_first_trial_is_the_recipe_given_and_the_best_one_is_written(
    ring_features: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    found = run(short(tiny_recipe), ring_features, tmp_path, 2)
    assert sorted(row["trial"] for row in found.trials) == [0, 1]
    first = next(row for row in found.trials if row["trial"] == 0)
    assert (first["width"], first["num_layers"], first["learning_rate"]) == (32, 1, 0.01)
    assert found.trials[0]["ndcg@10"] == max(row["ndcg@10"] for row in found.trials)
    written = Recipe.load(str(tmp_path / "recipe.toml"))
    assert written == found.recipe
    assert written.model.width == found.trials[0]["width"]
    assert written.training.absorb_share == tiny_recipe.training.absorb_share


def test_a_study_goes_on_where_it_was_and_is_bound_to_its_recipe(
    ring_features: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    recipe = short(tiny_recipe, max_epochs=1)
    first = search.run(recipe, ring_features, tmp_path, protocol=Protocol.TIME, num_trials=1, minutes=1.0)
    again = search.run(recipe, ring_features, tmp_path, protocol=Protocol.TIME, num_trials=2, minutes=2.0)
    assert [row for row in again.trials if row["trial"] == 0] == first.trials
    assert len(again.trials) == 2
    with pytest.raises(DataError, match="a study of another recipe"):
        run(short(tiny_recipe, max_epochs=3), ring_features, tmp_path, 3)


def test_the_recipe_written_has_what_a_decoder_has_of_its_own(
    ring_features: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    model = tiny_recipe.model.model_copy(update={"transformers": {"hidden_act": "gelu", "attention_bias": True}})
    found = run(short(tiny_recipe.model_copy(update={"model": model}), max_epochs=1), ring_features, tmp_path, 1)
    assert Recipe.load(str(tmp_path / "recipe.toml")) == found.recipe
    assert found.recipe.model.transformers == {"hidden_act": "gelu", "attention_bias": True}


def test_what_is_no_decoder_is_not_searched_with(ring_features: Path, tiny_recipe: Recipe, tmp_path: Path) -> None:
    model = tiny_recipe.model.model_copy(update={"architecture": "bert"})
    with pytest.raises(ConfigError, match="'bert' looks at later events"):
        run(tiny_recipe.model_copy(update={"model": model}), ring_features, tmp_path, 1)
