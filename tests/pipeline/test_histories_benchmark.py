from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.contracts.errors import ConfigError, DataError
from recsys.pipeline import histories_benchmark, histories_cost, tables
from recsys.pipeline.planted_shop import ITEMS_OF_A_BRAND, NUM_BRANDS, NUM_ITEMS, NUM_PLAIN, NUM_TASTES, PlantedShop
from recsys.pipeline.rivals import Sample, train_and_rank
from recsys.windows import WindowConfig

SHOP = PlantedShop(num_users=30, window_size=40)
COSTS = {"cold_ms": 1.0, "cold_stored_ms": 1.0, "warm_ms": 1.0, "cold_mflop": 1.0, "warm_mflop": 1.0, "session_kb": 1.0}


def brand(item: int) -> int:
    """Of a purchase: its taste and brand in one number; −1 for other items."""
    return (item - 1 - NUM_PLAIN - NUM_TASTES) // ITEMS_OF_A_BRAND if item > NUM_PLAIN + NUM_TASTES else -1


def test_a_planted_target_is_of_the_users_brand_and_was_last_seen_more_than_a_window_ago() -> None:
    split = SHOP.split()
    known = 0
    for context, target in zip(split.contexts, split.targets, strict=True):
        wanted = brand(int(target[0]))
        assert context[-1] == 1 + NUM_PLAIN + wanted // NUM_BRANDS
        bought = [brand(int(item)) for item in context]
        same_taste = [i for i, b in enumerate(bought) if b >= 0 and b // NUM_BRANDS == wanted // NUM_BRANDS]
        assert {bought[i] for i in same_taste} <= {wanted}
        assert all(i < len(context) - SHOP.window_size for i in same_taste)
        known += len(same_taste) > 0
    assert known == len(split.contexts)
    assert max(int(context.max()) for context in split.contexts) <= NUM_ITEMS


def test_all_rivals_predict_each_event_once_an_epoch() -> None:
    from recsys.training.batches import training_windows

    fit = SHOP.split().train
    for rival in histories_benchmark.rivals(WindowConfig(size=40)).values():
        windows = training_windows(fit, rival.rows)
        assert sum(w.stop - w.first_target for w in windows) == len(fit.tokens) - len(fit)


def test_what_a_rival_reads_is_the_end_of_the_history() -> None:
    tokens = np.arange(1, 500, dtype=np.int32)
    lengths = {}
    for name, rival in histories_benchmark.rivals(WindowConfig(size=40)).items():
        read = rival.context(tokens)
        assert read[-1] == tokens[-1]
        lengths[name] = len(read)
    assert lengths["full attention"] == lengths["band"] == 80
    assert 12 < lengths["last window"] <= 40
    assert lengths["summaries"] > 80


def test_each_rival_has_figures_and_a_paired_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = {"events": 2048, "window": 1024, "rows": {"last window": COSTS}}
    monkeypatch.setattr(histories_cost, "run", lambda: costs)
    values = histories_benchmark.run(None, window_size=16, epochs=0.2, num_users=30, num_seeds=1, names=None)
    assert list(values["rivals"]) == ["last window", "summaries", "full attention", "band"]
    assert values["rivals"]["last window"]["differences"] is None
    for name in ("summaries", "full attention", "band"):
        gap = values["rivals"][name]["differences"]["ndcg@10"]
        expected = values["rivals"][name]["ndcg@10"] - values["rivals"]["last window"]["ndcg@10"]
        assert gap["difference"] == pytest.approx(expected)
    assert "differences: to last window" in tables.histories_table(values)


def test_costs_follow_what_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(histories_cost, "_ROUNDS", 1)
    rows = histories_cost.run()["rows"]
    # two layers, keys and values of two heads of 64, two bytes each
    assert rows["last window"]["session_kb"] == pytest.approx(1024 * 2 * 2 * 2 * 64 * 2 / 1e3, abs=0.1)
    assert rows["full attention"]["session_kb"] == 0
    assert rows["last window"]["cold_mflop"] < rows["band"]["cold_mflop"] < rows["full attention"]["cold_mflop"]
    assert all(row[name] > 0 for row in rows.values() for name in ("cold_ms", "cold_stored_ms", "warm_ms"))
    assert rows["last window"]["warm_mflop"] < rows["summaries"]["warm_mflop"] < rows["full attention"]["warm_mflop"]


def test_features_without_long_histories_and_unknown_rivals_are_refused(ring_features: Path) -> None:
    with pytest.raises(DataError, match="no user has more than 500 events"):
        histories_benchmark.run(ring_features, window_size=500, epochs=1, num_users=5, num_seeds=1, names=None)
    with pytest.raises(ConfigError, match="no rival of that name: x; expected some of last window, summaries"):
        histories_benchmark.run(None, window_size=16, epochs=1, num_users=5, num_seeds=1, names=["x"])
    with pytest.raises(ConfigError, match="no rival of that name: y; expected some of last window, summaries"):
        histories_benchmark.run(None, window_size=16, epochs=1, num_users=5, num_seeds=1, names=None, reference="y")


@pytest.mark.slow
def test_summaries_learn_a_taste_that_the_open_window_does_not_show() -> None:
    window = WindowConfig(size=32)
    split = PlantedShop(num_users=500, window_size=32).split()
    of = Sample(split=split, num_items=NUM_ITEMS, masks_seen=False)
    rivals = histories_benchmark.rivals(window)
    torch.set_num_threads(1)
    found = {name: train_and_rank(rivals[name], window, of, 8, 0) for name in ("last window", "summaries")}
    recall = {name: run["recall@10"].mean() for name, run in found.items()}
    assert recall["last window"] < 0.45  # ten of 32 items of a taste
    assert recall["summaries"] > 0.8
