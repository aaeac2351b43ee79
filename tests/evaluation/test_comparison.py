import json

import numpy as np
import pytest
from scipy import stats

from recsys.evaluation.comparison import Verdict, compare, holm, judge, t_test, too_few
from recsys.evaluation.statistics import PairedDifference, paired_difference

NAN = float("nan")


def difference(low: float, high: float, relative_low: float, num_different: int = 20) -> PairedDifference:
    return PairedDifference(
        mean_a=0.2, mean_b=0.2, difference=(low + high) / 2, low=low, high=high, relative=0.0,
        relative_low=relative_low, relative_high=0.1, num_users=90, num_different=num_different, confidence=0.95,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("low", "high", "relative_low", "verdict"),
    [
        (0.001, 0.002, 0.005, Verdict.BETTER),
        (-0.0004, 0.002, -0.002, Verdict.NON_INFERIOR),
        (-0.0004, -0.0002, -0.002, Verdict.NON_INFERIOR),  # certainly lower, certainly by less than the margin
        (0.0, 0.0, 0.0, Verdict.NON_INFERIOR),
        (-0.0006, 0.002, -0.003, Verdict.INCONCLUSIVE),  # the margin itself is too much
        (-0.01, 0.001, -0.05, Verdict.INCONCLUSIVE),
        (-0.01, -0.001, -0.05, Verdict.WORSE),
        (0.0, 0.0, NAN, Verdict.INCONCLUSIVE),  # B scores 0
        (0.1, 0.2, NAN, Verdict.BETTER),
    ],
)
def test_the_interval_decides(low: float, high: float, relative_low: float, verdict: Verdict) -> None:
    assert judge(difference(low, high, relative_low), 0.003) is verdict


@pytest.mark.parametrize(("low", "high", "relative_low"), [(0.001, 0.002, 0.005), (0, 0, 0), (-0.01, -0.001, -0.05)])
def test_too_few_users_that_differ_decide_nothing(low: float, high: float, relative_low: float) -> None:
    assert judge(difference(low, high, relative_low, num_different=19), 0.003) is Verdict.INCONCLUSIVE
    same = np.random.default_rng(0).random(1000)
    row = compare({"m": same}, {"m": same}, "itself", metrics=["m"])
    assert row.verdict is Verdict.INCONCLUSIVE
    assert too_few(row.to_json()["primary"]) == "only 0 of 1,000 users tell them apart, 20 are needed for a verdict"
    assert too_few(compare({"m": same}, {"m": 2 * same}, "b", metrics=["m"]).to_json()["primary"]) == ""


@pytest.mark.parametrize(("hits", "loss"), [(0.1, 0.03), (0.3, 0.1), (0.3, 0.3)])
def test_hits_lost_by_exactly_the_margin_are_seldom_called_non_inferior(hits: float, loss: float) -> None:
    called = 0
    for seed in range(400):
        generator = np.random.default_rng(seed)
        b = generator.random(1000) < hits
        a = b & (generator.random(1000) >= loss)  # 3, 30 and 90 of 1,000 users lose what they had
        result = paired_difference(a.astype(float), b.astype(float), seed, num_resamples=400)
        called += judge(result, loss) in (Verdict.NON_INFERIOR, Verdict.BETTER)
    assert called <= 30  # at most 20 expected, standard error 4.4


def test_a_loss_of_exactly_the_margin_is_called_non_inferior_at_most_about_once_in_forty() -> None:
    called = 0
    for seed in range(400):
        generator = np.random.default_rng(seed)
        b = generator.uniform(0.2, 0.8, size=150)
        a = b * (1 - 0.05) + generator.normal(0, 0.05, size=150)  # the truth is a relative loss of 5 %
        result = paired_difference(a, b, seed, num_resamples=400)
        called += judge(result, 0.05) in (Verdict.NON_INFERIOR, Verdict.BETTER)
    assert called <= 22  # 10 expected, standard error 3.1, and a little for the few resamples


def test_holm_by_hand() -> None:
    # sorted .01 .02 .04, times 3 2 1: .03 .04 .04
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    # .03 · 2 = .06; then .031 · 1, lifted to .06
    assert holm([0.03, 0.031]) == pytest.approx([0.06, 0.06])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []


def test_holm_does_not_count_what_is_undefined() -> None:
    corrected = holm([0.02, NAN, 0.01])
    assert corrected[0] == corrected[2] == pytest.approx(0.02)
    assert np.isnan(corrected[1])


def test_holm_keeps_false_alarms_of_many_true_nulls_at_the_level() -> None:
    generator = np.random.default_rng(0)
    alarms = sum(min(holm(list(generator.random(5)))) <= 0.05 for _ in range(2000))
    assert abs(alarms - 100) < 4 * (2000 * 0.05 * 0.95) ** 0.5


def test_t_test_agrees_with_scipy_and_with_a_permutation_test() -> None:
    generator = np.random.default_rng(3)
    a, b = generator.random(60), generator.random(60) * 0.8
    assert t_test(a, b) == pytest.approx(stats.ttest_rel(a, b).pvalue)
    permuted = stats.permutation_test(
        (a, b), lambda x, y, axis: (x - y).mean(axis), permutation_type="samples", vectorized=True,
        n_resamples=9_999, rng=np.random.default_rng(4),
    )  # fmt: skip
    # p is about .1, so the standard error of 9,999 resamples is about .003
    assert t_test(a, b) == pytest.approx(permuted.pvalue, abs=0.015)


def test_t_test_where_nothing_varies() -> None:
    same = np.array([0.25, 0.5, 1.0])
    assert t_test(same, same) == 1
    assert t_test(same + 0.1, same) == 0  # though 0.1 more is rounded differently for each
    assert np.isnan(t_test(np.ones(1), np.zeros(1)))


def test_the_first_metric_is_primary_and_only_the_others_are_corrected() -> None:
    generator = np.random.default_rng(1)
    b = {name: generator.random(80) for name in ("x", "y", "z")}
    a = {name: values + generator.normal(0.05, 0.1, size=80) for name, values in b.items()}
    result = compare(a, b, "last night", metrics=["y", "x", "z"], margin=0.01)
    assert result.verdict is Verdict.BETTER
    assert result.primary.metric == "y"
    assert result.primary.p_holm is None
    assert [row.metric for row in result.exploratory] == ["x", "z"]
    assert [row.p_holm for row in result.exploratory] == holm([row.p_value for row in result.exploratory])
    interval = result.primary.difference
    assert result.resolution == (interval.relative_high - interval.relative_low) / 2


def test_plain_values_are_strict_json_even_where_b_scores_nothing() -> None:
    result = compare({"m": np.zeros(3)}, {"m": np.zeros(3)}, "b", metrics=["m"])
    answer = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert answer["verdict"] == "inconclusive"
    assert answer["resolution"] is None
    assert answer["primary"]["relative"] is None
    assert answer["primary"]["p_value"] == 1


def test_users_that_are_not_the_same_are_refused() -> None:
    with pytest.raises(ValueError, match="expected the same users"):
        compare({"m": np.ones(2)}, {"m": np.ones(3)}, "b", metrics=["m"])
    with pytest.raises(ValueError, match=r"0 metrics, margin = 0.003"):
        compare({}, {}, "b", metrics=[])
    with pytest.raises(ValueError, match=r"margin = 3, expected"):
        compare({"m": np.ones(2)}, {"m": np.ones(2)}, "b", metrics=["m"], margin=3)
