from pathlib import Path

import numpy as np
import pytest
import torch

from features import build as features_build
from features import simulate
from features.config import FeaturesConfig
from recsys import dataset
from recsys.contracts.errors import ConfigError, DataError
from recsys.contracts.precision import CacheFormat
from recsys.contracts.protocol import Protocol
from recsys.model.reference import encode
from recsys.pipeline import histories_benchmark, histories_cost, rivals, rivals_tables
from recsys.pipeline.planted_shop import (
    ITEMS_OF_A_BRAND,
    NUM_BRANDS,
    NUM_ITEMS,
    NUM_PLAIN,
    NUM_TASTES,
    PlantedShop,
    item_id,
)
from recsys.pipeline.rivals import MODEL, Sample, sample, train_and_rank
from recsys.windows import WindowConfig
from tests.conftest import NUM_ITEMS as NUM_RING_ITEMS
from tests.conftest import cyclic_histories, write_features

SHOP = PlantedShop(num_users=30, window_size=40)
COSTS = ("cold_ms", "cold_stored_ms", "warm_ms", "cold_mflop", "warm_mflop", "session_kb")


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


def test_the_log_of_the_planted_shop_is_cut_before_each_target(tmp_path: Path) -> None:
    split, log = SHOP.split(), tmp_path / "planted.csv.gz"
    simulate.write([SHOP.log()], log)
    features_build.run(FeaturesConfig(min_count=1), [log], tmp_path / "features")
    data = dataset.load(tmp_path / "features", Protocol.TIME)
    test = data.test_set()
    names = [item.item_id for item in data.vocabulary.items]
    assert len(test.contexts) == len(split.contexts) == 30
    assert test.contexts.user_ids == [f"u{user:05d}" for user in range(30)]
    for context, target, kept, later in zip(split.contexts, split.targets, test.contexts, test.targets, strict=True):
        assert [names[token - 1] for token in kept] == [item_id(int(token)) for token in context]
        if later[0] > 0:  # else nobody had bought it before the cut
            assert names[later[0] - 1] == item_id(int(target[0]))
    assert np.mean([later[0] > 0 for later in test.targets]) > 0.5
    assert sum(map(len, test.targets)) == pytest.approx(sum(map(len, split.contexts)) / 9, abs=2)


def test_items_of_the_planted_shop_have_names_of_their_own() -> None:
    names = [item_id(token) for token in range(1, NUM_ITEMS + 1)]
    assert len(set(names)) == NUM_ITEMS
    assert (names[0], names[NUM_PLAIN], names[-1]) == ("plain-01", "taste-1", "taste-3-brand-8-4")


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


def test_each_rival_has_figures_a_paired_difference_and_costs_in_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(histories_cost, "_ROUNDS", 1)
    values = histories_benchmark.run(None, window_size=16, epochs=0.2, num_users=30, num_seeds=1, names=None)
    assert list(values["rivals"]) == ["last window", "summaries", "full attention", "band"]
    assert values["rivals"]["last window"]["differences"] is None
    for name in ("summaries", "full attention", "band"):
        gap = values["rivals"][name]["differences"]["ndcg@10"]
        expected = values["rivals"][name]["ndcg@10"] - values["rivals"]["last window"]["ndcg@10"]
        assert gap["difference"] == pytest.approx(expected)
    assert all(row["num_users"] == 30 and row.keys() >= set(COSTS) for row in values["rivals"].values())
    table = rivals_tables.histories_table(values)
    assert "differences: to last window" in table
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in lines[-4:]] == list(values["rivals"])
    assert all(line.count("|") == 15 and line.split("|")[-2].strip() for line in lines[-4:])


@pytest.mark.parametrize("name", list(histories_benchmark.ANSWERS))
@torch.inference_mode()
def test_costs_are_of_the_vector_that_a_rival_is_compared_by(name: str) -> None:
    torch.manual_seed(0)
    rival = histories_benchmark.rivals(WindowConfig(size=16))[name]
    model = rival.build(MODEL, 20).eval()
    tokens = rival.context(np.random.default_rng(0).integers(1, 21, 52).astype(np.int32))
    answers = histories_benchmark.ANSWERS[name](model, tokens, CacheFormat.FLOAT32)
    expected = torch.from_numpy(encode(model, [tokens]))
    for answer in (answers.cold, answers.stored, answers.warm):
        if answer is not None:
            torch.testing.assert_close(answer(), expected, atol=1e-4, rtol=0)


