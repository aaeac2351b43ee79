"""Statistics of experiments: right at every look, not only at the last."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from recsys.evaluation.experiment import MIN_USERS, Interval, Sample, always_valid, sample_ratio

samples = st.builds(
    lambda n, share: Sample.of([1.0] * round(n * share) + [0.0] * (n - round(n * share))),
    st.integers(MIN_USERS, 10_000),
    st.floats(0, 1),
)


@given(st.lists(st.floats(-1e3, 1e3), max_size=20), st.lists(st.floats(-1e3, 1e3), max_size=20))
def test_samples_add_up_to_the_sample_of_all(one: list[float], other: list[float]) -> None:
    both, added = Sample.of(one + other), Sample.of(one) + Sample.of(other)
    assert both.num_users == added.num_users
    assert (both.total, both.squares) == pytest.approx((added.total, added.squares))
    if both.num_users > 1:
        assert both.variance(binary=False) == pytest.approx(np.var(one + other, ddof=1), abs=1e-6)


@given(samples, samples, st.floats(0.001, 0.2), st.integers(1, 100_000))
def test_swapping_the_arms_turns_the_interval_round(arm: Sample, control: Sample, alpha: float, users: int) -> None:
    one = always_valid(arm, control, alpha=alpha, expected_users=users, binary=True)
    other = always_valid(control, arm, alpha=alpha, expected_users=users, binary=True)
    assert one is not None and other is not None
    assert (one.low, one.high, one.p_value) == pytest.approx((-other.high, -other.low, other.p_value))


@given(samples, samples, st.floats(0.001, 0.2), st.integers(1, 100_000))
def test_the_p_value_is_below_alpha_just_where_the_interval_leaves_out_0(
    arm: Sample, control: Sample, alpha: float, users: int
) -> None:
    found = always_valid(arm, control, alpha=alpha, expected_users=users, binary=True)
    assert found is not None
    if not math.isclose(found.p_value, alpha, rel_tol=1e-6):
        assert (found.p_value < alpha) == (found.low > 0 or found.high < 0)


@given(st.lists(st.integers(0, 10_000), min_size=2, max_size=5), st.integers(0, 2**32))
def test_the_sample_ratio_is_pearsons_chi_square(sizes: list[int], seed: int) -> None:
    weights = np.random.default_rng(seed).uniform(0.1, 10, size=len(sizes)).tolist()
    if sum(sizes):
        expected = np.array(weights) / sum(weights) * sum(sizes)
        assert sample_ratio(sizes, weights) == pytest.approx(stats.chisquare(sizes, expected).pvalue)
    else:
        assert sample_ratio(sizes, weights) == 1


def test_the_sample_ratio_by_hand() -> None:
    # expected 500 each: chi-square (20² + 20²) / 500 = 1.6, one degree of freedom
    assert sample_ratio([520, 480], [1, 1]) == pytest.approx(math.erfc(math.sqrt(1.6 / 2)))


def looks(generator: np.random.Generator, outcomes: np.ndarray, in_arm: np.ndarray) -> Iterator[tuple[Sample, Sample]]:
    """(arm, control) after every 50 users."""
    for stop in range(MIN_USERS, len(outcomes), 50):
        yield tuple(Sample.of(outcomes[:stop][in_arm[:stop] == side]) for side in (True, False))  # type: ignore[misc]


def false_alarms(share: float, *, spread: float) -> tuple[int, int]:
    """Of 200 experiments without any difference, looked at every 50 users: alarms of ours, and of plain intervals."""
    ours = plain = 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        in_arm = generator.random(2_000) < 0.5
        outcomes = (generator.random(2_000) < share) * generator.lognormal(0, spread, size=2_000)
        found: list[Interval] = []
        alarm = False
        for arm, control in looks(generator, outcomes, in_arm):
            interval = always_valid(arm, control, alpha=0.05, expected_users=1_000, binary=not spread)
            if interval is not None:
                found.append(interval)
                variance = sum(s.variance(binary=not spread) / s.num_users for s in (arm, control))
                alarm |= abs(interval.difference) > 1.96 * math.sqrt(variance)
        ours += any(i.low > 0 or i.high < 0 for i in found)
        plain += alarm
    return ours, plain


@pytest.mark.parametrize(("share", "spread"), [(0.3, 0), (0.02, 0), (0.05, 1.0)])
def test_peeking_raises_no_more_false_alarms_than_alpha_and_plain_intervals_do(share: float, spread: float) -> None:
    ours, plain = false_alarms(share, spread=spread)
    assert ours <= 10  # 5 % of 200
    assert plain > 20  # what peeking costs those who do not allow for it


def test_a_real_difference_is_found() -> None:
    generator = np.random.default_rng(0)
    in_arm = generator.random(20_000) < 0.5
    outcomes = (generator.random(20_000) < np.where(in_arm, 0.13, 0.10)).astype(float)
    arm, control = Sample.of(outcomes[in_arm]), Sample.of(outcomes[~in_arm])
    found = always_valid(arm, control, alpha=0.05, expected_users=20_000, binary=True)
    assert found is not None
    assert 0 < found.low < 0.03 < found.high


def test_nothing_is_said_of_the_first_few_users_nor_where_nothing_varies() -> None:
    few, many = Sample.of([0.0, 1.0] * 49), Sample.of([0.0, 1.0] * 50)
    assert always_valid(few, many, alpha=0.05, expected_users=1_000, binary=True) is None
    assert always_valid(many, many, alpha=0.05, expected_users=1_000, binary=True) is not None
    nothing = Sample.of([0.0] * 100)
    assert always_valid(nothing, nothing, alpha=0.05, expected_users=1_000) is None


def test_settings_that_make_no_sense_are_refused() -> None:
    some = Sample.of([0.0, 1.0] * 50)
    with pytest.raises(ValueError, match=r"alpha = 1, expected_users = 10"):
        always_valid(some, some, alpha=1, expected_users=10)
    with pytest.raises(ValueError, match="expected as many, two or more, all > 0"):
        sample_ratio([1, 2], [1, 0])
