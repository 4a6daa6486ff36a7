"""What a running process tells its operator in numbers: metrics. Its log lines are in `grid.logs`.

`Metrics` is an object that is passed in; nothing is registered globally. Every metric is declared once, in `METRICS`, with
its kind, help text and label names; the documentation lists that table. It is never given data values, keys or tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest


class Metric(NamedTuple):
    """The declaration of one metric. The name of a counter ends in `_total`."""

    kind: Literal["counter", "gauge"]
    text: str
    labels: tuple[str, ...] = ()


METRICS: Mapping[str, Metric] = {
    "grid_peers": Metric("gauge", "Peers that are connected and have proved who they are.", ("role",)),
    "grid_nodes_offline": Metric("gauge", "Nodes that were here and are not connected now."),
    "grid_datasets": Metric("gauge", "Datasets of connected nodes."),
    "grid_connections_unauthenticated": Metric("gauge", "Connections that have not proved who they are."),
    "grid_connections_total": Metric("counter", "Connections that were accepted."),
    "grid_connections_refused_total": Metric("counter", "Connections that were refused.", ("reason",)),
    "grid_links": Metric("gauge", "Relayed links that are open."),
    "grid_links_opened_total": Metric("counter", "Relayed links that were opened."),
    "grid_links_violated_total": Metric("counter", "Relayed links closed because a peer broke the rules of credit."),
    "grid_relayed_bytes_total": Metric("counter", "Bytes of sealed frames relayed between peers."),
    "grid_relayed_frames_total": Metric("counter", "Sealed frames relayed between peers."),
    "grid_relay_held_bytes": Metric("gauge", "Bytes that wait in the gateway for slow receivers."),
    "grid_jobs": Metric("gauge", "Federated jobs that are under way."),
    "grid_job_rounds_total": Metric("counter", "Rounds of federated jobs that came to an end, since the start."),
    "grid_job_rounds_lost_total": Metric("counter", "Rounds of federated jobs that were lost, since the start."),
    "grid_http_requests_total": Metric("counter", "HTTP requests that were answered.", ("status",)),
    "grid_failures_total": Metric("counter", "Requests of peers that failed, by error code.", ("code",)),
}


class Metrics:
    """The metrics of one process, by the names of `METRICS`."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._made: dict[str, Counter | Gauge] = {
            name: (Counter if metric.kind == "counter" else Gauge)(name, metric.text, metric.labels, registry=self._registry)
            for name, metric in METRICS.items()
        }
        self._totals: dict[str, float] = {}

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to a counter."""
        self._child(name, labels).inc(amount)

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        child = self._child(name, labels)
        assert isinstance(child, Gauge), f"{name} is not a gauge"
        child.set(value)

    def raise_to(self, name: str, total: float) -> None:
        """Bring a counter without labels up to a total that is kept elsewhere."""
        self.count(name, total - self._totals.get(name, 0.0))
        self._totals[name] = total

    def render(self) -> bytes:
        """All metrics in the text format of Prometheus (`content_type`)."""
        return generate_latest(self._registry)

    def _child(self, name: str, labels: dict[str, str]) -> Counter | Gauge:
        made = self._made[name]
        return made.labels(**labels) if labels else made