def test_costs_follow_what_is_read_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(histories_cost, "_ROUNDS", 1)
    rivals = histories_benchmark.rivals(WindowConfig(size=40))
    num_events, rows = histories_benchmark.costs(rivals, WindowConfig(size=40), 20)
    assert num_events == 40 + 3 * 28
    # two layers, keys and values of two heads: 32 codes of a byte and a scale of four
    of_an_event = 2 * 2 * 2 * (32 + 4) / 1e3
    sizes = {"last window": 40, "summaries": 40 + 3 * 4, "full attention": 0, "band": 39}
    for name, num_kept in sizes.items():
        assert rows[name]["session_kb"] == pytest.approx(num_kept * of_an_event, abs=0.1)
    cold, warm = ({name: row[f"{when}_mflop"] for name, row in rows.items()} for when in ("cold", "warm"))
    assert cold["last window"] < cold["band"] < cold["full attention"] < cold["summaries"]
    assert warm["last window"] == warm["band"] < warm["summaries"] < warm["full attention"]
    assert warm["full attention"] == pytest.approx(cold["full attention"], abs=0.1)  # everything anew
    assert all(row[name] > 0 for row in rows.values() for name in ("cold_ms", "cold_stored_ms", "warm_ms"))


def test_users_with_fewer_events_than_a_window_may_be_compared_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(histories_cost, "_ROUNDS", 1)
    monkeypatch.setattr(dataset, "LEAST_LAST_OUT_USERS", 1)  # of whom others take a fifth
    histories = cyclic_histories()
    write_features(tmp_path / "features", histories, NUM_RING_ITEMS, split_ms=None)
    lengths = [len(context) for context in sample(tmp_path / "features", 120, longer_than=10).split.contexts]
    # the last event is the test's, the one before it the target
    assert sorted(lengths) == sorted(len(row) - 2 for row in histories.values() if len(row) - 2 > 10)
    num_longer = sum(length > 16 for length in lengths)
    assert 0 < num_longer < len(lengths)
    values = histories_benchmark.run(
        tmp_path / "features", window_size=16, epochs=0.2, num_users=120, num_seeds=1, names=["band"], longer_than=10
    )
    last, band = values["rivals"]["last window"], values["rivals"]["band"]
    of_last, of_band = last["longer_than_a_window"], band["longer_than_a_window"]
    assert last["num_users"] == values["num_users"] == len(lengths)
    assert of_last["num_users"] == of_band["difference"]["num_users"] == num_longer
    assert of_last["difference"] is None
    assert of_band["difference"]["difference"] == pytest.approx(of_band["ndcg@10"] - of_last["ndcg@10"])
    assert f"of the {num_longer} longer" in " ".join(rivals_tables.histories_table(values).split())
    assert ("are needed for a verdict" in rivals_tables.histories_table(values)) == (num_longer < 20)


def test_what_validation_prunes_is_in_no_rivals_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    histories = {f"u{n}": [1 + (n + i) % 5 for i in range(20)] for n in range(40)}
    histories |= {f"v{n}": [*histories[f"u{n}"][:18], 6, 6] for n in range(2)}  # at 18 and 19: kept for the latter
    write_features(tmp_path / "features", histories, 6, split_ms=20)
    found = sample(tmp_path / "features", 100)
    assert found.split.pruned.tolist() == [6]
    lists, rank = [], rivals.per_user_metrics
    monkeypatch.setattr(rivals, "per_user_metrics", lambda ranked, *rest: lists.append(ranked) or rank(ranked, *rest))
    window = WindowConfig(size=8)
    run = train_and_rank(histories_benchmark.rivals(window)["last window"], window, found, 1, 0)
    assert len(lists) == 4
    assert not any((ranked == 6).any() for ranked in lists)
    assert run["ndcg@10"].max() > 0


def test_features_without_long_histories_and_unknown_rivals_are_refused(ring_features: Path) -> None:
    with pytest.raises(DataError, match="no user has more than 500 events"):
        histories_benchmark.run(ring_features, window_size=500, epochs=1, num_users=5, num_seeds=1, names=None)
    with pytest.raises(ConfigError, match="no rival of that name: x; expected some of last window, summaries"):
        histories_benchmark.run(None, window_size=16, epochs=1, num_users=5, num_seeds=1, names=["x"])
    with pytest.raises(ConfigError, match="no rival of that name: y; expected some of last window, summaries"):
        histories_benchmark.run(None, window_size=16, epochs=1, num_users=5, num_seeds=1, names=None, reference="y")
    with pytest.raises(ConfigError, match="--longer-than chooses users of a log"):
        histories_benchmark.run(None, window_size=16, epochs=1, num_users=5, num_seeds=1, names=None, longer_than=8)


@pytest.mark.slow
def test_summaries_learn_a_taste_that_the_open_window_does_not_show() -> None:
    window = WindowConfig(size=32)
    split = PlantedShop(num_users=500, window_size=32).split()
    of = Sample(split=split, num_items=NUM_ITEMS, masks_seen=False)
    torch.set_num_threads(1)
    built = histories_benchmark.rivals(window)
    found = {name: train_and_rank(built[name], window, of, 8, 0) for name in ("last window", "summaries")}
    recall = {name: run["recall@10"].mean() for name, run in found.items()}
    assert recall["last window"] < 0.45  # ten of 32 items of a taste
    assert recall["summaries"] > 0.8
