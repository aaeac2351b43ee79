"""What machines and operators look at: health, readiness, metrics, the console and its figures."""

import math
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Query, Response
from fastapi.responses import HTMLResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import ConfigDict

from recsys.store import ArmCounts
from recsys.store.counts import Share
from recsys.store.recall import HOUR_MS
from serving.endpoint import Endpoint
from serving.metrics import SHARES
from serving.problems import BAD_BODY, GUARDED, STORE_TROUBLE
from serving.schemas import Health, Preparing, Schema

_MAX_HOURS: Final = 48
_PAGE = Path(__file__).with_name("console.html")
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
}
_METRICS = {
    "description": "Every counter and gauge.",
    "content": {
        "text/plain": {"schema": {"type": "string"}, "example": 'recsys_degraded_total{reason="deadline"} 2.0\n'}
    },
}
_CONSOLE = {
    "description": "The page.",
    "content": {"text/html": {"example": "<!doctype html><title>recsys console</title>"}},
}


class Status(Schema):
    """The state of this process and what became of its answers."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "release": "2026-11-24",
                    "deadline_ms": 100,
                    "latency": {"p50_ms": 3.1, "p90_ms": 5.2, "p99_ms": 21.0, "max_ms": 64.2},
                    "answers": {"model": 900, "popular": 100},
                    "degraded": {"deadline": 2},
                    "arms": [{"name": "all", "release": None, "weight": 1.0}],
                    "releases": [
                        {
                            "name": "2026-11-24",
                            "size_mb": {"before": 4.2, "after": 1.3},
                            "encode_ms": {"before": 61.0, "after": 14.0},
                            "accuracy": {"ndcg10": {"before": 0.3238, "after": 0.3237}},
                            "latency": {"p50_ms": 3.1, "p90_ms": 5.2, "p99_ms": 21.0, "max_ms": 64.2},
                        }
                    ],
                    "recall": [],
                    "report": {},
                }
            ]
        }
    )
    release: str
    deadline_ms: float
    latency: dict[str, float]
    """Percentiles of the last 10,000 answers."""
    answers: dict[str, int]
    """By source."""
    degraded: dict[str, int]
    """By reason."""
    preparing: Preparing | None = None
    """Sessions that are being encoded before a switch."""
    arms: list[dict[str, Any]]
    releases: list[dict[str, Any]]
    """Of each loaded one, the current first: accuracy, size in 10^6 bytes and time to encode a full window, before it
    was made small (float32 weights in torch) and after, as measured when it was made; latency of its answers here."""
    recall: list[dict[str, Any]]
    """Counts of the last `recall_days` by release and arm, with shares and their 95 % intervals; null where they are
    not known."""
    report: dict[str, Any]
    """What was measured when the release was made."""


class RecallByHour(Schema):
    """What became of answers, hour by hour."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "hours": [
                        {
                            "hour": "2026-11-24T10:00:00Z",
                            "release": "2026-11-24",
                            "arm": "all",
                            "answers": 412,
                            "targets": 80,
                            "hits": 16,
                            "recall": {"value": 0.2, "low": 0.11, "high": 0.29},
                            "revenue": 41.2,
                            "revenue_per_answer": {"value": 0.1, "low": 0.02, "high": 0.18},
                        }
                    ]
                }
            ]
        }
    )
    hours: list[dict[str, Any]]
    """Counts by hour (its begin), release and arm, the oldest first, with shares and their 95 % intervals; null where
    they are not known. The latest hours still grow: users have `attribution_hours` to follow an answer."""


