from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys import dataset
from recsys.contracts.errors import ArtifactError, DataError
from recsys.contracts.ids import Vocabulary
from recsys.contracts.protocol import Protocol
from recsys.whole_histories import WholeHistories
from tests.conftest import write_events, write_features

# items 1 … 5; min_count 2. The event at position i is at i ms; T = 3.
HISTORIES = {"ann": [1, 2, 1, 3, 4], "bob": [2, 2, 5], "cat": [3, 3, 3, 2, 2, 1]}


@pytest.fixture
def features(tmp_path: Path) -> Path:
    write_features(tmp_path / "f", HISTORIES, num_items=5, split_ms=3)
    return tmp_path / "f"


def test_time_counts_before_the_cut_decide_pruning(features: Path) -> None:
    data = dataset.load(features, Protocol.TIME)
    # before 3 ms: ann 1 2 1, bob 2 2 5, cat 3 3 3 -> counts 1:2 2:3 3:3 5:1; items 4 and 5 are pruned
    assert [(i.item_id, i.num_events) for i in data.vocabulary.items] == [("sku-1", 2), ("sku-2", 3), ("sku-3", 3)]
    assert [row.tolist() for row in data.fit] == [[1, 2, 1], [2, 2], [3, 3, 3]]


def test_time_targets_are_all_later_events_and_unknown_items_are_negative(features: Path) -> None:
    test = dataset.load(features, Protocol.TIME).test_set()
    assert test.contexts.user_ids == ["ann", "cat"]
    assert [row.tolist() for row in test.contexts] == [[1, 2, 1], [3, 3, 3]]
    assert [row.tolist() for row in test.targets] == [[3, -4], [2, 2, 1]]


def test_a_user_without_a_kept_event_before_the_cut_is_counted_cold(tmp_path: Path) -> None:
    write_features(tmp_path / "f", {"a": [1, 1, 1, 1], "b": [2, 1, 1, 1]}, 2, split_ms=1)
    data = dataset.load(tmp_path / "f", Protocol.TIME, min_count=1)
    assert data.test_set().num_cold_users == 0
    write_features(tmp_path / "g", {"a": [1, 1, 1, 1], "b": [2, 1, 1, 1]}, 2, split_ms=2)
    assert dataset.load(tmp_path / "g", Protocol.TIME, min_count=3).test_set().num_cold_users == 0
    write_features(tmp_path / "h", {"a": [1, 1, 1], "b": [2, 3, 1]}, 3, split_ms=2)
    test = dataset.load(tmp_path / "h", Protocol.TIME, min_count=2).test_set()
    assert (test.contexts.user_ids, test.num_cold_users) == (["a"], 1)


def test_last_out_keeps_every_item_and_holds_out_the_last_event(features: Path) -> None:
    data = dataset.load(features, Protocol.LAST_OUT)
    assert len(data.vocabulary) == 5
    test = data.test_set()
    assert [row.tolist() for row in test.targets] == [[4], [5], [1]]
    assert [row.tolist() for row in test.contexts] == [[1, 2, 1, 3], [2, 2], [3, 3, 3, 2, 2]]


def test_final_fits_everything_and_holds_out_nothing(features: Path) -> None:
    data = dataset.load(features, Protocol.FINAL, min_count=1)
    assert len(data.fit.tokens) == 14
    with pytest.raises(DataError, match="nothing is held out"):
        data.test_set()


def test_last_out_validation_takes_the_event_before_the_target_from_every_user(features: Path) -> None:
    data = dataset.load(features, Protocol.LAST_OUT)
    # ann 1 2 1 (3) | 4, bob too short to give one, cat 3 3 3 2 (2) | 1
    for num_users, looked_at in ((10, 2), (1, 1)):
        validation = data.validation(num_users, seed=0)
        assert [row.tolist() for row in validation.train] == [[1, 2, 1], [2, 2], [3, 3, 3, 2]]
        assert len(validation.targets) == looked_at


def test_last_out_validation_looks_at_a_share_of_the_users_or_at_everyone(
    features: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "LEAST_LAST_OUT_USERS", 1)
    data = dataset.load(features, Protocol.LAST_OUT)
    assert [len(data.validation(10, seed=0, everyone=everyone).targets) for everyone in (False, True)] == [1, 2]
    assert len(data.validation(1, seed=0, everyone=True).targets) == 1


