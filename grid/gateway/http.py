"""One port: the grid's WebSockets at `/grid` and `/grid/jobs`, the dashboard from `/` on, `/api/v1`, `/metrics` and `/healthz`.

`/healthz`, `/static/` and `/grid` need no token: a peer proves who it is inside its session. Everything else does. All errors
of the API have one shape: `{"error": {"code", "message", "details"}}`, with the codes of `grid/errors.py`.
"""

from __future__ import annotations

import asyncio
import importlib.resources
import logging
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Self

from aiohttp import web

from grid.display import printable
from grid.errors import (
    AuthenticationFailed,
    GridError,
    InvalidRequest,
    NodeUnavailable,
    NotFound,
    QuotaExceeded,
)
from grid.gateway.api import Api, Handler, json_response
from grid.gateway.app import Gateway
from grid.gateway.dashboard import Dashboard
from grid.gateway.guard import Guard, secure
from grid.gateway.live import Live
from grid.gateway.pages import Pages
from grid.gateway.protocol import allow_files, protocol_factory, read_token
from grid.gateway.socket import SocketTransport, new_socket
from grid.gateway.tls import certificate_names, tls_context
from grid.transport.base import Transport

log = logging.getLogger(__name__)

STATUS_OF: Mapping[type[GridError], int] = {
    InvalidRequest: 400,
    AuthenticationFailed: 401,
    NotFound: 404,
    QuotaExceeded: 429,
    NodeUnavailable: 503,
}

STATIC: Mapping[str, str] = {
    "dashboard.css": "text/css",
    "dashboard.js": "text/javascript",
    "favicon.svg": "image/svg+xml",
}

SOCKETS = ("/grid", "/grid/jobs")

OPEN_PATHS = ("/healthz", "/login", *SOCKETS)
"""Need no token, as `/static/` does not."""

Serve = Callable[[Transport, str], Awaitable[None]]

MAX_BODY_BYTES = 1 << 20
SHUTDOWN_S = 3.0


