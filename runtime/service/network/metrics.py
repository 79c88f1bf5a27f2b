"""What Prometheus reads of the service. One registry a service, none of it global."""

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

LATENCIES_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters, gauges and histograms of one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        common: Any = {"registry": self.registry, "namespace": "plaudit"}
        self.requests = Counter("requests", "Requests by route and status", ["route", "status"], **common)
        self.request_s = Histogram(
            "request_seconds", "From the head of a request to its answer", ["route"], buckets=LATENCIES_S, **common
        )
        self.items = Counter("items", "Pictures and prompts by outcome", ["outcome"], **common)
        self.decode_errors = Counter("decode_errors", "Pictures that cannot be used", ["stage", "reason"], **common)
        self.decoders_replaced = Counter("decoders_replaced", "Decoder processes that died or stalled", **common)
        self.batch_size = Histogram("batch_size", "Items run together", buckets=BATCHES, **common)
        self.batch_s = Histogram("batch_seconds", "One run of the session", buckets=LATENCIES_S, **common)
        self.wait_s = Histogram(
            "batch_wait_seconds", "How long a batch's oldest item waited", buckets=LATENCIES_S, **common
        )
        self.reloads = Counter("reloads", "Reloads by outcome", ["outcome"], **common)

    def watch(self, name: str, help: str, value: Callable[[], float]) -> None:
        """A gauge that is asked for its value when it is read."""
        Gauge(name, help, namespace="plaudit", registry=self.registry).set_function(value)

    def observe_batch(self, size: int, waited_s: float, run_s: float) -> None:
        self.batch_size.observe(size)
        self.wait_s.observe(waited_s)
        self.batch_s.observe(run_s)

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)