def test_time_validation_repeats_the_cut_within_the_fitted_events(tmp_path: Path) -> None:
    write_features(tmp_path / "f", {"a": [1] * 10 + [2], "b": [2] * 5 + [1] * 5, "c": [1, 2]}, 2, split_ms=10)
    validation = dataset.load(tmp_path / "f", Protocol.TIME, min_count=1).validation(10, seed=0)
    # fitted events are at 0 … 9 (a, b) and 0, 1 (c); their 0.9 quantile is 8 ms
    assert [row.tolist() for row in validation.train] == [[1] * 8, [2] * 5 + [1] * 3, [1, 2]]
    assert [row.tolist() for row in validation.contexts] == [[1] * 8, [2] * 5 + [1] * 3]
    assert [row.tolist() for row in validation.targets] == [[1, 1], [1, 1]]


def test_validation_prunes_by_what_was_before_it(tmp_path: Path) -> None:
    """Item 2 is kept for what validation holds out: there no list has it, and who takes it is missed."""
    of_2_alone = [*range(5, 13), 2, 1]
    histories = {"a": [1] * 8 + [2, 2], "b": [1] * 9 + [2], "c": of_2_alone, "d": [3] * 9 + [1], "e": [1] * 9 + [3]}
    write_features(tmp_path / "f", histories, 12, split_ms=10)
    data = dataset.load(tmp_path / "f", Protocol.TIME, min_count=3)
    assert [item.item_id for item in data.vocabulary.items] == ["sku-1", "sku-2", "sku-3"]
    validation = data.validation(10, seed=0)
    assert validation.from_ms == 9
    assert validation.pruned.tolist() == [2]
    assert validation.user_ids == ["a", "b", "c", "d", "e"]
    assert [row.tolist() for row in validation.train] == [[1] * 8 + [2], [1] * 9, [2], [3] * 9, [1] * 9]
    assert [row.tolist() for row in validation.contexts] == [row.tolist() for row in validation.train]
    assert [row.tolist() for row in validation.targets] == [[-2], [-2], [1], [1], [3]]
    kept = dataset.load(tmp_path / "f", Protocol.TIME, min_count=2).validation(10, seed=0)
    assert kept.pruned.tolist() == []
    assert kept.targets[0].tolist() == [2]


