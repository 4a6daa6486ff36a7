"""What the gateway shows of itself, as plain values: the HTTP API, the pages and `/metrics` all read these functions."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from grid.gateway.events import Event, EventLog
from grid.gateway.index import Described
from grid.gateway.registry import Entry, Registry
from grid.gateway.router import LinkView, Router
from grid.gateway.traffic import Sample, TrafficMeter
from grid.ids import GridId, PeerId
from grid.telemetry import Metrics
from grid.wire.messages import DatasetCard

T = TypeVar("T")

HISTORY_S = 60
"""Seconds of rates in `traffic`; `traffic_over` has more."""

SORTS: Mapping[str, Callable[[Entry], Any]] = {
    "state": lambda entry: not entry.online,
    "name": lambda entry: (),
    "datasets": lambda entry: -len(entry.datasets),
    "since": lambda entry: -entry.since,
}
"""How nodes may be sorted; those alike are by name."""


@dataclasses.dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a list: `number` counts from 1 and is a page that exists, `total` are the items of all pages."""

    items: Sequence[T]
    number: int
    size: int
    total: int

    @classmethod
    def of(cls, everything: Sequence[T], number: int, size: int) -> Page[T]:
        """The page of this number, or the last one if there are fewer."""
        number = min(number, max(1, -(-len(everything) // size)))
        return cls(everything[(number - 1) * size : number * size], number, size, len(everything))

    @property
    def pages(self) -> int:
        return max(1, -(-self.total // self.size))

    @property
    def first(self) -> int:
        return (self.number - 1) * self.size + 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A link for people: its ends by name as well."""

    link: LinkView
    opener: str
    target: str
    bytes_per_s: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """Reads the gateway's state machines; changes nothing. `started` is wall time in seconds."""

    grid: GridId
    dev: bool
    started: float
    registry: Registry
    router: Router
    meter: TrafficMeter
    events: EventLog

    # ------------------------------------------------------------ counts

    def status(self, now: float) -> dict[str, Any]:
        """Counts and totals; `now` is wall time in seconds."""
        index = self.registry.index
        return {
            "grid": self.grid,
            "dev": self.dev,
            "uptime_s": round(max(0.0, now - self.started), 3),
            "nodes": {"online": index.online, "offline": len(index) - index.online},
            "clients": self.registry.online("client"),
            "datasets": index.datasets,
            "links": len(self.router),
            "traffic": {key: value for key, value in self.traffic().items() if key != "history"},
        }

    def traffic(self) -> dict[str, Any]:
        """Totals since the start, and bytes per second for each of the last 60 seconds."""
        history = self.meter.history(HISTORY_S)
        return {
            "bytes": self.router.moved_bytes,
            "frames": self.router.moved_frames,
            "held_bytes": self.router.held(),
            "bytes_per_s": round(self.meter.rate, 1),
            "peak": round(max(history), 1),
            "history": [round(rate, 1) for rate in history],
        }

    # ------------------------------------------------------------ lists

    def nodes(self, words: Sequence[str] = (), *, state: str = "", sort: str = "state") -> list[Entry]:
        """Nodes that have every word, of a state ("online", "offline" or "" for both), sorted by a name of `SORTS`."""
        found = self.registry.index.nodes(words)
        if state:
            found = [entry for entry in found if entry.online is (state == "online")]
        return sorted(found, key=SORTS[sort])

    def find_node(self, wanted: str) -> Entry | None:
        """The node with this id or name."""
        return self.registry.find_node(wanted)

    def datasets(self, tags: Sequence[str], words: Sequence[str]) -> list[Described]:
        """The datasets of connected nodes that have every tag and word, by node and name."""
        return self.registry.index.find(tags, words)

    def find_dataset(self, node: str, name: str) -> tuple[Entry, DatasetCard] | None:
        """A dataset of a node by id or name, while it is listed."""
        entry = self.registry.find_node(node)
        card = next((one for one in entry.datasets if one.name == name), None) if entry is not None else None
        return (entry, card) if entry is not None and card is not None else None

    def tags(self, most: int) -> list[dict[str, Any]]:
        """The tags of connected nodes' datasets, the most used first."""
        return [{"tag": tag, "datasets": number} for tag, number in self.registry.index.most_used_tags(most)]

    def clients(self) -> list[Entry]:
        """The clients that are connected, by name."""
        clients = (entry for entry in self.registry.connected() if entry.role == "client")
        return sorted(clients, key=lambda entry: (entry.name, entry.id))

    def sessions(self, words: Sequence[str] = ()) -> list[Session]:
        """The open links with every word in the names or ids of their ends, the newest first."""
        found = self._sessions(self.router.views())
        if words:
            texts = ((one, f"{one.opener}\n{one.target}\n{one.link.opener}\n{one.link.target}".casefold()) for one in found)
            found = [one for one, text in texts if all(word in text for word in words)]
        return found[::-1]

    def sessions_of(self, entry: Entry) -> list[Session]:
        """The open links of a node's connection, the newest first."""
        return self._sessions(self.router.views_of(entry.connection))[::-1] if entry.connection is not None else []

    def moved_by(self, entry: Entry) -> tuple[int, int]:
        """Bytes that a node has sent and received since it joined."""
        return self.router.totals(entry.connection) if entry.connection is not None else (0, 0)

    def name_of(self, peer: PeerId) -> str:
        """A peer's name, or the beginning of its id where it is not known any more."""
        entry = self.registry.get(peer)
        return entry.name if entry is not None else peer[:8]

    def _sessions(self, links: Iterable[LinkView]) -> list[Session]:
        return [
            Session(
                link=link,
                opener=self.name_of(link.opener),
                target=self.name_of(link.target),
                bytes_per_s=self.meter.link_rate(link.number),
            )
            for link in links
        ]

    # ------------------------------------------------------------ metrics

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


def show_node(entry: Entry) -> dict[str, Any]:
    """A node for the API, with the number of its datasets."""
    return {
        "id": entry.id,
        "name": entry.name,
        "organisation": entry.organisation,
        "state": "online" if entry.online else "offline",
        "since": show_time(entry.since),
        "address": entry.address,
        "datasets": len(entry.datasets),
    }


def show_dataset(entry: Entry, card: DatasetCard) -> dict[str, Any]:
    """A dataset for the API in short: everything but its columns and features."""
    return {
        "node": {"id": entry.id, "name": entry.name},
        "name": card.name,
        "description": card.description,
        "tags": list(card.tags),
        "rows": card.rows,
        "columns": len(card.columns),
        "policy": dataclasses.asdict(card.policy),
    }


def show_session(session: Session) -> dict[str, Any]:
    """A link for the API."""
    link = session.link
    return {
        "number": link.number,
        "opener": {"id": link.opener, "name": session.opener},
        "target": {"id": link.target, "name": session.target},
        "since": show_time(link.since),
        "bytes": link.moved,
        "bytes_sent": link.sent,
        "bytes_received": link.received,
        "bytes_per_s": round(session.bytes_per_s, 1),
        "held_bytes": link.held,
    }


def show_event(event: Event) -> dict[str, Any]:
    """An event for the API."""
    return {**event._asdict(), "time": show_time(event.wall)}


def show_sample(sample: Sample) -> dict[str, Any]:
    """A stretch of traffic for the API."""
    return {
        "time": show_time(sample.wall),
        "bytes_per_s": round(sample.bytes_per_s, 1),
        "frames_per_s": round(sample.frames_per_s, 2),
        "connections": sample.connections,
        "links": sample.links,
    }


def show_time(wall: float) -> str:
    """Wall time in seconds as ISO 8601 in UTC, to the second."""
    return datetime.datetime.fromtimestamp(int(wall), datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
