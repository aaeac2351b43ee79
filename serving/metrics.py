"""What /metrics shows."""

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_BUCKETS_S = (
    0.001,
    0.002,
    0.005,
    0.01,
    0.02,
    0.03,
    0.04,
    0.05,
    0.06,
    0.07,
    0.08,
    0.09,
    0.095,
    0.1,
    0.11,
    0.15,
    0.25,
    1,
)


class Metrics:
    """Counters of one application."""

    def __init__(self, release: str) -> None:
        self.registry = CollectorRegistry()
        self.latency = Histogram(
            "recsys_request_seconds", "Answer time by stage", ["stage"], buckets=_BUCKETS_S, registry=self.registry
        )
        self.answers = Counter("recsys_answers", "Answers by who ranked them", ["source"], registry=self.registry)
        self.degraded = Counter(
            "recsys_degraded", "Answers not by the model, by trouble", ["reason"], registry=self.registry
        )
        self.events = Counter("recsys_events_stored", "Events stored", registry=self.registry)
        self.lost_impressions = Counter(
            "recsys_impressions_lost", "Answers whose impression was not kept", registry=self.registry
        )
        Gauge("recsys_release", "The release that answers", ["release"], registry=self.registry).labels(release).set(1)
        memory = Gauge("recsys_memory_bytes", "Resident memory of the process", registry=self.registry)
        memory.set_function(lambda: psutil.Process().memory_info().rss)
