"""What a dashboard computes from the buckets of /metrics."""

import numpy as np
import pytest

from serving.metrics import Metrics


def from_buckets(metrics: Metrics, q: float) -> float:
    """The quantile in milliseconds as Prometheus' histogram_quantile interpolates it."""
    found = {}
    for family in metrics.registry.collect():
        for sample in family.samples if family.name == "recsys_request_seconds" else ():
            if sample.name.endswith("_bucket"):
                found[float(sample.labels["le"])] = sample.value
    bounds, counts = np.array(sorted(found)), np.array([found[bound] for bound in sorted(found)])
    rank = q * counts[-1]
    place = int(np.searchsorted(counts, rank))
    low, before = (bounds[place - 1], counts[place - 1]) if place else (0.0, 0.0)
    return float(1000 * (low + (bounds[place] - low) * (rank - before) / (counts[place] - before)))


@pytest.mark.parametrize("around_ms", [85.0, 100.0, 115.0])
def test_percentiles_around_the_budget_are_right_to_a_millisecond(around_ms: float) -> None:
    metrics, generator = Metrics(), np.random.default_rng(3)
    times_ms = np.concatenate([generator.gamma(2, 5, 900), generator.normal(around_ms, 1.5, 100)])
    for time_ms in times_ms:
        metrics.count("model", "r1", "all", None, {"total": float(time_ms)})
    for q in (0.95, 0.97, 0.99):
        assert from_buckets(metrics, q) == pytest.approx(np.percentile(times_ms, 100 * q), abs=1.0)
