"""The JSON API under `/api/v1`, `/healthz` and `/metrics`: handlers alone; `http.py` has checked who asks before they run."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from grid.display import printable
from grid.errors import InvalidRequest, NotFound, QuotaExceeded
from grid.gateway.app import Gateway
from grid.gateway.guard import secure
from grid.gateway.protocol import read_body
from grid.gateway.registry import MAX_PAGE
from grid.gateway.views import show_node

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

MAX_STREAMS = 64
"""Event streams at once."""

STREAM_PAUSE_S = 0.25
"""Pause between two events of one stream, so that a burst of changes is one event."""

STREAM_SILENCE_S = 15.0


class Api:
    """Answers for one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._streams = 0

    def routes(self) -> list[web.RouteDef]:
        """All addresses of the API."""
        get: Mapping[str, Handler] = {
            "/healthz": self.health,
            "/metrics": self.metrics,
            "/api/v1/status": self.status,
            "/api/v1/nodes": self.nodes,
            "/api/v1/nodes/{node}": self.node,
            "/api/v1/datasets": self.datasets,
            "/api/v1/tags": self.tags,
            "/api/v1/links": self.links,
            "/api/v1/traffic": self.traffic,
            "/api/v1/events": self.events,
        }
        return [*(web.get(path, handler) for path, handler in get.items()), web.post("/api/v1/revocations", self.revocations)]

    async def health(self, request: web.Request) -> web.StreamResponse:
        if self._gateway.stopping:
            return json_response({"status": "stopping"}, status=503)
        return json_response({"status": "ok"})

    async def metrics(self, request: web.Request) -> web.StreamResponse:
        metrics = self._gateway.metrics
        self._gateway.views.measure(metrics, self._gateway.unauthenticated)
        return web.Response(body=metrics.render(), headers={"Content-Type": metrics.content_type})

    async def status(self, request: web.Request) -> web.StreamResponse:
        return json_response(self._gateway.views.status(self._gateway.clock.wall()))

    async def nodes(self, request: web.Request) -> web.StreamResponse:
        nodes, total = self._gateway.views.nodes(*_page_of(request))
        return json_response({"nodes": nodes, "total": total})

    async def node(self, request: web.Request) -> web.StreamResponse:
        wanted = request.match_info["node"]
        entry = self._gateway.views.find_node(wanted)
        if entry is None:
            raise NotFound(f"this grid has no node with the id or name {printable(wanted)!r}")
        return json_response(show_node(entry, whole=True))

    async def datasets(self, request: web.Request) -> web.StreamResponse:
        datasets, total = self._gateway.views.datasets(tuple(chosen_tags(request)), *_page_of(request))
        return json_response({"datasets": datasets, "total": total})

    async def tags(self, request: web.Request) -> web.StreamResponse:
        return json_response({"tags": self._gateway.views.tags()})

    async def links(self, request: web.Request) -> web.StreamResponse:
        links, total = self._gateway.views.links(*_page_of(request))
        return json_response({"links": links, "total": total})

    async def traffic(self, request: web.Request) -> web.StreamResponse:
        return json_response(self._gateway.views.traffic())

    async def revocations(self, request: web.Request) -> web.StreamResponse:
        """Take over a newer list. Its signature by the root is what counts; the token alone revokes nobody."""
        accepted = self._gateway.trust.merge_revocations(await read_body(request))
        return json_response({"accepted": accepted, "serial": self._gateway.trust.revocation_serial})

    async def events(self, request: web.Request) -> web.StreamResponse:
        """A stream of `versions` events: a number for each part of the dashboard that rises when the part has changed."""
        if self._streams >= MAX_STREAMS:
            raise QuotaExceeded(f"{MAX_STREAMS} event streams are open, as many as this gateway serves; close some pages")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8", "X-Accel-Buffering": "no"})
        secure(response)
        await response.prepare(request)
        self._streams += 1
        try:
            with contextlib.suppress(ConnectionError):  # The reader has gone, which is how streams end.
                await self._stream(response)
        finally:
            self._streams -= 1
        return response

    async def _stream(self, response: web.StreamResponse) -> None:
        gateway = self._gateway
        await response.write(b"retry: 500\n\n")
        sent: dict[str, int] = {}
        while not gateway.stopping:
            changed = gateway.changes.next
            versions = gateway.views.versions()
            if versions != sent:
                await response.write(b"event: versions\ndata: " + json.dumps(versions).encode() + b"\n\n")
                sent = versions
                await asyncio.sleep(STREAM_PAUSE_S)
            try:
                async with asyncio.timeout(STREAM_SILENCE_S):
                    await changed.wait()
            except TimeoutError:
                await response.write(b": still here\n\n")


def chosen_tags(request: web.Request) -> list[str]:
    """The tags by which the reader filters."""
    return request.query.getall("tag", [])[:64]


def _page_of(request: web.Request) -> tuple[int, int]:
    """`offset` and `limit` of a list; raises `InvalidRequest` for what is no number of 0 or more."""
    numbers = []
    for name, default in (("offset", 0), ("limit", 100)):
        text = request.query.get(name, str(default))
        if not (text.isascii() and text.isdigit() and len(text) <= 9):
            raise InvalidRequest(f"{name} is a number of 0 or more, not {printable(text[:40])!r}")
        numbers.append(int(text))
    return numbers[0], min(numbers[1], MAX_PAGE)


def json_response(value: object, status: int = 200) -> web.Response:
    """A response that holds JSON."""
    return web.Response(text=json.dumps(value, allow_nan=False), status=status, content_type="application/json", charset="utf-8")