class HttpServer:
    """Puts a gateway on its port while entered. Raises `OSError` where the port cannot be had."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._settings = gateway.settings
        self._tls = tls_context(gateway.settings)
        self._guard = Guard(gateway.settings, gateway.token, certificate_names(gateway.settings))
        self._dashboard = Dashboard()
        self._pages = Pages(gateway, self._dashboard)
        self._live = Live(gateway)
        self._static = {name: (importlib.resources.files("grid.gateway") / "static" / name).read_bytes() for name in STATIC}
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.Server | None = None
        self._port = 0

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return self._port

    @property
    def url(self) -> str:
        """Where a browser finds the dashboard; without the token."""
        return f"{'https' if self._tls else 'http'}://{self._address()}/"

    @property
    def socket_url(self) -> str:
        """What nodes and clients are given as `--gateway`."""
        return f"{'wss' if self._tls else 'ws'}://{self._address()}"

    def _address(self) -> str:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(self._settings.host, self._settings.host)
        return f"[{host}]:{self._port}" if ":" in host else f"{host}:{self._port}"

    async def __aenter__(self) -> Self:
        most = self._settings.max_connections
        allow_files(most)
        runner = web.AppRunner(self._application(), access_log=None, shutdown_timeout=SHUTDOWN_S, handle_signals=False)
        await runner.setup()
        try:
            assert runner.server is not None  # `setup` made it.
            host = self._settings.host or None
            make = protocol_factory(runner.server, most)
            self._listener = await asyncio.get_running_loop().create_server(
                make, host, self._settings.port, ssl=self._tls, backlog=128
            )
        except BaseException:
            await runner.cleanup()
            raise
        self._runner = runner
        self._port = self._listener.sockets[0].getsockname()[1]
        self._pages.address = self.socket_url
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._listener is not None:
            self._listener.close()
        if self._runner is not None:
            await self._runner.cleanup()

    def _application(self) -> web.Application:
        application = web.Application(middlewares=[self._outermost, self._guarded], client_max_size=MAX_BODY_BYTES)
        application.on_shutdown.append(self._shutdown)
        get: Mapping[str, Handler] = {
            "/events/stream": self._live.stream,
            "/static/{name}": self._static_file,
            "/grid": self._hop_socket,
            "/grid/jobs": self._job_socket,
        }
        application.add_routes([web.get(path, handler) for path, handler in get.items()])
        application.add_routes([web.post("/login", self._login), *self._pages.routes(), *Api(self._gateway).routes()])
        return application

    async def _shutdown(self, application: web.Application) -> None:
        await self._gateway.stop()

    # ------------------------------------------------------------ before and after every handler

    @web.middleware
    async def _outermost(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Errors in one shape, headers on everything."""
        try:
            response = await handler(request)
        except GridError as error:
            response = self._failed(request, status_of(error), error)
        except web.HTTPException as error:
            response = self._failed(request, error.status, _http_error(error), allow=error.headers.get("Allow"))
        except Exception:
            log.exception("a request to %s failed", printable(request.path))
            response = self._failed(request, 500, GridError("the gateway failed to answer; its log says why"))
        if not response.prepared:
            secure(response)
        self._gateway.metrics.count("grid_http_requests_total", status=str(response.status))
        return response

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        host, origin = request.headers.get("Host", ""), request.headers.get("Origin")
        # What needs no token tells no page anything that it could not ask for itself; only pages can be led astray by names.
        by_program = origin is None and request.path in ("/healthz", *SOCKETS)
        if not by_program and not self._guard.host_allowed(host):
            name = printable(host[:100])
            raise web.HTTPMisdirectedRequest(text=f"this gateway is not reached as {name!r}; see --allowed-hosts")
        if not self._guard.origin_allowed(origin, host):
            raise web.HTTPForbidden(text="requests from pages of other sites are refused")
        if request.path == "/" and "token" in request.query:
            return self._enter(request, request.query["token"])
        if request.path in OPEN_PATHS or request.path.startswith("/static/") or self._knows_token(request):
            return await handler(request)
        if _is_page(request):
            return _html(self._dashboard.token_form(wrong=False), status=401)
        raise AuthenticationFailed("the gateway's token, printed at its start, is needed: send 'Authorization: Bearer TOKEN'")

    def _knows_token(self, request: web.Request) -> bool:
        if self._guard.bearer_matches(request.headers.get("Authorization", "")):
            return True
        return self._guard.cookie_matches(request.cookies.get(self._cookie, ""))

    def _failed(self, request: web.Request, status: int, error: GridError, allow: str | None = None) -> web.Response:
        if _is_page(request):
            response = _html(self._dashboard.message(_TITLES.get(status, "That did not work"), error.message), status=status)
        else:
            body = {"code": error.code, "message": error.message, "details": error.details}
            response = json_response({"error": body}, status=status)
        if allow:
            response.headers["Allow"] = allow
        if status == 401 and not _is_page(request):
            response.headers["WWW-Authenticate"] = "Bearer"
        return response

    # ------------------------------------------------------------ pages

    @property
    def _cookie(self) -> str:
        return f"grid-{self._port}"  # Cookies of one host are shared by its ports.

    def _enter(self, request: web.Request, offered: str) -> web.Response:
        """Check a token that a person gave; set the cookie, and go on to an address that does not hold it."""
        if not self._guard.token_matches(offered):
            return _html(self._dashboard.token_form(wrong=True), status=401)
        clean = request.rel_url.without_query_params("token") if request.method == "GET" else "/"
        response = web.Response(status=303, headers={"Location": str(clean)})
        response.set_cookie(
            self._cookie, self._guard.cookie_value, httponly=True, samesite="Strict", secure=self._tls is not None, path="/"
        )
        return response

    async def _login(self, request: web.Request) -> web.StreamResponse:
        return self._enter(request, await read_token(request))

    async def _static_file(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if name not in STATIC:
            raise NotFound(f"there is no file {printable(name)!r}")
        response = web.Response(body=self._static[name], content_type=STATIC[name], charset="utf-8")
        response.headers["Cache-Control"] = "no-cache"
        return response

    # ------------------------------------------------------------ the grid

    async def _hop_socket(self, request: web.Request) -> web.StreamResponse:
        return await self._socket(self._gateway.serve, request)

    async def _job_socket(self, request: web.Request) -> web.StreamResponse:
        return await self._socket(self._gateway.serve_jobs, request)

    async def _socket(self, serve: Serve, request: web.Request) -> web.StreamResponse:
        socket = new_socket()
        if not socket.can_prepare(request):
            raise InvalidRequest("this is the address for nodes and clients; the dashboard is at /")
        try:
            await socket.prepare(request)
        except ConnectionError:  # Whoever asked has hung up meanwhile; nobody reads this.
            return web.Response(status=400)
        await serve(SocketTransport(socket, request), request.remote or "")
        return socket


_TITLES = {401: "A token is needed", 403: "That is refused", 404: "There is nothing here", 421: "A different address is meant"}


def status_of(error: GridError) -> int:
    """The HTTP status for an error of ours."""
    return next((status for kind, status in STATUS_OF.items() if isinstance(error, kind)), 500)


def _http_error(error: web.HTTPException) -> GridError:
    text = error.text or ""
    text = "" if text.startswith(f"{error.status}:") else text
    if error.status == 404:
        return NotFound(text or "there is nothing at this address")
    if error.status in (401, 403):
        return AuthenticationFailed(text or "this is refused")
    return InvalidRequest(text or f"the request cannot be answered: {error.reason}")


def _is_page(request: web.Request) -> bool:
    """Whether a person in a browser asked, and wants words instead of JSON."""
    return request.path in ("/", "/login") or ("text/html" in request.headers.get("Accept", "") and not _is_data(request.path))


def _is_data(path: str) -> bool:
    return path.startswith(("/api/", "/events/", "/metrics", "/healthz", "/grid", "/static/"))


def _html(text: str, status: int = 200) -> web.Response:
    return web.Response(text=text, status=status, content_type="text/html", charset="utf-8")
