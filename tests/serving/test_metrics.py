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


@pytest.mark.parametrize("deadline_ms", [20.0, 50.0, 100.0, 200.0, 3_000.0])
@pytest.mark.parametrize("share", [0.85, 1.0, 1.15])
def test_percentiles_around_the_deadline_are_right_to_a_hundredth_of_it(deadline_ms: float, share: float) -> None:
    metrics, generator = Metrics(deadline_ms), np.random.default_rng(3)
    slow_ms = generator.normal(share * deadline_ms, 0.015 * deadline_ms, 100)
    times_ms = np.concatenate([generator.gamma(2, 0.05 * deadline_ms, 900), slow_ms])
    for time_ms in times_ms:
        metrics.count("model", "r1", "all", None, {"total": float(time_ms)})
    for q in (0.95, 0.97, 0.99):
        assert from_buckets(metrics, q) == pytest.approx(np.percentile(times_ms, 100 * q), abs=deadline_ms / 100)


def test_an_answer_is_late_after_the_deadline_of_its_request_or_else_of_the_server() -> None:
    metrics = Metrics(50.0)
    for total_ms, deadline_ms in [(50.0, None), (50.1, None), (80.0, 100.0), (20.0, 10.0)]:
        metrics.count("model", "r1", "all", None, {"total": total_ms}, deadline_ms)
    assert metrics.registry.get_sample_value("recsys_late_total") == 2
    assert metrics.registry.get_sample_value("recsys_deadline_seconds") == 0.05
