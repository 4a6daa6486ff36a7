"""A gateway on a port of its own, asked over HTTP."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from grid.crypto.identity import Trust
from grid.gateway.http import HttpServer
from grid.settings import GatewaySettings
from grid.testing.crowd import Crowd, crowd

TOKEN = "a token of sorts"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


class Site:
    """A gateway on a port of its own, and an HTTP client without cookies."""

    def __init__(self, grid: Crowd, http: HttpServer, session: aiohttp.ClientSession) -> None:
        self.grid = grid
        self.http = http
        self.session = session

    @property
    def root(self) -> str:
        return self.http.url.rstrip("/")

    async def get(self, path: str, **options: Any) -> tuple[int, Any, aiohttp.ClientResponse]:
        """Status, content (JSON where it is) and response; with the token unless headers say otherwise."""
        options.setdefault("headers", BEARER)
        async with self.session.get(self.root + path, allow_redirects=False, **options) as response:
            text = await response.text()
            return response.status, json.loads(text) if response.content_type == "application/json" else text, response


@contextlib.asynccontextmanager
async def site(settings: GatewaySettings | None = None, trust: Trust | None = None) -> AsyncIterator[Site]:
    settings = settings or GatewaySettings(dev=True, port=0)
    async with crowd(settings, trust=trust, token=TOKEN) as grid, HttpServer(grid.gateway) as http:
        async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
            yield Site(grid, http, session)
