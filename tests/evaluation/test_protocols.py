import json
from collections.abc import Sequence

import numpy as np
import pytest

from recsys.contracts.errors import DataError
from recsys.contracts.ids import Tokens
from recsys.contracts.protocol import Protocol
from recsys.dataset import Histories, TestSet
from recsys.evaluation.baselines import Cooccurrence, LastItem, Popularity, top_k
from recsys.evaluation.protocols import evaluate


def histories(*rows: Sequence[int]) -> Histories:
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    tokens = np.concatenate([np.empty(0), *rows]).astype(np.int32)
    return Histories([f"u{u}" for u in range(len(rows))], offsets, tokens, np.arange(len(tokens), dtype=np.int64))


def test_set(contexts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], num_cold_users: int = 0) -> TestSet:
    return TestSet(histories(*contexts), [np.array(row, dtype=np.int64) for row in targets], num_cold_users)


test_set.__test__ = False  # type: ignore[attr-defined]


class Fixed:
    """The same list for everyone, less what is excluded; remembers what it was asked."""

    name = "fixed"

    def __init__(self, order: Sequence[int], obeys: bool = True) -> None:
        self.order, self.obeys, self.asked = order, obeys, []

    def rank(self, histories: Sequence[Tokens], k: int, exclude: Sequence[Tokens] | None = None) -> Tokens:
        self.asked.append((list(histories), exclude))
        ranked = np.zeros((len(histories), k), dtype=np.int32)
        for user in range(len(histories)):
            out = exclude[user] if exclude is not None and self.obeys else []
            row = [item for item in self.order if item not in out][:k]
            ranked[user, : len(row)] = row
        return ranked


class Scored:
    """Ranks by a table of scores, one row per user in the order they are asked for."""

    name = "scored"

    def __init__(self, scores_UV: np.ndarray) -> None:
        self.scores_UV, self.done = scores_UV, 0

    def rank(self, histories: Sequence[Tokens], k: int, exclude: Sequence[Tokens] | None = None) -> Tokens:
        rows = self.scores_UV[self.done : self.done + len(histories)]
        self.done += len(histories)
        return top_k(rows, k, exclude)


# u0: targets 2 (twice), -7: one of two found at rank 2. u1: 1 at rank 1. u2: no context, so cold. u3: no targets.
CONTEXTS = [[1, 3], [2], [], [4]]
TARGETS = [[2, 2, -7], [1], [3], []]


def test_headline_next_and_counts_by_hand_under_time() -> None:
    test = test_set(CONTEXTS, TARGETS, num_cold_users=5)
    report = evaluate({"model": Fixed([1, 2, 5])}, test, 8, Protocol.TIME, ks=(1, 3))
    answer = report.to_json()
    model = answer["model"]
    assert report.user_ids == ["u0", "u1"]
    assert (model["recall@1"], model["recall@3"]) == ((0 + 1) / 2, (1 / 2 + 1) / 2)
    assert (model["hit_rate@1"], model["hit_rate@3"], model["mrr"]) == (1 / 2, 1, (1 / 2 + 1) / 2)
    # u0: .63093 / (1 + .63093) = .38685; u1: 1
    assert model["ndcg@3"] == pytest.approx((0.38685 + 1) / 2, abs=1e-5)
    assert (model["coverage@1"], model["coverage@3"]) == (1 / 8, 3 / 8)
    # The first targets are 2 and 1.
    assert (model["next"]["recall@3"], model["next"]["recall@1"]) == (1, 1 / 2)
    assert answer["num_users"] == 2
    assert answer["num_cold_users"] == 5 + 1
    assert (answer["num_targets"], answer["num_targets_outside_vocabulary"], answer["num_targets_seen"]) == (3, 1, 0)
    assert answer["protocol"] == "time"


def test_last_out_hides_the_users_own_items_and_time_does_not() -> None:
    test = test_set([[1, 3, 1], [2]], [[3], [1]])
    ranker = Fixed([1, 2, 3])
    report = evaluate({"model": ranker}, test, 3, Protocol.LAST_OUT, ks=(2,))
    assert [row.tolist() for row in ranker.asked[0][1]] == [[1, 3], [2]]
    assert report.results["model"].headline["recall@2"].tolist() == [0, 1]  # u0's target is a seen item: a miss
    assert report.num_targets_seen == 1
    report = evaluate({"model": ranker}, test, 3, Protocol.TIME, ks=(3,))
    assert ranker.asked[1][1] is None
    assert report.results["model"].headline["recall@3"].tolist() == [1, 1]


def test_headline_and_next_are_equal_under_last_out() -> None:
    generator = np.random.default_rng(0)
    fit = histories(*generator.integers(1, 51, size=(40, 6)))
    report = evaluate(
        {"p": Popularity(fit, 50), "c": Cooccurrence(fit, 50)},
        TestSet(fit, list(generator.integers(1, 51, size=(40, 1))), 0), 50, Protocol.LAST_OUT, ks=(5,),
    )  # fmt: skip
    for result in report.results.values():
        assert result.headline.keys() == result.next.keys()
        assert all((result.headline[name] == result.next[name]).all() for name in result.headline)


