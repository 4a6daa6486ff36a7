"""HTTP connections before any request is understood: how many there may be, how long one may take, what is said of bad ones.

The library's own words for a request that is no HTTP quote it, in the log too, and it may hold the token.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import resource
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import TypeVar

from aiohttp import web

from grid.errors import GridError, InvalidRequest
from grid.gateway.guard import secure

T = TypeVar("T")

log = logging.getLogger(__name__)

HEADER_S = 15.0
"""Time for a request's line and headers to arrive, and for the next request on the same connection."""

BODY_S = 15.0
"""Time for a request's body to arrive."""

SPARE_CONNECTIONS = 256
"""HTTP connections beside those of the grid: browsers, and peers that are just being refused."""

SPARE_FILES = 64
"""Files that a gateway has open beside its connections."""


class HttpProtocol(web.RequestHandler):
    """One connection. `handle_error` is the library's hook for requests that it cannot hand to the application."""

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        log.info("a request from %s was not HTTP, or broke off (%s)", request.remote, type(exc).__name__)
        if request.writer.output_size > 0:
            raise ConnectionError("the connection broke off within an answer")
        error: GridError = InvalidRequest("this is not a request that can be understood")
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            error = GridError("the gateway failed to answer")
        body = json.dumps({"error": {"code": error.code, "message": error.message, "details": {}}})
        response = web.Response(text=body, status=status, content_type="application/json", charset="utf-8")
        secure(response)
        response.force_close()
        return response


class _Refusing(asyncio.Protocol):
    """Closes its connection at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


def protocol_factory(server: web.Server, max_connections: int) -> Callable[[], asyncio.BaseProtocol]:
    """What makes a protocol for each connection to the port: a refusing one where there are too many."""
    loop = asyncio.get_running_loop()

    def make() -> asyncio.BaseProtocol:
        if len(server.connections) >= max_connections + SPARE_CONNECTIONS:
            return _Refusing()
        return HttpProtocol(server, loop=loop, access_log=None, keepalive_timeout=HEADER_S)  # type: ignore[arg-type]

    return make


def allow_files(connections: int) -> None:
    """Raise this process's limit of open files as far as so many connections need and the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + SPARE_CONNECTIONS + SPARE_FILES
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(OSError, ValueError):  # Fewer connections fit then; nothing else depends on it.
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


async def read_body(request: web.Request) -> bytes:
    """The body, decompressed. Raises `InvalidRequest` where it is malformed or slow, `web.HTTPException` if too large."""
    return await _in_time(request.read)


async def read_token(request: web.Request) -> str:
    """The field `token` of a posted form, "" where it has none. Raises as `read_body`."""
    fields = await _in_time(request.post)
    offered = fields.get("token", "")
    return offered if isinstance(offered, str) else ""


async def _in_time(read: Callable[[], Awaitable[T]]) -> T:
    """Await one of the library's readers of a body; its many errors become `InvalidRequest`."""
    try:
        async with asyncio.timeout(BODY_S):
            return await read()
    except TimeoutError:
        raise InvalidRequest(f"the request's body did not come within {BODY_S:g} s") from None
    except web.HTTPException:
        raise
    except Exception as error:  # Whatever the library's parsers raise: the bytes are a stranger's.
        log.debug("a request's body was malformed", exc_info=error)
        raise InvalidRequest("the request's body is malformed") from None
