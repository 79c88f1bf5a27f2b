"""Traces: a request goes on with its caller's trace, and its pictures' stages are inside of it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from service_server import Running, form, serving

from runtime.service.network.tracing import ENDPOINTS, provider_from_environment

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@contextmanager
def traced(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Running, InMemorySpanExporter]]:
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr("runtime.service.answering.state.provider_from_environment", lambda: provider)
    with serving(bundle) as running:
        yield running, exporter


def test_spans_of_a_request(bundle: Path, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    with traced(bundle, monkeypatch) as ((client, _), exporter):
        header = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
        asked = {"data": {"prompt": "a"}, "files": form(pictures[:2])}
        assert client.post("/v1/score", headers=header, **asked).status_code == 200
        assert client.post("/v1/score", headers={"traceparent": "nonsense"}, content=b"{").status_code == 415
        assert client.get("/health/live").status_code == 200
        assert client.get("/metrics").status_code == 200
    *spans, refused = exporter.get_finished_spans()
    names = [span.name for span in spans]
    assert sorted(names[:-1]) == ["batch", "batch", "decode", "decode"] and names[-1] == "POST /v1/score"
    request = spans[-1]
    assert {f"{span.context.trace_id:032x}" for span in spans} == {TRACE}
    assert request.parent is not None and f"{request.parent.span_id:016x}" == CALLER
    assert {span.parent.span_id for span in spans[:-1] if span.parent} == {request.context.span_id}
    assert request.attributes is not None and request.attributes["http.response.status_code"] == 200
    assert all(request.start_time <= span.start_time <= span.end_time <= request.end_time for span in spans[:-1])
    assert refused.parent is None and refused.attributes is not None
    assert refused.attributes["http.response.status_code"] == 415


def test_off_unless_the_environment_says_where_to(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    assert provider_from_environment() is None
    monkeypatch.setenv(ENDPOINTS[0], "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
    provider = provider_from_environment()
    assert provider is not None
    found = provider.resource.attributes
    assert (found["service.name"], found["deployment.environment"]) == ("plaudit", "test")
    provider.shutdown()


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv(ENDPOINTS[1], "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    assert provider_from_environment() is None
    assert "plaudit[otel]" in vars(caplog.records[0])["fields"]["error"]
