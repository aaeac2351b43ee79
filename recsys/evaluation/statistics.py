"""Paired comparison of two rankers on the same users."""

# U users, R resamples

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_CELLS_AT_ONCE = 4_000_000
"""Resampled users held in memory at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedDifference:
    """Mean of a minus mean of b over the same users, with a bootstrap interval."""

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
    confidence: float


def paired_difference(
    a: npt.NDArray[np.float64],
    b: npt.NDArray[np.float64],
    seed: int,
    *,
    confidence: float = 0.95,
    num_resamples: int = 2_000,
) -> PairedDifference:
    """Compare per-user values of two rankers, entry u of both being the same user.

    Users are resampled with replacement, both values of a user together; the interval is between the
    percentiles of the resampled differences. The same seed gives the same interval. It treats the users
    as independent and knows nothing of the randomness of training. With few users (under about 50) a
    percentile interval is too narrow.
    Source: Efron, Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13 (percentile interval).

    Raises:
        ValueError: shapes differ or are not [U], no users, a value is not finite, or a setting is out of range.
    """
    _check(a, b, confidence, num_resamples)
    means_a, means_b = _resampled_means(a, b, seed, num_resamples)
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
        num_users=len(a),
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
    a: npt.NDArray[np.float64], b: npt.NDArray[np.float64], seed: int, num_resamples: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Means of a and of b over the same resampled users, each of shape [R]."""
    generator = np.random.default_rng(seed)
    means = np.empty((2, num_resamples))
    step = max(1, _CELLS_AT_ONCE // len(a))
    for start in range(0, num_resamples, step):
        stop = min(start + step, num_resamples)
        users = generator.integers(0, len(a), size=(stop - start, len(a)))
        means[0, start:stop] = a[users].mean(axis=1)
        means[1, start:stop] = b[users].mean(axis=1)
    return means[0], means[1]
