"""The event stream of the pages: server-sent events from the gateway's feed, for a limited number of browsers.

A browser that does not read is cut off once a write has waited for `WRITE_S`; it connects again and says what it saw last. Until
then it costs a cursor, and the 64 KiB after which writes wait.
"""

from __future__ import annotations

import asyncio
import contextlib

from aiohttp import web

from grid.errors import QuotaExceeded
from grid.gateway.app import Gateway
from grid.gateway.guard import secure

MAX_STREAMS = 64
"""Event streams at once."""

PAUSE_S = 0.25
"""Pause between two writes of one stream, so that a burst of changes is one write."""

SILENCE_S = 15.0
"""After so long without news a comment is written, so that proxies and browsers see that the stream lives."""

WRITE_S = 10.0


class Live:
    """Serves the streams of one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.streams = 0

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """`GET /events/stream`; the header Last-Event-ID, or `after` in the address, says what was seen last."""
        if self.streams >= MAX_STREAMS:
            raise QuotaExceeded(f"{MAX_STREAMS} event streams are open, as many as this gateway serves; close some pages")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8", "X-Accel-Buffering": "no"})
        secure(response)
        self.streams += 1
        try:
            with contextlib.suppress(ConnectionError):  # The reader has gone, which is how streams end.
                await response.prepare(request)
                await self._stream(request, response)
        finally:
            self.streams -= 1
        return response

    async def _stream(self, request: web.Request, response: web.StreamResponse) -> None:
        gateway, feed = self._gateway, self._gateway.feed
        seen = request.headers.get("Last-Event-ID") or request.query.get("after", "")
        cursor = feed.cursor(seen)
        await _write(request, response, b"retry: 1000\n\n")
        while not gateway.stopping:
            changed = gateway.changes.next
            notices = feed.after(cursor)
            if notices:
                await _write(request, response, b"".join(map(feed.write, notices)))
                cursor = notices[-1].number
                await asyncio.sleep(PAUSE_S)
                continue
            try:
                async with asyncio.timeout(SILENCE_S):
                    await changed.wait()
            except TimeoutError:
                await _write(request, response, b": still here\n\n")


async def _write(request: web.Request, response: web.StreamResponse, data: bytes) -> None:
    """Write, and wait until the socket takes it. Cuts a reader off that does not read; raises `ConnectionError` then."""
    try:
        async with asyncio.timeout(WRITE_S):
            await response.write(data)
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("the reader of an event stream does not read") from None