def operation_routes(endpoint: Endpoint) -> APIRouter:
    """Nothing here shows anything of a user."""
    router = APIRouter(tags=["operation"])
    page = _PAGE.read_text(encoding="utf-8")
    watchers = CapacityLimiter(2)

    @router.head("/healthz", include_in_schema=False)
    @router.get("/healthz")
    async def healthz() -> Health:  # needs no thread: while a store stalls, requests may hold them all
        """The process lives."""
        return Health(status="ok")

    @router.head("/readyz", include_in_schema=False)
    @router.get("/readyz", responses={503: {"model": Health, "description": "Not warm, or the release is not fit."}})
    async def readyz(response: Response) -> Health:
        """The process can answer inside the deadline, and as the release did when it was built."""
        if endpoint.is_ready:
            return Health(status="ready", release=endpoint.releases.current.name)
        response.status_code = 503
        if not endpoint.warmed.is_set():
            return Health(status="warming up")
        status = "the release failed its check; the log says how"
        return Health(status=status, release=endpoint.releases.current.name)

    @router.get("/metrics", response_class=Response, responses={**GUARDED, 200: _METRICS})
    async def prometheus() -> Response:
        """Counters in Prometheus' text format."""
        # In a thread that no other route takes: whoever watches sees a store that stalls.
        text = await to_thread.run_sync(generate_latest, endpoint.metrics.registry, limiter=watchers)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    @router.get("/v1/status", responses={**GUARDED, **STORE_TROUBLE})
    def status() -> Status:
        """Figures of the console: latency of this process, releases, and recall by arm."""
        return Status(
            release=endpoint.releases.current.name,
            deadline_ms=endpoint.config.deadline_ms,
            latency=endpoint.metrics.percentiles(),
            answers=endpoint.metrics.total("recsys_answers"),
            degraded=endpoint.metrics.total("recsys_degraded"),
            preparing=endpoint.preparing,
            arms=[arm.model_dump() for arm in endpoint.releases.arms.arms],
            releases=_releases(endpoint),
            recall=_recall(endpoint),
            report=endpoint.releases.current.recommender.release.manifest.metrics,
        )

    @router.get("/v1/recall", responses={**GUARDED, **STORE_TROUBLE, 422: BAD_BODY[422]})
    def recall(hours: int = Query(default=_MAX_HOURS, ge=1, le=_MAX_HOURS, examples=[24])) -> RecallByHour:
        """Recall, clicks, purchases and revenue of the last hours, this one included."""
        since_ms = int(time.time() * 1000) - (hours - 1) * HOUR_MS
        found = endpoint.store.attribution.by_hour(since_ms)
        return RecallByHour(
            hours=[
                {"hour": datetime.fromtimestamp(hour * HOUR_MS / 1000, UTC), **_figures(release, arm, counts)}
                for (hour, release, arm), counts in sorted(found.items(), key=lambda each: each[0])
            ]
        )

    @router.get("/console", response_class=HTMLResponse, responses={200: _CONSOLE})
    def console() -> HTMLResponse:
        """One page for people."""
        return HTMLResponse(page, headers=_PAGE_HEADERS)

    return router


def _releases(endpoint: Endpoint) -> list[dict[str, Any]]:
    current = endpoint.releases.current
    rows = []
    for live in [current, *(live for live in endpoint.releases.all_live if live is not current)]:
        manifest = live.recommender.release.manifest
        found = {name: manifest.metrics.get(name) for name in ("recall10", "ndcg10")}
        cost = manifest.metrics.get("cost", {})  # none in a release of before
        rows.append(
            {
                "name": live.name,
                "size_mb": {
                    "before": cost.get("float32_mb"),
                    "after": round(sum(entry.size_bytes for entry in manifest.files.values()) / 1e6, 2),
                },
                "encode_ms": {"before": cost.get("float32_encode_ms"), "after": cost.get("engine_encode_ms")},
                "accuracy": {k: {"before": v["reference"], "after": v["engine"]} for k, v in found.items() if v},
                "latency": endpoint.metrics.percentiles(live.name),
            }
        )
    return rows


def _recall(endpoint: Endpoint) -> list[dict[str, Any]]:
    since_ms = int((time.time() - endpoint.config.recall_days * 86_400) * 1000)
    totals = endpoint.store.attribution.totals(since_ms)
    return [
        _figures(release, arm, counts) for (release, arm), counts in sorted(totals.items(), key=lambda each: each[0])
    ]


def _figures(release: str, arm: str, counts: ArmCounts) -> dict[str, Any]:
    """Of one release and arm: counts, and shares with their intervals."""
    shown = {name: None if math.isnan(value) else value for name, value in asdict(counts).items()}
    shares = {name: _share(getattr(counts, name)()) for name in SHARES}
    return {"release": release, "arm": arm, **shown, **shares}


def _share(share: Share) -> dict[str, float] | None:
    """None where its interval is not known: JSON has no nan."""
    return None if math.isnan(share.low) else asdict(share)
