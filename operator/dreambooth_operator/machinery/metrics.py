"""Prometheus metrics of a controller, in a separate registry, so that one process can contain several."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.process_collector import ProcessCollector

# Disables the `_created` series: one more for each series, and not used by the dashboard or the alerts.
disable_created_metrics()


class Metrics:
    """The names of all metrics start with `prefix`."""

    def __init__(self, prefix: str) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._prefix = prefix
        self._reconciles = Counter(
            f"{prefix}_reconciles", "Number of reconciliations by result.", ["result"], registry=self.registry
        )
        self._seconds = Histogram(
            f"{prefix}_reconcile_seconds", "Duration of reconciliations in seconds.", registry=self.registry
        )
        self.leader = Gauge(f"{prefix}_leader", "1 if this process is the leader.", registry=self.registry)

    def reconciled(self, result: str, seconds: float) -> None:
        """Count one reconciliation."""
        self._reconciles.labels(result).inc()
        self._seconds.observe(seconds)

    def counter(self, name: str, help_text: str, *labels: str) -> Counter:
        """A counter whose name follows the prefix."""
        return Counter(f"{self._prefix}_{name}", help_text, labels, registry=self.registry)

    def gauge(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """A gauge that is read when the metrics are rendered, in any thread."""
        Gauge(f"{self._prefix}_{name}", help_text, registry=self.registry).set_function(read)

    def render(self) -> bytes:
        """All metrics in the text format of Prometheus. It can be called in any thread."""
        return generate_latest(self.registry)
