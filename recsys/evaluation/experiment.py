"""Statistics of a running experiment: is the split as it was meant, and how far are the arms apart by now.

One observation is one user: answers of the same user are not independent. Users come in the order in which
they entered, and an observation no longer changes once it is made, so that the intervals may be looked at
every day, and the experiment stopped on what they say.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import special

SPLIT_ALARM: Final = 0.001
"""A sample ratio with a smaller p value is no accident: assignment or logging is broken.

Source: Fabijan et al., Diagnosing Sample Ratio Mismatch, KDD 2019.
"""
MIN_USERS: Final = 100
"""Users of each arm from which on an interval is given: it is asymptotic, and says nothing of the first few."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Sums over the users of one arm. Adding two is adding their fields."""

    num_users: int = 0
    total: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, values: Sequence[float]) -> "Sample":
        """The sums of one value a user."""
        array = np.asarray(values, dtype=np.float64)
        return cls(len(array), float(array.sum()), float((array**2).sum()))

    def __add__(self, other: "Sample") -> "Sample":
        return Sample(self.num_users + other.num_users, self.total + other.total, self.squares + other.squares)

    @property
    def mean(self) -> float:
        """Of one user's value; nan without users."""
        return self.total / self.num_users if self.num_users else math.nan

    def variance(self, *, binary: bool) -> float:
        """Of one user's value; nan below two users.

        A binary outcome is counted as if one more user had it and one more had not: where nobody has had it so
        far, it is not certain that nobody will. Source: Agresti, Coull, The American Statistician 52(2), 1998.
        """
        if self.num_users < 2:
            return math.nan
        if binary:
            share = (self.total + 1) / (self.num_users + 2)
            return share * (1 - share)
        return max(self.squares - self.total**2 / self.num_users, 0.0) / (self.num_users - 1)


@dataclass(frozen=True, slots=True)
class Interval:
    """A difference of means, arm minus control, with an interval that holds at every look at once."""

    difference: float
    low: float
    high: float
    p_value: float
    """The smallest level at which the interval leaves out 0: valid at every look, too."""


def sample_ratio(num_users: Sequence[int], weights: Sequence[float]) -> float:
    """The p value of the arms' sizes under their weights, by Pearson's chi-square; 1 without users.

    Raises:
        ValueError: lengths differ, a weight is not positive, or there is one arm only.
    """
    if len(num_users) != len(weights) or len(weights) < 2 or min(weights) <= 0:
        raise ValueError(f"sizes {list(num_users)}, weights {list(weights)}: expected as many, two or more, all > 0")
    total = sum(num_users)
    if not total:
        return 1.0
    expected = np.asarray(weights, dtype=np.float64) / sum(weights) * total
    distance = ((np.asarray(num_users) - expected) ** 2 / expected).sum()
    # Not scipy.stats: the endpoint imports this module, and would start a second later.
    return float(special.chdtrc(len(weights) - 1, distance))


def always_valid(
    arm: Sample, control: Sample, *, alpha: float, expected_users: int, binary: bool = False
) -> Interval | None:
    """The difference of means with an interval that holds at all looks together with probability 1 − alpha.

    None before both arms have MIN_USERS, or where nothing varies. `expected_users` (of both arms together) is
    the size at which the interval is tightest; it is chosen before the first user, and any choice is valid.

    With V the variance of the difference, t the number of users and ρ from `expected_users`:

        difference ± sqrt(V · 2 (tρ² + 1) / (tρ²) · log(sqrt(tρ² + 1) / alpha))

    Source: Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas, Time-uniform central limit theory and asymptotic
    confidence sequences, Annals of Statistics 52(6), 2024, theorem 2.2.

    Raises:
        ValueError: alpha not in (0, 1), or expected_users below 1.
    """
    if not 0 < alpha < 1 or expected_users < 1:
        raise ValueError(f"alpha = {alpha}, expected_users = {expected_users}; expected 0..1 and 1 or more")
    if min(arm.num_users, control.num_users) < MIN_USERS:
        return None
    variance = arm.variance(binary=binary) / arm.num_users + control.variance(binary=binary) / control.num_users
    if variance <= 0:
        return None
    growth = (arm.num_users + control.num_users) * _rho_squared(alpha, expected_users)
    difference = arm.mean - control.mean
    scale = 2 * (growth + 1) / growth
    margin = math.sqrt(variance * scale * math.log(math.sqrt(growth + 1) / alpha))
    p_value = math.sqrt(growth + 1) * math.exp(-(difference**2) / (variance * scale))
    return Interval(difference, difference - margin, difference + margin, min(1.0, p_value))


def _rho_squared(alpha: float, expected_users: int) -> float:
    """Makes the interval at `expected_users` nearly the tightest that it can be."""
    log = -2 * math.log(alpha)
    return (log + math.log(log) + 1) / expected_users
