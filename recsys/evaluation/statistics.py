"""Paired comparison of two rankers on the same users."""

# V values, U users, R resamples

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

LEAST_DIFFERENT = 20
"""Users whose values differ, without whom an interval says nothing: users who are not in the sample are not in any
resample either, so where nobody differs the interval is [0, 0], whatever is true of others."""
_ROUNDING = 1e-9
"""Values this close are the same, summed in another order."""
_CELLS_AT_ONCE = 4_000_000
"""Resampled users held in memory at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedDifference:
    """Mean of a minus mean of b over the same values, with a bootstrap interval."""

    mean_a: float
    mean_b: float
    difference: float
    """mean_a - mean_b."""
    low: float
    high: float
    relative: float
    """difference / mean_b; nan where mean_b is 0."""
    relative_low: float
    relative_high: float
    """The ratio is resampled too: mean_b is not taken as known. nan where a resample has mean_b = 0."""
    num_users: int
    """How many were resampled."""
    num_different: int
    """How many of them a and b differ for."""
    confidence: float

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is undefined is None."""
        return {name: None if np.isnan(value) else value for name, value in asdict(self).items()}


def paired_difference(
    a: npt.NDArray[np.float64],
    b: npt.NDArray[np.float64],
    seed: int,
    *,
    user_ids: Sequence[str] | None = None,
    confidence: float = 0.95,
    num_resamples: int = 2_000,
) -> PairedDifference:
    """Compare values of two rankers, entry v of both being of the same user (and night, if a user has several).

    Users are resampled with replacement, all values of a user together: `user_ids` says whose each entry is; without
    it each is another user's. A mean is over values, so that a resampled one is a ratio of sums. The interval is
    between the percentiles of the resampled differences. The same seed gives the same interval. It treats the
    users as independent and knows nothing of the randomness of training. Where few users differ (see
    `LEAST_DIFFERENT`) a percentile interval is too narrow.
    Source: Efron, Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13 (percentile interval); Davison,
    Hinkley, Bootstrap Methods and their Application, 1997, section 3.8 (clusters resampled whole).

    Raises:
        ValueError: shapes differ or are not [V], no values, a value is not finite, or a setting is out of range.
    """
    _check(a, b, confidence, num_resamples)
    sums_a, sums_b, sizes = a, b, None
    if user_ids is not None:
        users = np.unique(user_ids, return_inverse=True)[1]
        if users.shape != a.shape:
            raise ValueError(f"{len(users)} user_ids of {len(a)} values, expected one of each")
        sums_a, sums_b = (np.bincount(users, values).astype(np.float64) for values in (a, b))
        sizes = np.bincount(users)
    means_a, means_b = _resampled_means(sums_a, sums_b, sizes, seed, num_resamples)
    tails = (1 - confidence) / 2, (1 + confidence) / 2
    low, high = np.quantile(means_a - means_b, tails)
    ratios = np.divide(means_a - means_b, means_b, out=np.full(num_resamples, np.nan), where=means_b != 0)
    relative_low, relative_high = np.quantile(ratios, tails)
    mean_a, mean_b = float(a.mean()), float(b.mean())
    return PairedDifference(
        mean_a=mean_a,
        mean_b=mean_b,
        difference=mean_a - mean_b,
        low=float(low),
        high=float(high),
        relative=(mean_a - mean_b) / mean_b if mean_b else np.nan,
        relative_low=float(relative_low),
        relative_high=float(relative_high),
        num_users=len(sums_a),
        num_different=int(np.count_nonzero(~np.isclose(sums_a, sums_b, rtol=_ROUNDING, atol=_ROUNDING))),
        confidence=confidence,
    )


def _check(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64], confidence: float, num_resamples: int) -> None:
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"values of shapes {a.shape} and {b.shape}, expected the same users, at least one")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("a value is nan or infinite; leave out users without targets from both")
    if not 0 < confidence < 1 or num_resamples < 1:
        raise ValueError(f"confidence = {confidence}, num_resamples = {num_resamples}; expected 0..1 and 1 or more")


def _resampled_means(
    sums_a: npt.NDArray[np.float64],
    sums_b: npt.NDArray[np.float64],
    sizes: npt.NDArray[np.int64] | None,
    seed: int,
    num_resamples: int,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Means of a and of b over the same resampled users, each of shape [R].

    Sums over each user's values have shape [U], as have `sizes`, the numbers of values; None: one each.
    """
    generator = np.random.default_rng(seed)
    means = np.empty((2, num_resamples))
    num_users = len(sums_a)
    step = max(1, _CELLS_AT_ONCE // num_users)
    for start in range(0, num_resamples, step):
        stop = min(start + step, num_resamples)
        users = generator.integers(0, num_users, size=(stop - start, num_users))
        num_values = num_users if sizes is None else sizes[users].sum(axis=1)
        means[0, start:stop] = sums_a[users].sum(axis=1) / num_values
        means[1, start:stop] = sums_b[users].sum(axis=1) / num_values
    return means[0], means[1]
