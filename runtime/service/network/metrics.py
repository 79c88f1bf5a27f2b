"""The service's metrics for Prometheus. Each service has its own registry."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.metrics_core import InfoMetricFamily
from prometheus_client.registry import Collector

LATENCIES_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
Stage = Literal["fetch", "decode", "batch"]  # stages of one item
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters, gauges and histograms of one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        common: Any = {"registry": self.registry, "namespace": "plaudit"}
        self.requests = Counter("requests", "Requests by route and status", ["route", "status"], **common)
        self.request_s = Histogram(
            "request_seconds", "Time from the head of a request to its answer", ["route"], buckets=LATENCIES_S, **common
        )
        self.refusals = Counter(
            "refusals", "Requests that got an error, by reason", ["route", "status", "reason"], **common
        )
        self.items = Counter("items", "Pictures and prompts by outcome", ["outcome"], **common)
        self.decode_errors = Counter("decode_errors", "Pictures that could not be used", ["stage", "reason"], **common)
        self.decoders_replaced = Counter("decoders_replaced", "Decoder processes that died or stalled", **common)
        self.stage_s = Histogram(
            "stage_seconds",
            "How long a stage of one item took, including its wait for a process or a run",
            ["stage"],
            buckets=LATENCIES_S,
            **common,
        )
        self.batch_size = Histogram("batch_size", "Items in a batch", buckets=BATCHES, **common)
        self.batch_s = Histogram("batch_seconds", "Time of one run of the session", buckets=LATENCIES_S, **common)
        self.wait_s = Histogram(
            "batch_wait_seconds", "How long a batch's oldest item waited", buckets=LATENCIES_S, **common
        )
        self.reloads = Counter("reloads", "Reloads by outcome", ["outcome"], **common)

    def watch(self, name: str, help: str, value: Callable[[], float]) -> None:
        """Add a gauge whose value is computed when it is read."""
        Gauge(name, help, namespace="plaudit", registry=self.registry).set_function(value)

    def inform(self, name: str, help: str, value: Callable[[], Mapping[str, str]]) -> None:
        """Add a metric with the value 1, whose labels are computed when it is read."""
        self.registry.register(_Info(f"plaudit_{name}", help, value))

    def observe_batch(self, size: int, waited_s: float, run_s: float) -> None:
        self.batch_size.observe(size)
        self.wait_s.observe(waited_s)
        self.batch_s.observe(run_s)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _Info(Collector):
    def __init__(self, name: str, help: str, value: Callable[[], Mapping[str, str]]) -> None:
        self._name, self._help, self._value = name, help, value

    def describe(self) -> Iterator[Metric]:
        """The metric's name, which may be requested before there is a value."""
        yield InfoMetricFamily(self._name, self._help)

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily(self._name, self._help, value=dict(self._value()))
