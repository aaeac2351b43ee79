"""Everything one evaluation found, as plain values: what `--json` prints and the report page shows."""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from recsys.evaluation.comparison import Comparison
from recsys.evaluation.metrics import PerUser
from recsys.evaluation.protocols import AGAINST, MODEL, Report
from recsys.evaluation.segments import Segment

_Z_95 = 1.959964


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What was evaluated, on what, and when."""

    evaluated_at: str
    """ISO 8601."""
    release: str
    """Name of its folder."""
    release_digest: str
    features_digest: str
    test_set: str
    """See `looks.test_set_digest`."""
    num_looks: int
    """Evaluations on this test set that the log beside the release holds, this one included."""
    split_ms: int | None
    """T, None without a time split."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Accuracy, lists, segments and comparison of one release."""

    origin: Origin
    report: Report
    metric: str
    """The primary metric."""
    lists: dict[str, dict[str, float]]
    """What each ranker's lists are like; see `recsys.evaluation.lists`."""
    segments: list[Segment]
    comparison: Comparison | None

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is undefined is None."""
        values = self.report.to_json()
        for name in self.report.results:
            own = values[name] if name in (MODEL, AGAINST) else values["baselines"][name]
            own |= {key: None if np.isnan(value) else value for key, value in self.lists[name].items()}
        split_ms = self.origin.split_ms
        return {
            **values,
            "metric": self.metric,
            "intervals": {name: interval(r.headline[self.metric]) for name, r in self.report.results.items()},
            "segments": [segment.to_json() for segment in self.segments],
            "comparison": None if self.comparison is None else self.comparison.to_json(),
            **asdict(self.origin),
            "split": None if split_ms is None else datetime.fromtimestamp(split_ms / 1000, UTC).isoformat(),
        }


def interval(values: PerUser) -> list[float] | None:
    """95 % interval of the mean over users: mean ± 1.96 · standard deviation / √users; None for one user.

    It treats users as independent. Two such intervals that overlap say little of the difference: that is
    what the paired comparison is for.
    """
    if len(values) < 2:
        return None
    half = _Z_95 * float(values.std(ddof=1)) / len(values) ** 0.5
    return [float(values.mean()) - half, float(values.mean()) + half]
