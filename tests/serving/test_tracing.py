"""Spans of answers, seen by OpenTelemetry's own exporter in memory."""

import sys

import pytest

from recsys.contracts.errors import ConfigError
from serving import tracing
from serving.tracing import Tracer

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture
def spans():
    from opentelemetry.sdk import trace as sdk
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    exporter.tracer = Tracer(provider)
    yield exporter
    exporter.tracer.close()


def test_an_answer_is_one_span_with_one_for_each_stage_under_the_callers_trace(shop, spans) -> None:
    shop.endpoint.tracer = spans.tracer
    shop.tell("sku-3")
    response = shop.client.post(
        "/v1/recommendations",
        json={"user_id": "ann", "k": 1},
        headers={"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"},
    )
    answer = response.json()
    found = {span.name: span for span in spans.get_finished_spans()}
    assert found.keys() == {"recommendation", "wait", "history", "encode", "rank"}
    whole = found["recommendation"]
    assert f"{whole.context.trace_id:032x}" == TRACE
    assert dict(whole.attributes) == {
        "recsys.request_id": answer["request_id"],
        "recsys.release": "r1",
        "recsys.arm": "all",
        "recsys.source": "model",
    }
    for stage in ("wait", "history", "encode", "rank"):
        span = found[stage]
        assert span.parent.span_id == whole.context.span_id
        assert (span.end_time - span.start_time) / 1e6 == pytest.approx(answer["timings_ms"][stage], abs=1e-3)
    assert (whole.end_time - whole.start_time) / 1e6 == pytest.approx(answer["timings_ms"]["total"], abs=1e-3)
    assert "ann" not in str([span.to_json() for span in found.values()])


def test_without_traces_nothing_of_opentelemetry_is_made(shop) -> None:
    assert shop.endpoint.tracer is None


def test_a_missing_extra_is_one_clear_line(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(ConfigError, match=r"install recsys\[otel\], or leave `traces` out"):
        tracing.otlp_tracer()
