from typing import Any

import pytest

from recsys.pipeline import tables
from recsys.pipeline.accuracy_benchmark import _spread

NAMES = ("recall@10", "hit_rate@10", "ndcg@10", "map@10", "mrr", "coverage@10")


def figures(value: float) -> dict[str, Any]:
    of_all = dict.fromkeys(NAMES, value)
    return {**of_all, "next": dict.fromkeys(("recall@10", "ndcg@10", "mrr"), value / 2)}


def report(protocol: str, *values: float) -> dict[str, Any]:
    """Of a benchmark whose seeds reached these values."""
    models = [figures(value) for value in values]
    baselines = {"popularity": figures(0.05), "rectools_item_knn": figures(0.15)}
    seeds = {"seeds": _spread(models)}
    return {"protocol": protocol, "num_users": 6040, "model": models[0], "baselines": baselines, **seeds}


def rows(text: str) -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line]
    return {row[0]: row[1:] for row in cells}


def test_the_spread_over_seeds_is_the_sample_standard_deviation() -> None:
    # .1, .2 and .6: mean .3, squares of the differences .04, .01 and .09, so sqrt(.14 / 2)
    spread = _spread([figures(0.1), figures(0.2), figures(0.6)])
    assert spread["num_seeds"] == 3
    for name in NAMES:
        assert spread[name]["mean"] == pytest.approx(0.3)
        assert spread[name]["std"] == pytest.approx(0.07**0.5)
        assert spread[name]["values"] == [0.1, 0.2, 0.6]
    assert spread["next"]["ndcg@10"]["mean"] == pytest.approx(0.15)


def test_one_seed_has_no_spread() -> None:
    assert _spread([figures(0.1)])["ndcg@10"] == {"mean": 0.1, "std": None, "values": [0.1]}


@pytest.mark.parametrize("protocol", ["time", "last-out"])
def test_the_model_has_a_mean_and_a_deviation_over_seeds_and_their_number_is_named(protocol: str) -> None:
    text = tables.accuracy_table(report(protocol, 0.1, 0.2, 0.6))
    table = rows(text)
    assert list(table)[-2:] == ["model", "± over 3 seeds"]
    assert (table["model"][0], table["± over 3 seeds"][0]) == ("0.3000", "0.2646")
    assert table["popularity"][0] == "0.0500"
    assert text.splitlines()[-1].startswith("model: mean ± standard deviation over 3 seeds")
    assert max(map(len, text.splitlines())) <= 100


def test_one_training_is_a_row_without_a_deviation() -> None:
    text = tables.accuracy_table(report("time", 0.1))
    assert rows(text)["model"] == ["0.1000"] * 4 + ["0.0500"] * 2
    assert "±" not in text


def test_columns_are_those_that_say_something_under_the_protocol() -> None:
    of_all = ["recall@10", "ndcg@10", "mrr", "coverage@10"]
    header = {protocol: rows(tables.accuracy_table(report(protocol, 0.1)))[""] for protocol in ("time", "last-out")}
    assert header["time"] == [*of_all, "next: recall@10", "next: ndcg@10"]
    assert header["last-out"] == ["recall@10", "hit_rate@10", *of_all[1:]]