@pytest.mark.parametrize("protocol", [Protocol.TIME, Protocol.LAST_OUT])
def test_an_oracle_scores_one(protocol: Protocol) -> None:
    contexts = np.random.default_rng(1).integers(1, 21, size=(30, 4))
    targets = np.random.default_rng(2).integers(21, 41, size=(30, 3))
    scores = np.zeros((30, 41))
    np.put_along_axis(scores, targets, 1.0, axis=1)
    for column in (2, 1, 0):
        scores[np.arange(30), targets[:, column]] = 3 - column  # the first target on top
    report = evaluate({"model": Scored(scores)}, test_set(contexts, targets), 40, protocol, ks=(3, 10), batch_size=7)
    model = report.to_json()["model"]
    judged = [f"{name}@{k}" for k in (3, 10) for name in ("recall", "ndcg", "hit_rate", "map")] + ["mrr"]
    assert {name: model[name] for name in judged} == pytest.approx(dict.fromkeys(judged, 1))
    assert {name: model["next"][name] for name in judged} == pytest.approx(dict.fromkeys(judged, 1))


def test_random_ranking_finds_what_chance_predicts() -> None:
    num_users, num_items, k = 4000, 200, 20
    generator = np.random.default_rng(9)
    scores = generator.random((num_users, num_items + 1))
    contexts = generator.integers(1, num_items + 1, size=(num_users, 2))
    targets = generator.integers(1, num_items + 1, size=(num_users, 1))
    report = evaluate({"model": Scored(scores)}, test_set(contexts, targets), num_items, Protocol.TIME, ks=(k,))
    chance = k / num_items  # .1; one target a user, so the standard error is sqrt(.1 * .9 / 4000) = .0047
    sigma = (chance * (1 - chance) / num_users) ** 0.5
    assert abs(report.to_json()["model"][f"recall@{k}"] - chance) < 4 * sigma


def test_rankers_are_shown_contexts_only_whatever_the_future_is() -> None:
    futures = np.random.default_rng(3).integers(1, 9, size=(4, 5))
    asked = []
    for seed in range(3):
        ranker = Fixed([1, 2, 3])
        future = np.random.default_rng(seed).permuted(futures.ravel()).reshape(4, 5)
        evaluate({"model": ranker}, test_set([[1], [2, 3], [4], [5]], future), 8, Protocol.LAST_OUT, ks=(3,))
        asked.append([[row.tolist() for row in call] for question in ranker.asked for call in question])
    assert asked[0] == asked[1] == asked[2] == [[[1], [2, 3], [4], [5]], [[1], [2, 3], [4], [5]]]


def test_baselines_fitted_before_the_cut_do_not_know_what_came_after() -> None:
    # Before the cut 1 leads; after it everybody turns to 2, which has no fitted event.
    fit = histories([1, 3], [1, 3], [1])
    test = TestSet(fit, [np.array([2])] * 3, 0)
    rankers = {kind.name: kind(fit, 3) for kind in (Popularity, LastItem, Cooccurrence)}
    answer = evaluate(rankers, test, 3, Protocol.TIME, ks=(2,)).to_json()
    assert {name: values["recall@2"] for name, values in answer["baselines"].items()} == dict.fromkeys(rankers, 0)


def test_batches_change_nothing_and_progress_reaches_the_end() -> None:
    generator = np.random.default_rng(5)
    fit = histories(*generator.integers(1, 31, size=(25, 8)))
    test = TestSet(fit, list(generator.integers(1, 31, size=(25, 4))), 0)
    calls: list[tuple[str, int, int]] = []
    ranker = Cooccurrence(fit, 30)
    whole = evaluate({"c": ranker}, test, 30, Protocol.TIME, ks=(5,))
    pieces = evaluate(
        {"c": ranker}, test, 30, Protocol.TIME, ks=(5,), batch_size=10, progress=lambda *call: calls.append(call)
    )
    assert whole.to_json() == pieces.to_json()
    assert calls == [("c", 10, 25), ("c", 20, 25), ("c", 25, 25)]


def test_report_is_plain_json_and_has_no_model_unless_given_one() -> None:
    report = evaluate({"popularity": Popularity(histories([1]), 2)}, test_set([[1]], [[2]]), 2, Protocol.TIME)
    answer = json.loads(json.dumps(report.to_json()))
    assert "model" not in answer
    assert list(answer["baselines"]) == ["popularity"]
    assert answer["baselines"]["popularity"]["recall@100"] == 1


def test_no_user_to_judge_is_an_error_of_the_data() -> None:
    with pytest.raises(DataError, match="no user has kept events before the cut"):
        evaluate({}, test_set([[1], []], [[], [2]]), 3, Protocol.TIME)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([1, 1], "ranker 'model': ranked list in row 0 repeats an item"),
        ([9, 1], "ranker 'model' returned token 9, expected at most 3"),
        ([1, 2], "ranker 'model' returned items of the history"),
    ],
)
def test_a_ranker_that_breaks_its_contract_is_named(order: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate({"model": Fixed(order, obeys=False)}, test_set([[2]], [[3]]), 3, Protocol.LAST_OUT, ks=(2,))


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ks = \[0\], batch_size = 256"):
        evaluate({}, test_set([[1]], [[2]]), 3, Protocol.TIME, ks=(0,))
