import numpy as np
import pytest
from scipy import stats

from recsys.evaluation.statistics import paired_difference


def test_means_and_difference_by_hand() -> None:
    # a: mean 2; b: mean 1.5; difference .5; relative 1/3
    result = paired_difference(np.array([1.0, 2.0, 3.0]), np.array([1.0, 1.0, 2.5]), seed=0)
    assert (result.mean_a, result.mean_b, result.difference, result.num_users) == (2.0, 1.5, 0.5, 3)
    assert result.num_different == 2
    assert result.relative == pytest.approx(1 / 3)


def test_values_summed_in_another_order_do_not_differ() -> None:
    parts = np.random.default_rng(0).random((3, 1000))
    a, b = (parts[0] + parts[1] + parts[2]) / 3, (parts[2] + parts[1] + parts[0]) / 3
    assert (a != b).sum() > 50
    assert paired_difference(a, b, seed=0).num_different == 0


def test_a_constant_difference_has_no_width_though_the_users_differ() -> None:
    b = np.random.default_rng(0).random(200)
    result = paired_difference(b + 0.25, b, seed=1)
    assert (result.low, result.high) == pytest.approx((0.25, 0.25))


def test_twice_the_reference_is_plus_100_percent_without_width() -> None:
    b = np.random.default_rng(0).random(200)
    result = paired_difference(2 * b, b, seed=1)
    assert (result.relative_low, result.relative_high) == pytest.approx((1, 1))


def test_two_users_give_the_binomial_interval() -> None:
    # differences 0 and 1: resampled means are 0, .5, 1 with chances 1/4, 1/2, 1/4; 2.5 % lie in the outer ones
    result = paired_difference(np.array([0.0, 1.0]), np.zeros(2), seed=3)
    assert (result.low, result.high) == (0, 1)
    assert paired_difference(np.array([0.0, 1.0]), np.zeros(2), seed=3, confidence=0.4).low == 0.5


def test_a_reference_of_zero_has_no_relative_difference() -> None:
    result = paired_difference(np.ones(5), np.zeros(5), seed=0)
    assert result.difference == 1
    assert np.isnan([result.relative, result.relative_low, result.relative_high]).all()


def test_interval_agrees_with_scipy() -> None:
    generator = np.random.default_rng(5)
    a, b = generator.random(300), generator.random(300) * 0.9
    ours = paired_difference(a, b, seed=7, num_resamples=10_000)
    theirs = stats.bootstrap(
        (a, b), lambda x, y, axis: (x - y).mean(axis), paired=True, vectorized=True, n_resamples=10_000,
        method="percentile", rng=np.random.default_rng(8),
    ).confidence_interval  # fmt: skip
    # The standard error is about .023; a percentile of 10,000 resamples moves by about .0006.
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.003)


def test_interval_covers_the_truth_about_95_times_in_100() -> None:
    covered = 0
    for seed in range(200):
        difference = np.random.default_rng(1000 + seed).normal(0.1, 1.0, size=80)
        result = paired_difference(difference, np.zeros(80), seed=seed, num_resamples=500)
        covered += result.low <= 0.1 <= result.high
    assert 176 <= covered <= 200  # 190 ± 4 sigma of 3.1, and a little for the few users


def test_the_same_seed_gives_the_same_interval_and_swapping_mirrors_it() -> None:
    generator = np.random.default_rng(2)
    a, b = generator.random(50), generator.random(50)
    first, again, swapped = (paired_difference(*pair, seed=4) for pair in ((a, b), (a, b), (b, a)))
    assert first == again
    assert (first.low, first.high) == pytest.approx((-swapped.high, -swapped.low))


def test_resampling_in_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = np.random.default_rng(2).random((2, 30))
    whole = paired_difference(a, b, seed=4, num_resamples=100)
    monkeypatch.setattr("recsys.evaluation.statistics._CELLS_AT_ONCE", 70)
    assert paired_difference(a, b, seed=4, num_resamples=100) == whole


def test_a_user_with_several_values_is_resampled_whole() -> None:
    # user x has values 1, 1, 1 and y has 0: resampled means are 1 (x, x), 3/4 (x, y or y, x) and 0 (y, y)
    values, users = np.array([1.0, 1.0, 0.0, 1.0]), ["x", "x", "y", "x"]
    result = paired_difference(values, np.zeros(4), seed=3, user_ids=users)
    assert (result.difference, result.low, result.high, result.num_users) == (0.75, 0, 1, 2)
    assert paired_difference(values, np.zeros(4), seed=3, user_ids=users, confidence=0.4).low == 0.75


def test_users_of_one_value_each_give_the_same_interval_named_or_not() -> None:
    a, b = np.random.default_rng(2).random((2, 50))
    names = [f"u{number:02d}" for number in range(50)]
    assert paired_difference(a, b, seed=4, user_ids=names) == paired_difference(a, b, seed=4)


def test_values_that_repeat_of_a_user_do_not_narrow_the_interval() -> None:
    """Thirty users of one day; or the same on twelve days alike: nothing more is known."""
    a, b = np.random.default_rng(2).random((2, 30))
    names = [f"u{number:02d}" for number in range(30)]
    once = paired_difference(a, b, seed=4)
    often = paired_difference(np.tile(a, 12), np.tile(b, 12), seed=4, user_ids=names * 12)
    naive = paired_difference(np.tile(a, 12), np.tile(b, 12), seed=4)
    assert (often.low, often.high, often.num_users) == (pytest.approx(once.low), pytest.approx(once.high), 30)
    assert naive.high - naive.low == pytest.approx((often.high - often.low) / 12**0.5, rel=0.1)


def test_user_ids_are_one_of_each_value() -> None:
    with pytest.raises(ValueError, match="3 user_ids of 2 values"):
        paired_difference(np.ones(2), np.ones(2), seed=0, user_ids=["a", "b", "c"])


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.ones(2), np.ones(3), r"shapes \(2,\) and \(3,\), expected the same users"),
        (np.ones(0), np.ones(0), "at least one"),
        (np.array([1.0, np.nan]), np.ones(2), "nan or infinite"),
    ],
)
def test_bad_values_are_refused(a: np.ndarray, b: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paired_difference(a, b, seed=0)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"confidence = 95, num_resamples = 2000"):
        paired_difference(np.ones(2), np.ones(2), seed=0, confidence=95)
