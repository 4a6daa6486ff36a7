"""What the gateway shows of itself, as plain values: the HTTP API, the dashboard and `/metrics` all read these functions."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from grid.gateway.dashboard import SHOWN_DATASETS, SHOWN_LINKS, SHOWN_NODES, sparkline, tag_filters
from grid.gateway.registry import Entry, Registry
from grid.gateway.router import LinkView, Router
from grid.gateway.traffic import TrafficMeter
from grid.ids import GridId, PeerId
from grid.telemetry import Metrics


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """Reads the gateway's state machines; changes nothing. `started` is wall time in seconds."""

    grid: GridId
    dev: bool
    started: float
    registry: Registry
    router: Router
    meter: TrafficMeter

    def status(self, now: float) -> dict[str, Any]:
        """Counts and totals; `now` is wall time in seconds."""
        nodes = self.registry.nodes()
        online = [entry for entry in nodes if entry.online]
        return {
            "grid": self.grid,
            "dev": self.dev,
            "uptime_s": round(max(0.0, now - self.started), 3),
            "nodes": {"online": len(online), "offline": len(nodes) - len(online)},
            "clients": self.registry.online("client"),
            "datasets": sum(len(entry.datasets) for entry in online),
            "links": len(self.router),
            "traffic": {key: value for key, value in self.traffic().items() if key != "history"},
        }

    def traffic(self) -> dict[str, Any]:
        """Totals since the start, and bytes per second for each of the last 60 seconds."""
        return {
            "bytes": self.router.moved_bytes,
            "frames": self.router.moved_frames,
            "held_bytes": self.router.held(),
            "bytes_per_s": round(self.meter.rate, 1),
            "peak": round(max(self.meter.history), 1),
            "history": [round(rate, 1) for rate in self.meter.history],
        }

    def nodes(self, offset: int, limit: int) -> tuple[list[dict[str, Any]], int]:
        """One page of the nodes, the connected ones first, then by name."""
        entries = sorted(self.registry.nodes(), key=lambda entry: not entry.online)
        return [show_node(entry) for entry in entries[offset : offset + limit]], len(entries)

    def links(self, offset: int, limit: int) -> tuple[list[dict[str, Any]], int]:
        """One page of the open links, oldest first."""
        page = itertools.islice(self.router.views(), offset, offset + limit)
        return [self._link(view) for view in page], len(self.router)

    def find_node(self, wanted: str) -> Entry | None:
        """The node with this id or name."""
        entry = self.registry.get(PeerId(wanted))
        if entry is not None and entry.role == "node":
            return entry
        return next((entry for entry in self.registry.nodes() if entry.name == wanted), None)

    def datasets(self, tags: tuple[str, ...], offset: int, limit: int) -> tuple[list[dict[str, Any]], int]:
        """One page of the datasets of connected nodes that have every tag, and how many there are in all."""
        found, total = self.registry.search(tags, offset, limit)
        return [{"node": {"id": one.node, "name": one.node_name}, **dataclasses.asdict(one.dataset)} for one in found], total

    def tags(self) -> list[dict[str, Any]]:
        """The tags of connected nodes' datasets, the most used first."""
        return [{"tag": tag, "datasets": number} for tag, number in self.registry.tags().items()]

    def versions(self) -> dict[str, int]:
        """A number for each part of the dashboard that changes whenever the part may look different."""
        registry, moved = self.registry.version, self.meter.version
        return {"summary": registry + moved, "nodes": registry, "datasets": registry, "traffic": registry + moved}

    def page_facts(self, now: float, tags: Sequence[str], address: str) -> Mapping[str, Any]:
        """What the dashboard's templates show. `tags` are those that the reader chose, `address` is the URL for nodes."""
        chosen = list(dict.fromkeys(tags))
        nodes, nodes_total = self.nodes(0, SHOWN_NODES)
        datasets, datasets_total = self.registry.search(tuple(chosen), 0, SHOWN_DATASETS)
        filters, tags_left = tag_filters(self.registry.tags(), chosen)
        links, links_total = self.links(0, SHOWN_LINKS)
        return {
            "status": self.status(now),
            "address": address,
            "nodes": nodes,
            "nodes_total": nodes_total,
            "datasets": datasets,
            "datasets_total": datasets_total,
            "chosen": chosen,
            "tags": filters,
            "tags_left": tags_left,
            "links": links,
            "links_total": links_total,
            "traffic": self.traffic(),
            "spark": sparkline(self.meter.history),
        }

    def measure(self, metrics: Metrics, unauthenticated: int) -> None:
        """Bring the metrics that are read from state up to date."""
        status = self.status(self.started)
        metrics.set("grid_peers", status["nodes"]["online"], role="node")
        metrics.set("grid_peers", status["clients"], role="client")
        metrics.set("grid_nodes_offline", status["nodes"]["offline"])
        metrics.set("grid_datasets", status["datasets"])
        metrics.set("grid_links", status["links"])
        metrics.set("grid_relay_held_bytes", status["traffic"]["held_bytes"])
        metrics.set("grid_connections_unauthenticated", unauthenticated)
        metrics.raise_to("grid_relayed_bytes_total", self.router.moved_bytes)
        metrics.raise_to("grid_relayed_frames_total", self.router.moved_frames)
        metrics.raise_to("grid_links_opened_total", self.router.opened)
        metrics.raise_to("grid_links_violated_total", self.router.violated)

    def _link(self, view: LinkView) -> dict[str, Any]:
        return {
            "number": view.number,
            "opener": self._who(view.opener),
            "target": self._who(view.target),
            "since": show_time(view.since),
            "bytes": view.moved,
            "bytes_per_s": round(self.meter.link_rate(view.number), 1),
            "held_bytes": view.held,
        }

    def _who(self, peer: PeerId) -> dict[str, str]:
        entry = self.registry.get(peer)
        return {"id": peer, "name": entry.name if entry is not None else peer[:8]}


def show_node(entry: Entry, *, whole: bool = False) -> dict[str, Any]:
    """A node for the API: its datasets by name, or with everything that it announced."""
    return {
        "id": entry.id,
        "name": entry.name,
        "organisation": entry.organisation,
        "state": "online" if entry.online else "offline",
        "since": show_time(entry.since),
        "address": entry.address,
        "datasets": [dataclasses.asdict(dataset) if whole else dataset.name for dataset in entry.datasets],
    }


def show_time(wall: float) -> str:
    """Wall time in seconds as ISO 8601 in UTC, to the second."""
    return datetime.datetime.fromtimestamp(int(wall), datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