def test_validation_prunes_by_the_events_that_count(tmp_path: Path) -> None:
    """Views of item 2 do not keep it, and purchases of more than a day before do not."""
    day, purchase, view = 86_400_000, 0, 1
    rows = [("u", 1, n * day // 20, purchase) for n in range(100)]
    rows += [("v", 2, n * day // 20, kind) for n, kind in enumerate([purchase] * 60 + [view] * 32 + [purchase] * 8)]
    events = pl.DataFrame(rows, ["user_id", "item_index", "timestamp_ms", "event_type"], orient="row")
    metrics = {"split_ms": 5 * day, "event_types": ["purchase", "view"]}
    for config, pruned in (
        ({}, []),
        ({"count_types": ["purchase"]}, []),
        ({"count_period_days": 1}, []),
        ({"count_types": ["purchase"], "count_period_days": 1}, [2]),
    ):
        write_events(tmp_path / "f", events, 2, metrics, {"min_count": 3, **config})
        validation = dataset.load(tmp_path / "f", Protocol.TIME).validation(10, seed=0)
        assert validation.pruned.tolist() == pruned


@pytest.mark.parametrize(
    ("protocol", "train", "targets"),
    [
        # the cut is at 7.3 of 0 … 8; all that bob does after it is a return
        (Protocol.TIME, [8, 8], {"ann": [1]}),
        # bob's purchase at 7 is the test's; the one before is at 4, two returns go with it
        (Protocol.LAST_OUT, [7, 4], {"ann": [2], "bob": [1]}),
    ],
)
def test_validation_wants_events_of_the_types_to_be_predicted(
    tmp_path: Path, protocol: Protocol, train: list[int], targets: dict[str, list[int]]
) -> None:
    purchase, back = 0, 1
    kinds = {"ann": [purchase] * 9, "bob": [purchase] * 5 + [back, back, purchase, back]}
    rows = [(user, 1 + i % 2, i, kind) for user, of_user in kinds.items() for i, kind in enumerate(of_user)]
    events = pl.DataFrame(rows, ["user_id", "item_index", "timestamp_ms", "event_type"], orient="row")
    metrics = {"split_ms": 9, "event_types": ["purchase", "return"]}
    write_events(tmp_path / "f", events, 2, metrics, {"target_types": ["purchase"], "min_count": 1})
    validation = dataset.load(tmp_path / "f", protocol).validation(10, seed=0)
    assert validation.train.lengths.tolist() == train
    assert validation.user_ids == list(targets)
    assert [row.tolist() for row in validation.targets] == [targets[user] for user in validation.user_ids]


def test_validation_without_times_takes_events_only_from_the_users_it_looks_at(tmp_path: Path) -> None:
    write_features(tmp_path / "f", HISTORIES, num_items=5, split_ms=None)
    data = dataset.load(tmp_path / "f", Protocol.FINAL)
    validation = data.validation(1, seed=0)
    assert len(validation.train.tokens) == len(data.fit.tokens) - 1
    assert len(validation.contexts) == len(validation.targets) == 1


def test_events_after_the_cut_change_nothing_that_is_fitted(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    shuffled = {u: h[:3] + generator.permutation(h[3:]).tolist() for u, h in HISTORIES.items()}
    for name, histories in (("a", HISTORIES), ("b", shuffled)):
        write_features(tmp_path / name, histories, 5, split_ms=3)
    one, two = (dataset.load(tmp_path / name, Protocol.TIME) for name in "ab")
    assert one.vocabulary.items == two.vocabulary.items
    np.testing.assert_array_equal(one.fit.tokens, two.fit.tokens)


def test_a_log_without_times_cannot_be_cut_at_a_time(tmp_path: Path) -> None:
    write_features(tmp_path / "f", HISTORIES, 5, split_ms=None)
    with pytest.raises(DataError, match="use --protocol last-out"):
        dataset.load(tmp_path / "f", Protocol.TIME)


def test_events_of_one_moment_cannot_be_cut_at_a_time(tmp_path: Path) -> None:
    write_features(tmp_path / "f", {"a": [1], "b": [2]}, 2, split_ms=0)
    with pytest.raises(DataError, match="no event is before the cut, so nothing can be fitted; use --protocol last"):
        dataset.load(tmp_path / "f", Protocol.TIME)


def test_pruning_that_leaves_nothing_is_an_error(features: Path) -> None:
    with pytest.raises(DataError, match="no item has 99 events or more"):
        dataset.load(features, Protocol.TIME, min_count=99)


def test_a_folder_that_is_no_artifact_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no artifact here"):
        dataset.load(tmp_path, Protocol.TIME)


def test_a_user_is_found_unpruned(features: Path) -> None:
    assert WholeHistories(features).of("bob") == ["sku-2", "sku-2", "sku-5"]
    assert WholeHistories(features).of("dan") is None


def test_new_items_are_the_young_ones_that_are_not_kept(tmp_path: Path) -> None:
    day = 86_400_000
    rows = [("a", item, 100 * day + i) for i, item in enumerate([1, 1, 2])]  # kept at two events
    rows += [("b", 3, 10 * day), ("b", 4, 95 * day), ("b", 5, 130 * day)]
    events = pl.DataFrame(
        [(*row, 0) for row in sorted(rows)], ["user_id", "item_index", "timestamp_ms", "event_type"], orient="row"
    )
    write_events(tmp_path / "f", events, 5, {"split_ms": 120 * day})
    data = dataset.load(tmp_path / "f", Protocol.TIME)
    assert [item.item_id for item in data.new_items(120 * day)] == ["sku-2", "sku-4", "sku-5"]  # 3 is old, 5 to come
    assert [item.item_id for item in data.new_items(120 * day, until_ms=120 * day)] == ["sku-2", "sku-4"]
    assert [item.num_events for item in data.new_items(100 * day)] == [0, 0, 1, 0]  # then item 1 was new too
    shown = Vocabulary([*data.vocabulary.items, *data.new_items(120 * day)])
    assert [row.tolist() for row in data.test_set(shown).cold_targets] == [[4]]  # sku-5, after 1 kept and 2 new
    assert [row.tolist() for row in data.test_set().cold_targets] == [[-5]]
    assert data.items_after(["b", "a"], 95 * day)[0].tolist() == [4]
    assert dataset.load(tmp_path / "f", Protocol.TIME, vocabulary=shown).fit.tokens.tolist() == [1, 1]


def test_later_items_are_those_of_events_that_are_to_be_predicted(tmp_path: Path) -> None:
    rows = [("a", 1, 10, 0), ("a", 2, 20, 1), ("a", 3, 30, 2), ("a", 4, 40, 0)]
    events = pl.DataFrame(rows, ["user_id", "item_index", "timestamp_ms", "event_type"], orient="row")
    types = {"split_ms": 100, "event_types": ["purchase", "view", "return"]}
    write_events(tmp_path / "all", events, 4, types)
    assert dataset.load(tmp_path / "all", Protocol.TIME, 1).items_after(["a"], 20)[0].tolist() == [2, 4]
    write_events(tmp_path / "bought", events, 4, types, {"target_types": ["purchase"]})
    assert dataset.load(tmp_path / "bought", Protocol.TIME, 1).items_after(["a"], 20)[0].tolist() == [4]
