"""The dashboard's pages, each at an address of its own: what a reader asks for, and the facts that the template shows.

A page works without JavaScript. With it, the page follows the event stream and asks for itself again where something has
changed (`static/dashboard.js`); so there is one way in which anything is rendered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from grid.display import printable
from grid.errors import NotFound
from grid.gateway.api import Handler
from grid.gateway.app import Gateway
from grid.gateway.charts import chart, round_bytes, round_count
from grid.gateway.dashboard import SHOWN_TAGS, Dashboard, tag_filters
from grid.gateway.events import KINDS
from grid.gateway.explain import explain, snippet
from grid.gateway.index import words_of
from grid.gateway.job_views import STATES, curves
from grid.gateway.queries import choice_of, page_number, query_of, tags_of
from grid.gateway.registry import Entry
from grid.gateway.traffic import condensed
from grid.gateway.views import SORTS, Page
from grid.wire.messages import DatasetCard

SIZE = 50
"""Items of a page."""

SHOWN_RECENT = 8
SHOWN_OF_NODE = 10
SHOWN_COLUMNS = 200
SHOWN_ROUNDS = 50
MOCK_ROWS = 5
MOCK_COLUMNS = 12

LATELY_S = 600.0
"""What counts as lately on the overview."""

SPANS: Mapping[str, tuple[float, int, str, float]] = {
    "10m": (2.0, 300, "10 min ago", 60.0),
    "day": (300.0, 288, "24 h ago", 3600.0),
}
"""Span of a chart -> seconds to a point, points, what stands at its left end, seconds to a row of its table."""


class Pages:
    """Answers for one gateway. `address` tells the URL that nodes and clients are given, once the port is known."""

    def __init__(self, gateway: Gateway, dashboard: Dashboard) -> None:
        self._gateway = gateway
        self._views = gateway.views
        self._dashboard = dashboard
        self.address = ""

    def routes(self) -> list[web.RouteDef]:
        """All addresses of pages."""
        get: Mapping[str, Handler] = {
            "/": self.overview,
            "/nodes": self.nodes,
            "/nodes/{node}": self.node,
            "/datasets": self.datasets,
            "/datasets/{node}/{dataset:[^/]+}": self.dataset,  # a name with braces too
            "/sessions": self.sessions,
            "/traffic": self.traffic,
            "/events": self.events,
            "/jobs": self.jobs,
            "/jobs/{job}": self.job,
        }
        return [web.get(path, handler) for path, handler in get.items()]

    # ------------------------------------------------------------ pages

    async def overview(self, request: web.Request) -> web.StreamResponse:
        views, now = self._views, self._gateway.clock.wall()
        nodes = views.nodes(sort="since")
        facts = {
            "recent_nodes": nodes[:SHOWN_RECENT],
            "events": self._gateway.events.find()[:SHOWN_RECENT],
            "tags": tag_filters(views.registry.index.most_used_tags(SHOWN_TAGS), []),
            "bytes": self._chart("10m", "bytes_per_s"),
            "failures": self._gateway.events.since("error", now - LATELY_S),
            "refusals": self._gateway.events.since("refused", now - LATELY_S),
            "unauthenticated": self._gateway.unauthenticated,
        }
        return self.page("overview", facts)

    async def nodes(self, request: web.Request) -> web.StreamResponse:
        query, state = query_of(request), choice_of(request, "state", ("online", "offline"))
        sort = choice_of(request, "sort", SORTS) or "state"
        found = self._views.nodes(words_of(query), state=state, sort=sort)
        page = Page.of(found, page_number(request), SIZE)
        return self.page("nodes", {"page": page, "q": query, "state": state, "sort": sort})

    async def node(self, request: web.Request) -> web.StreamResponse:
        entry = self._node(request.match_info["node"])
        sessions = self._views.sessions_of(entry)
        sent, received = self._views.moved_by(entry)
        facts = {
            "node": entry,
            "datasets": entry.datasets[:SIZE],
            "sessions": sessions[:SHOWN_OF_NODE],
            "sessions_total": len(sessions),
            "rate": sum(one.bytes_per_s for one in sessions),
            "sent": sent,
            "received": received,
            "events": self._gateway.events.find(peer=entry.id)[:SHOWN_OF_NODE],
        }
        return self.page("node", facts)

    async def datasets(self, request: web.Request) -> web.StreamResponse:
        query, chosen = query_of(request), tags_of(request)
        found = self._views.datasets(chosen, words_of(query))
        tags = tag_filters(self._views.registry.index.most_used_tags(SHOWN_TAGS), chosen, query)
        page = Page.of(found, page_number(request), SIZE)
        return self.page("datasets", {"page": page, "q": query, "chosen": chosen, "tags": tags})

    async def dataset(self, request: web.Request) -> web.StreamResponse:
        entry = self._node(request.match_info["node"])
        name = request.match_info["dataset"]
        found = self._views.find_dataset(entry.id, name)
        if found is None:
            raise NotFound(f"{printable(name)!r} is not here: node {entry.name} lists no dataset of that name now")
        _, card = found
        listed = self._views.registry.lists_datasets_of(entry)
        facts = {
            "node": entry,
            "dataset": card,
            "columns": card.columns[:SHOWN_COLUMNS],
            "policy": explain(card),
            "mock_columns": card.columns[:MOCK_COLUMNS],
            "mock": await asyncio.to_thread(_mock, card),
            "snippet": snippet(card, entry.name, self.address, dev=self._views.dev, listed=listed),
        }
        return self.page("dataset", facts)

    async def sessions(self, request: web.Request) -> web.StreamResponse:
        query = query_of(request)
        page = Page.of(self._views.sessions(words_of(query)), page_number(request), SIZE)
        clients = self._views.clients()
        return self.page("sessions", {"page": page, "q": query, "clients": clients[:SIZE], "clients_total": len(clients)})

    async def traffic(self, request: web.Request) -> web.StreamResponse:
        over = choice_of(request, "over", SPANS) or "10m"
        _, _, past, row_s = SPANS[over]
        meter = self._views.meter
        samples = meter.minutes if over == "day" else meter.seconds
        facts = {
            "over": over,
            "past": past,
            "traffic": self._views.traffic(),
            "bytes": self._chart(over, "bytes_per_s"),
            "frames": self._chart(over, "frames_per_s"),
            "connections": self._chart(over, "connections"),
            "rows": [(sample.wall // row_s * row_s, sample) for sample in condensed(samples, row_s)][::-1],
        }
        return self.page("traffic", facts)

    async def events(self, request: web.Request) -> web.StreamResponse:
        query, kind = query_of(request), choice_of(request, "kind", KINDS)
        found = self._gateway.events.find(kinds=(kind,) if kind else (), words=words_of(query))
        page = Page.of(found, page_number(request), SIZE)
        return self.page("events", {"page": page, "q": query, "kind": kind, "kinds": KINDS})

    async def jobs(self, request: web.Request) -> web.StreamResponse:
        query, state = query_of(request), choice_of(request, "state", STATES)
        page = Page.of(self._gateway.jobs.jobs(words_of(query), state=state), page_number(request), SIZE)
        return self.page("jobs", {"page": page, "q": query, "state": state, "states": STATES, "name_of": self._views.name_of})

    async def job(self, request: web.Request) -> web.StreamResponse:
        card, reports = await self._gateway.jobs.job(request.match_info["job"])
        facts = {
            "job": card,
            "reports": reports[: -SHOWN_ROUNDS - 1 : -1],
            "reports_total": len(reports),
            "best": next((report for report in reversed(reports) if report.best), None),
            "curves": curves(card, reports),
            "seconds": sum(report.seconds for report in reports),
            "bytes": sum(report.bytes for report in reports),
            "nodes": card.nodes[:SIZE],
            "name_of": self._views.name_of,
        }
        return self.page("job", facts)

    # ------------------------------------------------------------ inside

    def _node(self, wanted: str) -> Entry:
        entry = self._views.find_node(wanted)
        if entry is None:
            raise NotFound(f"this grid knows no node {printable(wanted)!r}; it may never have joined, or was offline for long")
        return entry

    def _chart(self, over: str, value: str) -> Mapping[str, Any]:
        point_s, points, _, _ = SPANS[over]
        meter = self._views.meter
        samples = condensed(meter.minutes if over == "day" else meter.seconds, point_s)
        rounded = round_bytes if value == "bytes_per_s" else round_count
        return chart([getattr(sample, value) for sample in samples], points, rounded)._asdict()

    def page(self, name: str, facts: Mapping[str, Any]) -> web.Response:
        """The page of this name with these facts, and those that all pages have."""
        now = self._gateway.clock.wall()
        feed = self._gateway.feed
        common = {
            "active": name,
            "now": now,
            "status": self._views.status(now),
            "started": self._views.started,
            "address": self.address,
            "cursor": f"{feed.epoch}-{feed.last}",
        }
        text = self._dashboard.page(name, {**common, **facts})
        return web.Response(text=text, content_type="text/html", charset="utf-8")


def _mock(card: DatasetCard) -> list[tuple[str | float, ...]]:
    """The first rows of the client's mock data. In a thread: drawing takes numpy, which the gateway needs for nothing else."""
    from grid.mock import first_rows

    return first_rows(card, MOCK_COLUMNS, MOCK_ROWS)
