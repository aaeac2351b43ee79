"""What /metrics shows."""

import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from recsys.store import ArmCounts
from recsys.telemetry import add_process_metrics
from serving.log import lost_lines

_BUCKETS_MS = (
    *(0.5, 1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 18, 20, 25, 30, 35, 40, 45, 50, 55, 60, 65, 70, 75),
    *(80, 90, 100, 110, 120, 130, 150, 200, 250, 500, 1000, 2500, 10_000),
)
_AROUND_DEADLINE = range(80, 121)
"""In hundredths of the deadline: 1 ms apart where it is 100 ms, so that percentiles there are right to that."""
_RECENT = 10_000


class Metrics:
    """Counters of one application."""

    def __init__(self, deadline_ms: float = 100.0) -> None:
        """`deadline_ms` is that of answers whose request names none."""
        self.registry = registry = CollectorRegistry()
        self._deadline_ms = deadline_ms
        self.latency = Histogram(
            "recsys_request_seconds",
            "Answer time by stage",
            ["stage"],
            buckets=_buckets(deadline_ms),
            registry=registry,
        )
        self.late = Counter("recsys_late", "Answers that came after their deadline", registry=registry)
        Gauge("recsys_deadline_seconds", "Of requests that name none", registry=registry).set(deadline_ms / 1000)
        self.requests = Counter(
            "recsys_requests", "Requests by route and status", ["method", "route", "status"], registry=registry
        )
        by_answer = ["source", "release", "arm"]
        self.answers = Counter("recsys_answers", "Answers by who ranked them", by_answer, registry=registry)
        self.degraded = Counter(
            "recsys_degraded", "Answers not by the model, by trouble", ["reason"], registry=registry
        )
        self.sessions = Counter(
            "recsys_sessions", "Sessions asked for, by what had to be encoded", ["outcome"], registry=registry
        )
        self.partial = Counter(
            "recsys_partial_answers",
            "Answers by the model without all summaries",
            ["release"],
            registry=registry,
        )
        self.events = Counter("recsys_events_stored", "Events stored", registry=registry)
        self.lost_impressions = Counter(
            "recsys_impressions_lost", "Answers whose impression was not kept", registry=registry
        )
        self.shadow = Counter(
            "recsys_shadow_answers", "Requests for the shadow release", ["outcome"], registry=registry
        )
        self.index_checked = Counter("recsys_index_checked_items", "Items of exact search asked for", registry=registry)
        self.index_missed = Counter("recsys_index_missed_items", "… that the index did not find", registry=registry)
        self.release_failures = Counter(
            "recsys_release_failures", "Releases or settings that could not be taken over", registry=registry
        )
        registry.register(lost_lines)
        self._release = Gauge("recsys_release", "1 for the release that is current", ["release"], registry=registry)
        self._live = {
            name: Gauge(f"recsys_live_{name}", text, ["release", "arm"], registry=registry)
            for name, text in _LIVE.items()
        }
        self._shares = {
            name: Gauge(f"recsys_live_{name}", text, ["release", "arm", "bound"], registry=registry)
            for name, text in SHARES.items()
        }
        add_process_metrics(registry)
        self._children: dict[tuple[Any, tuple[str, ...]], Any] = {}
        self._recent: deque[tuple[str, float]] = deque(maxlen=_RECENT)
        self._lock = threading.Lock()

    def count(
        self,
        source: str,
        release: str,
        arm: str,
        degraded: str | None,
        timings_ms: Mapping[str, float],
        deadline_ms: float | None = None,
    ) -> None:
        """One answer; `deadline_ms` is its request's own."""
        if self.is_late(timings_ms["total"], deadline_ms):
            self.late.inc()
        self._child(self.answers, source, release, arm).inc()
        if degraded:
            self._child(self.degraded, degraded).inc()
        for stage, value in timings_ms.items():
            self._child(self.latency, stage).observe(value / 1000)
        with self._lock:
            self._recent.append((release, timings_ms["total"]))

    def is_late(self, total_ms: float, deadline_ms: float | None) -> bool:
        """Whether an answer that took so long came after its deadline."""
        return total_ms > (deadline_ms or self._deadline_ms)

    def count_request(self, method: str, route: str, status: int, num: int = 1) -> None:
        """One request, whatever became of it, or so many."""
        self._child(self.requests, method, route, str(status)).inc(num)

    def _child(self, family: Any, *labels: str) -> Any:
        """`family.labels(*labels)`, found by one look: there are few, and they are counted for each answer."""
        child = self._children.get((family, labels))
        if child is None:
            child = self._children[family, labels] = family.labels(*labels)
        return child

    def percentiles(self, release: str | None = None) -> dict[str, float]:
        """Of the last 10,000 answers in this process, or of those among them that one release gave."""
        with self._lock:
            recent = [total_ms for name, total_ms in self._recent if release in {None, name}]
        if not recent:
            return {}
        values = np.percentile(recent, [50, 90, 99, 100])
        return dict(zip(("p50_ms", "p90_ms", "p99_ms", "max_ms"), (round(float(v), 2) for v in values), strict=True))

    def total(self, name: str) -> dict[str, int]:
        """A counter's values summed by its first label."""
        sums: dict[str, int] = {}
        for family in self.registry.collect():
            for sample in family.samples if family.name == name else ():
                if sample.name == f"{name}_total":
                    label = next(iter(sample.labels.values()))
                    sums[label] = sums.get(label, 0) + int(sample.value)
        return sums

    def watch(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A gauge that is read when /metrics is."""
        Gauge(name, text, registry=self.registry).set_function(read)

    def show_release(self, release: str) -> None:
        """Name the current release."""
        self._release.clear()
        self._release.labels(release).set(1)

    def show_recall(self, totals: Mapping[tuple[str, str], ArmCounts]) -> None:
        """Replace the live figures."""
        for gauge in (*self._live.values(), *self._shares.values()):
            gauge.clear()
        for (release, arm), counts in totals.items():
            for name, gauge in self._live.items():
                gauge.labels(release, arm).set(getattr(counts, name))
            for name, gauge in self._shares.items():
                share = getattr(counts, name)()
                for bound in ("value", "low", "high"):
                    gauge.labels(release, arm, bound).set(getattr(share, bound))


def _buckets(deadline_ms: float) -> list[float]:
    """Upper bounds in seconds: a hundredth of the deadline apart around it, coarser elsewhere."""
    fine_ms = [deadline_ms * hundredths / 100 for hundredths in _AROUND_DEADLINE]
    coarse_ms = [ms for ms in _BUCKETS_MS if not fine_ms[0] <= ms <= fine_ms[-1]]
    return [round(ms / 1000, 7) for ms in sorted([*coarse_ms, *fine_ms])]


_LIVE = {
    "answers": "Answers given in the period",
    "displayed": "Answers the shop reported as displayed",
    "with_targets": "Answers whose user did anything within the window",
    "hit_answers": "… on a recommended item",
    "clicked": "Answers with an attributed event",
    "converted": "Answers with an attributed purchase",
    "revenue": "Value of attributed purchases",
    "targets": "Distinct items users touched within the window, over answers",
    "hits": "… that had been recommended",
}
SHARES = {
    "recall": "Hits per target, with its 95 % interval",
    "hit_rate": "Answers with a hit among those with targets, with its 95 % interval",
    "click_rate": "Answers with an attributed event, with its 95 % interval",
    "conversion": "Answers with an attributed purchase, with its 95 % interval",
    "revenue_per_answer": "Value of attributed purchases for each answer, with its 95 % interval",
}
