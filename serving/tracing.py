"""OpenTelemetry traces of answers: one span a request, one for each stage, made once the answer is known."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from recsys.contracts.errors import ConfigError
from serving.schemas import RecommendationAnswer

_FIELDS: Final = ("request_id", "release", "arm", "source", "degraded", "reason")
_Headers = Sequence[tuple[bytes, bytes]]


class Tracer:
    """Spans of answers, continued from the caller's `traceparent`. Nothing of a user is in them."""

    def __init__(self, provider: Any) -> None:
        """`provider` is OpenTelemetry's TracerProvider."""
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("recsys")
        self._propagator = TraceContextTextMapPropagator()

    def record(self, headers: _Headers, answer: RecommendationAnswer, end_ns: int | None = None) -> None:
        """One answer that ended now, or at `end_ns`; its stages follow one another in the order they were noted."""
        end_ns = time.time_ns() if end_ns is None else end_ns
        timings_ms = answer.timings_ms
        fields = {name: getattr(answer, name) for name in _FIELDS}
        parent = next((value.decode("latin-1") for name, value in headers if name == b"traceparent"), None)
        context = self._propagator.extract({} if parent is None else {"traceparent": parent})
        start_ns = end_ns - round(timings_ms["total"] * 1e6)
        attributes = {f"recsys.{name}": value for name, value in fields.items() if value is not None}
        span = self._tracer.start_span("recommendation", context, start_time=start_ns, attributes=attributes)
        self._record_stages(span, timings_ms, start_ns)
        span.end(end_ns)

    def _record_stages(self, span: Any, timings_ms: Mapping[str, float], start_ns: int) -> None:
        from opentelemetry.trace import set_span_in_context

        inside, at_ns = set_span_in_context(span), start_ns
        for stage, duration_ms in timings_ms.items():
            if stage != "total":
                part = self._tracer.start_span(stage, inside, start_time=at_ns)
                at_ns += round(duration_ms * 1e6)
                part.end(at_ns)

    def close(self) -> None:
        """Send what waits."""
        self._provider.shutdown()


def otlp_tracer() -> Tracer:
    """A tracer that sends by OTLP over HTTP; where to, and what share, the environment says (OTEL_…).

    Raises:
        ConfigError: the extra is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise ConfigError(f"traces need {error.name}; install recsys[otel], or leave `traces` out") from None
    provider = TracerProvider(resource=Resource.create({"service.name": "recsys"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracer(provider)
