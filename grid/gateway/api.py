"""The JSON API under `/api/v1`, `/healthz` and `/metrics`: handlers alone; `http.py` has checked who asks before they run.

Lists come in pages: `page` counts from 1, `size` is at most `MAX_SIZE`, `q` holds words to look for (docs/http-api.md).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from aiohttp import web

from grid.crypto.envelope import is_envelope
from grid.display import printable
from grid.errors import InvalidRequest, NotFound
from grid.gateway.app import Gateway
from grid.gateway.events import KINDS
from grid.gateway.index import words_of
from grid.gateway.job_views import STATES, show_job, show_report
from grid.gateway.protocol import read_body
from grid.gateway.queries import choice_of, number_of, page_number, query_of, tags_of
from grid.gateway.views import SORTS, Page, show_dataset, show_event, show_node, show_sample, show_session

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
T = TypeVar("T")

SIZE = 100
MAX_SIZE = 200
"""Items of a page; a description has up to 10,000 characters."""

NO_LIST = (
    "the list is missing: the request's body must be the bytes of a list of revocations that the root has signed, which"
    " `grid revoke NAME --json` prints in base64 as `revocations`; `grid revoke NAME --gateway URL` sends it by itself"
)


class Api:
    """Answers for one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def routes(self) -> list[web.RouteDef]:
        """All addresses of the API."""
        get: Mapping[str, Handler] = {
            "/healthz": self.health,
            "/metrics": self.metrics,
            "/api/v1/status": self.status,
            "/api/v1/nodes": self.nodes,
            "/api/v1/nodes/{node}": self.node,
            "/api/v1/datasets": self.datasets,
            "/api/v1/datasets/{node}/{dataset:[^/]+}": self.dataset,
            "/api/v1/tags": self.tags,
            "/api/v1/links": self.links,
            "/api/v1/traffic": self.traffic,
            "/api/v1/events": self.events,
            "/api/v1/jobs": self.jobs,
            "/api/v1/jobs/{job}": self.job,
            "/api/v1/jobs/{job}/story": self.story,
        }
        return [*(web.get(path, handler) for path, handler in get.items()), web.post("/api/v1/revocations", self.revocations)]

    async def health(self, request: web.Request) -> web.StreamResponse:
        if self._gateway.stopping:
            return json_response({"status": "stopping"}, status=503)
        return json_response({"status": "ok"})

    async def metrics(self, request: web.Request) -> web.StreamResponse:
        metrics = self._gateway.metrics
        self._gateway.views.measure(metrics, self._gateway.unauthenticated)
        self._gateway.jobs.measure(metrics)
        return web.Response(body=metrics.render(), headers={"Content-Type": metrics.content_type})

    async def status(self, request: web.Request) -> web.StreamResponse:
        return json_response({**self._gateway.views.status(self._gateway.clock.wall()), "jobs": self._gateway.jobs.counts()})

    async def nodes(self, request: web.Request) -> web.StreamResponse:
        found = self._gateway.views.nodes(
            words_of(query_of(request)),
            state=choice_of(request, "state", ("online", "offline")),
            sort=choice_of(request, "sort", SORTS) or "state",
        )
        return _listed(request, "nodes", found, show_node)

    async def node(self, request: web.Request) -> web.StreamResponse:
        wanted = request.match_info["node"]
        entry = self._gateway.views.find_node(wanted)
        if entry is None:
            raise NotFound(f"this grid has no node with the id or name {printable(wanted)!r}")
        return json_response({**show_node(entry), "datasets": [dataclasses.asdict(card) for card in entry.datasets]})

    async def datasets(self, request: web.Request) -> web.StreamResponse:
        found = self._gateway.views.datasets(tags_of(request), words_of(query_of(request)))
        return _listed(request, "datasets", found, lambda one: show_dataset(one.entry, one.card))

    async def dataset(self, request: web.Request) -> web.StreamResponse:
        node, name = request.match_info["node"], request.match_info["dataset"]
        found = self._gateway.views.find_dataset(node, name)
        if found is None:
            raise NotFound(f"no node {printable(node)!r} lists a dataset {printable(name)!r} now")
        entry, card = found
        return json_response({"node": {"id": entry.id, "name": entry.name}, **dataclasses.asdict(card)})

    async def tags(self, request: web.Request) -> web.StreamResponse:
        return json_response({"tags": self._gateway.views.tags(number_of(request, "size", SIZE, MAX_SIZE))})

    async def links(self, request: web.Request) -> web.StreamResponse:
        return _listed(request, "links", self._gateway.views.sessions(words_of(query_of(request))), show_session)

    async def traffic(self, request: web.Request) -> web.StreamResponse:
        """Totals and the last minute; with `over`, samples of ten minutes or of a day."""
        meter, over = self._gateway.views.meter, choice_of(request, "over", ("10m", "day"))
        answer = self._gateway.views.traffic()
        if over:
            samples = meter.minutes if over == "day" else meter.seconds
            answer = {**answer, "samples": [show_sample(sample) for sample in samples]}
        return json_response(answer)

    async def events(self, request: web.Request) -> web.StreamResponse:
        kind = choice_of(request, "kind", KINDS)
        found = self._gateway.events.find(kinds=(kind,) if kind else (), words=words_of(query_of(request)))
        return _listed(request, "events", found, show_event)

    async def jobs(self, request: web.Request) -> web.StreamResponse:
        found = self._gateway.jobs.jobs(words_of(query_of(request)), state=choice_of(request, "state", STATES))
        return _listed(request, "jobs", found, show_job)

    async def job(self, request: web.Request) -> web.StreamResponse:
        """A job with one page of its reports, the oldest first."""
        card, reports = await self._gateway.jobs.job(request.match_info["job"])
        page = Page.of(reports, page_number(request), number_of(request, "size", SIZE, MAX_SIZE))
        shown = [show_report(card, report) for report in page.items]
        paging = {"total": page.total, "page": page.number, "pages": page.pages, "size": page.size}
        return json_response({**show_job(card), "reports": shown, **paging})

    async def story(self, request: web.Request) -> web.StreamResponse:
        job = request.match_info["job"]
        await self._gateway.jobs.job(job)
        return json_response({"story": self._gateway.jobs.story(job)})

    async def revocations(self, request: web.Request) -> web.StreamResponse:
        """Take over a newer list. Its signature by the root is what counts; the token alone revokes nobody."""
        trust, body = self._gateway.trust, await read_body(request)
        if not is_envelope(body):
            raise InvalidRequest(NO_LIST)
        if trust.is_dev:
            raise InvalidRequest("this is a --dev grid: it has no root who could revoke anybody")
        return json_response({"accepted": trust.merge_revocations(body), "serial": trust.revocation_serial})


def _listed(request: web.Request, name: str, found: Sequence[T], show: Callable[[T], Any]) -> web.StreamResponse:
    """One page of a list."""
    page = Page.of(found, page_number(request), number_of(request, "size", SIZE, MAX_SIZE))
    shown = [show(item) for item in page.items]
    return json_response({name: shown, "total": page.total, "page": page.number, "pages": page.pages, "size": page.size})


def json_response(value: object, status: int = 200) -> web.Response:
    """A response that holds JSON."""
    return web.Response(text=json.dumps(value, allow_nan=False), status=status, content_type="application/json", charset="utf-8")
