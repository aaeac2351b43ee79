"""Exact counts of what became of answers, and the figures they give with 95 % intervals."""

import json
import math
from dataclasses import dataclass, fields

_Z = 1.959964  # 97.5 % point of the normal distribution


@dataclass(frozen=True, slots=True)
class Share:
    """An estimate with its 95 % interval; nan where nothing was counted."""

    value: float
    low: float
    high: float


@dataclass(slots=True)
class ArmCounts:
    """Sums over answers of one release and arm. Adding two is adding their fields, so hours add up to days."""

    answers: int = 0
    displayed: int = 0
    """Answers of which the shop reported at least one item as displayed."""
    with_targets: int = 0
    """Answers whose user had any event inside the attribution window."""
    hit_answers: int = 0
    """… on at least one recommended item."""
    clicked: int = 0
    """Answers whose request_id was echoed by an event on a recommended item."""
    converted: int = 0
    """… by a purchase of one."""
    revenue: float = 0.0
    """Value of those purchases."""
    revenue_squared: float = 0.0
    """Sum over answers of their revenue squared; nan for hours that were counted and pruned before it was kept."""
    targets: int = 0
    """Distinct items of the user's events inside the window, summed over answers."""
    hits: int = 0
    """Those of them that were recommended."""
    hits_squared: int = 0
    targets_squared: int = 0
    hits_targets: int = 0

    @classmethod
    def from_json(cls, text: str) -> "ArmCounts":
        """Counts as they are stored; see `revenue_squared`."""
        return cls(**{"revenue_squared": math.nan, **json.loads(text)})

    def add(self, num_targets: int, num_hits: int) -> None:
        """Count one answer with so many targets, of which so many had been recommended."""
        self.answers += 1
        self.with_targets += bool(num_targets)
        self.hit_answers += bool(num_hits)
        self.targets += num_targets
        self.hits += num_hits
        self.hits_squared += num_hits**2
        self.targets_squared += num_targets**2
        self.hits_targets += num_hits * num_targets

    def __iadd__(self, other: "ArmCounts") -> "ArmCounts":
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))
        return self

    def __isub__(self, other: "ArmCounts") -> "ArmCounts":
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) - getattr(other, field.name))
        return self

    def recall(self) -> Share:
        """Hits per target: of what users touched next, the share that had been recommended.

        The interval is that of a ratio of sums over answers, which hold several targets each.
        Source: Cochran, Sampling Techniques, 3rd ed., eq. 6.13 (ratio estimate).
        """
        if not self.targets:
            return Share(math.nan, math.nan, math.nan)
        ratio, n = self.hits / self.targets, self.with_targets
        if n < 2:
            return Share(ratio, 0.0, 1.0)
        squares = self.hits_squared - 2 * ratio * self.hits_targets + ratio**2 * self.targets_squared
        margin = _Z * math.sqrt(max(squares, 0.0) * n / (n - 1)) / self.targets
        return Share(ratio, max(0.0, ratio - margin), min(1.0, ratio + margin))

    def hit_rate(self) -> Share:
        """Answers with a hit among those whose user did anything."""
        return wilson(self.hit_answers, self.with_targets)

    def click_rate(self) -> Share:
        """Answers with an attributed event among all answers."""
        return wilson(self.clicked, self.answers)

    def conversion(self) -> Share:
        """Answers with an attributed purchase among all answers."""
        return wilson(self.converted, self.answers)

    def revenue_per_answer(self) -> Share:
        """Attributed revenue of a mean answer, with the normal interval of a mean; it needs two answers, else nan.

        A few dear purchases make revenue skewed: where less than some dozens were counted, the interval is too short.
        """
        n = self.answers
        if not n:
            return Share(math.nan, math.nan, math.nan)
        mean = self.revenue / n
        if n < 2 or math.isnan(self.revenue_squared):
            return Share(mean, math.nan, math.nan)
        margin = _Z * math.sqrt(max(self.revenue_squared - n * mean**2, 0.0) / (n - 1) / n)
        return Share(mean, max(0.0, mean - margin), mean + margin)


def wilson(successes: int, trials: int) -> Share:
    """A proportion with its score interval. Source: Wilson, JASA 22, 1927."""
    if not trials:
        return Share(math.nan, math.nan, math.nan)
    share, z2 = successes / trials, _Z**2
    middle = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    margin = _Z * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    return Share(share, max(0.0, middle - margin), min(1.0, middle + margin))
