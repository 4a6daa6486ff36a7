"""`GET /healthz` at a node: whether it works and the gateway has it. For the probes of containers and the like.

A node dials out and listens nowhere by itself, so this has an address of its own (`--health`), which is meant to be one that
only the node's own machine or container reaches. The answer holds what everybody in the grid knows anyway, and no datasets.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping

from aiohttp import web

Facts = Callable[[], Mapping[str, str | bool]]
"""What there is to say at the moment: at least `connected`."""

KEEPALIVE_S = 5.0


@contextlib.asynccontextmanager
async def serve_health(host: str, port: int, facts: Facts) -> AsyncIterator[int]:
    """Answer while the context lasts: 200 while `connected`, else 503. Gives the port. Raises `OSError` for one in use."""

    async def answer(request: web.Request) -> web.Response:
        told = facts()
        status = "ok" if told["connected"] else "no gateway"
        return web.json_response({"status": status, **told}, status=200 if told["connected"] else 503)

    application = web.Application(client_max_size=1024)
    application.router.add_get("/healthz", answer)
    runner = web.AppRunner(application, access_log=None, handle_signals=False, keepalive_timeout=KEEPALIVE_S, shutdown_timeout=1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
