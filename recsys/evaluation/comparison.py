"""Is A better than B, at least no worse by more than a margin, or worse: a verdict on one metric named before.

The primary metric is tested alone, at the level of its interval. The others are exploratory: their p values
are corrected for being many (Holm), and no verdict hangs on them.
"""

# U users, M metrics

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from recsys.evaluation.metrics import PerUser
from recsys.evaluation.statistics import LEAST_DIFFERENT, PairedDifference, paired_difference

DEFAULT_METRIC = "ndcg@10"
_ROUNDING = 1e-9
"""Differences whose spread is below this share of their size are the same."""
DEFAULT_MARGIN = 0.003
"""Largest loss that still counts as none, as a share of B's value."""


class Verdict(StrEnum):
    """What the interval of the primary metric allows to say. Better implies non-inferior."""

    BETTER = "better"
    NON_INFERIOR = "non-inferior"
    WORSE = "worse"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricComparison:
    """One metric of A and B on the same users."""

    metric: str
    difference: PairedDifference
    p_value: float
    """Of the paired t test, two-sided."""
    p_holm: float | None = None
    """Corrected for the number of exploratory metrics; None for the primary one."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is undefined is None."""
        plain = {**self.difference.to_json(), "p_value": self.p_value, "p_holm": self.p_holm}
        return {"metric": self.metric} | {
            name: None if value is None or np.isnan(value) else value for name, value in plain.items()
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A against B."""

    against: str
    """What B is: a release or a baseline."""
    margin: float
    primary: MetricComparison
    exploratory: list[MetricComparison]

    @property
    def verdict(self) -> Verdict:
        """See `judge`."""
        return judge(self.primary.difference, self.margin)

    @property
    def resolution(self) -> float:
        """Half the width of the relative interval: smaller differences cannot be told from none here."""
        return (self.primary.difference.relative_high - self.primary.difference.relative_low) / 2

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is undefined is None."""
        return {
            "against": self.against,
            "verdict": self.verdict.value,
            "margin": self.margin,
            "resolution": None if np.isnan(self.resolution) else self.resolution,
            "primary": self.primary.to_json(),
            "exploratory": [row.to_json() for row in self.exploratory],
        }


def compare(
    a: Mapping[str, PerUser],
    b: Mapping[str, PerUser],
    against: str,
    *,
    metrics: Sequence[str],
    margin: float = DEFAULT_MARGIN,
    seed: int = 0,
) -> Comparison:
    """Compare per-user values, entry u of both being the same user; the first of `metrics` is the primary one.

    Raises:
        ValueError: no metric, margin not in [0, 1), or see `paired_difference`.
    """
    if not metrics or not 0 <= margin < 1:
        raise ValueError(f"{len(metrics)} metrics, margin = {margin}, expected at least one and 0 <= margin < 1")
    rows = [(name, paired_difference(a[name], b[name], seed), t_test(a[name], b[name])) for name in metrics]
    (first, difference, p_value), *others = rows
    corrected = holm([p for _, _, p in others])
    return Comparison(
        against=against,
        margin=margin,
        primary=MetricComparison(metric=first, difference=difference, p_value=p_value),
        exploratory=[
            MetricComparison(metric=name, difference=other, p_value=p, p_holm=p_holm)
            for (name, other, p), p_holm in zip(others, corrected, strict=True)
        ],
    )


def judge(difference: PairedDifference, margin: float) -> Verdict:
    """What the interval allows to say.

    better         the whole interval is above 0
    non-inferior   the whole relative interval is above −margin
    worse          the whole interval is below 0, and it reaches below −margin
    inconclusive   anything else; also where B scores 0, so that nothing is relative to it, and where fewer than
                   `LEAST_DIFFERENT` users tell A from B

    With a 95 % interval, "non-inferior" is wrong for about 2.5 % of models that are worse by the margin, for up to
    twice as many where few users differ (tests count both).
    Source: Piaggio et al. (CONSORT for non-inferiority trials), JAMA 308(24), 2012.
    """
    if difference.num_different < LEAST_DIFFERENT:
        return Verdict.INCONCLUSIVE
    if difference.low > 0:
        return Verdict.BETTER
    if difference.relative_low > -margin:
        return Verdict.NON_INFERIOR
    return Verdict.WORSE if difference.high < 0 else Verdict.INCONCLUSIVE


def too_few(row: Mapping[str, Any]) -> str:
    """That too few users tell A from B for a verdict, where that is so; `row` is a metric's plain values."""
    if row["num_different"] >= LEAST_DIFFERENT:
        return ""
    found = f"{row['num_different']} of {row['num_users']:,} users tell them apart"
    return f"only {found}, {LEAST_DIFFERENT} are needed for a verdict"


def t_test(a: PerUser, b: PerUser) -> float:
    """Two-sided p value of the paired t test. No difference anywhere gives 1; one user gives nan.

    The same difference everywhere, other than 0, gives 0.
    Source: Student, Biometrika 6, 1908; for ranking metrics Smucker, Allan, Carterette, CIKM 2007.
    """
    difference = a - b
    if len(difference) < 2:
        return float("nan")
    if np.ptp(difference) <= _ROUNDING * np.abs(difference).max():
        return 0.0 if difference[0] else 1.0
    return float(stats.ttest_1samp(difference, 0.0).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values corrected for being len(p_values) many: the chance of any false alarm stays at the level.

    The j-th smallest of M is multiplied by M − j + 1, made at least as large as the one before, and cut at
    1. A nan stays nan and is not counted.
    Source: Holm, Scandinavian Journal of Statistics 6(2), 1979.
    """
    p: npt.NDArray[np.float64] = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")[: int((~np.isnan(p)).sum())]
    corrected = np.full(len(p), np.nan)
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * factors))
    return [float(value) for value in corrected]
