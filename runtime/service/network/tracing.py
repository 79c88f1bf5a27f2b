"""OpenTelemetry traces: a span for each request, with spans for the stages of its pictures inside.

Tracing is off unless OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT names a receiver, for OTLP over
HTTP. OpenTelemetry's other environment variables work too. A request continues the trace in its header `traceparent`.
Needs the extra `otel`.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

log = logging.getLogger("plaudit.service")

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def provider_from_environment() -> "TracerProvider | None":
    """The provider that sends spans to the receiver in the environment. None without one, or if the extra is not
    installed."""
    if not any(map(os.environ.get, ENDPOINTS)):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.warning("no traces are sent", extra={"fields": {"error": "run: pip install 'plaudit[otel]'"}})
        return None
    provider = TracerProvider(
        resource=Resource.create({SERVICE_NAME: os.environ.get("OTEL_SERVICE_NAME", "plaudit")}),
        shutdown_on_exit=False,  # `Tracing.close` does it, after requests under way have ended
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


class Tracing:
    """The spans of one service. Without a provider there are none."""

    def __init__(self, provider: "TracerProvider | None") -> None:
        self._provider = provider

    @contextmanager
    def request(self, method: str, route: str, headers: Mapping[bytes, bytes]) -> Iterator[Callable[[int], None]]:
        """A span for a request during the block. The block calls the yielded function with the status of the answer."""
        if self._provider is None:
            yield lambda status: None
            return
        from opentelemetry.trace import SpanKind, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        given = {name: headers.get(name.encode(), b"").decode("latin-1") for name in ("traceparent", "tracestate")}
        context = TraceContextTextMapPropagator().extract(given)
        attributes = {"http.request.method": method, "http.route": route}
        tracer = self._provider.get_tracer("plaudit")
        with tracer.start_as_current_span(f"{method} {route}", context, SpanKind.SERVER, attributes) as span:

            def ended(status: int) -> None:
                span.set_attribute("http.response.status_code", status)
                if status >= 500:
                    span.set_status(StatusCode.ERROR)

            yield ended

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """A span inside the current one."""
        if self._provider is None:
            yield
            return
        with self._provider.get_tracer("plaudit").start_as_current_span(name):
            yield

    def close(self) -> None:
        """Send the remaining spans, and end."""
        if self._provider is not None:
            self._provider.shutdown()
