"""Frames over WebSocket, one binary message each: what nodes and clients dial the gateway with, and where nodes listen.

Every limit is set here and none is left to the library: no compression (tensors do not shrink, and it costs a window of
memory a connection), a largest message, a short queue behind which reading stops, no pings (a session has its own), and an
end that takes at most `CLOSE_S` even where the far side neither reads nor answers. Redirects are not followed: a gateway
must not send its peers elsewhere. Browsers, which name an Origin, are refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from ssl import SSLCertVerificationError, SSLContext, SSLError, create_default_context
from typing import Any
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.connection import Connection
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidStatus, InvalidURI, WebSocketException
from websockets.http11 import Request, Response
from websockets.protocol import CLIENT, SERVER, State

from grid.errors import AuthenticationFailed, GridError, InvalidRequest, LocalProtocolError, NodeUnavailable, WireError
from grid.transport.base import DIRECT_BYTES, MAX_FRAME_BYTES, Buffer, Transport
from grid.transport.reading import Reader, apply_mask

log = logging.getLogger(__name__)

CLOSE_S = 1.0
"""Time for a closing handshake; after it the connection is cut."""

OPEN_S = 10.0
"""Time for TCP, TLS and the upgrade."""

WRITE_BUFFER_BYTES = 256 << 10
"""Bytes that wait in this process before `send` waits."""

QUEUED_FRAMES = (8, 2)
"""Reading from the socket stops above the first number of unread frames and goes on at the second."""

BINARY_FRAME = 0x82
"""First byte of a binary message that is one frame."""

SMALL_BYTES = 16 << 10
"""Up to here a copy is cheaper than a second buffer on the way."""

MAX_REASON = 100
"""Characters of a close reason; the protocol has room for 123 bytes."""


class _Messages(Connection):
    """The library's connection, whose data frames go to a `Reader` of ours; the rest of the protocol stays its own."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._reader = Reader(masked=self.protocol.side is SERVER, max_bytes=MAX_FRAME_BYTES)
        self._head = bytearray()
        self._has_head = False
        self._waiter: asyncio.Future[None] | None = None
        self._lost = self._stopped = self._dropping = False

    def data_received(self, data: bytes) -> None:
        if not self._has_head:
            data = self._after_head(data)
        elif self.protocol.state is State.CONNECTING:  # a client that does not wait for the answer to its upgrade
            self.transport.abort()
            return
        if not data:
            return
        for other in self._reader.feed(data):
            super().data_received(other)
        if self._reader.messages:
            self._arrived()

    def _after_head(self, data: bytes) -> bytes:
        """Give the library what belongs to the handshake, and the caller what came after it."""
        known = len(self._head)
        self._head += data
        end = self._head.find(b"\r\n\r\n", max(0, known - 3))
        if end < 0 or (self.protocol.side is CLIENT and self._head[9:12] != b"101"):
            super().data_received(data)
            return b""
        self._head, self._has_head = bytearray(), True
        super().data_received(data[: end + 4 - known])
        return data[end + 4 - known :]

    def _arrived(self) -> None:
        messages = self._reader.messages
        if self._dropping:
            messages.clear()
        elif len(messages) > QUEUED_FRAMES[0] and not self._stopped:
            self._stopped = True
            self.transport.pause_reading()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._lost = True
        self._wake()

    async def message(self) -> Buffer | None:
        """The next message, None for one of text. Raises `NodeUnavailable` after the last one."""
        messages = self._reader.messages
        while not messages:
            if self._lost:
                raise _gone(self.protocol.close_exc)
            if self._waiter is not None:
                raise LocalProtocolError("two tasks receive from one transport at once")
            self._waiter = self.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._stopped and len(messages) <= QUEUED_FRAMES[1] + 1:
            self._go_on()
        return messages.popleft()

    def has_unread(self) -> bool:
        """Whether anything has come that `message` has not returned."""
        return self._reader.has_begun or bool(self._reader.messages) or self._lost

    def drop_messages(self) -> None:
        """Keep reading, for the end of the connection, and drop what comes."""
        self._dropping = True
        if self._stopped:
            self._go_on()

    def _go_on(self) -> None:
        self._stopped = False
        if not self._lost:
            self.transport.resume_reading()


class _Dialed(_Messages, ClientConnection):
    """The dialing end."""


class _Accepted(_Messages, ServerConnection):
    """The listening end."""


class WebSocketTransport(Transport):
    """One end of an open WebSocket connection."""

    def __init__(self, connection: _Dialed | _Accepted) -> None:
        self._connection = connection
        self._network = connection.transport
        self._masks = connection.protocol.side is CLIENT
        self._sending = False

    async def send(self, *parts: Buffer) -> None:
        # One that may change is copied, since some of it may wait in the network's buffer when this returns.
        frame = parts[0] if len(parts) == 1 and isinstance(parts[0], bytes) else b"".join(parts)
        if len(frame) > MAX_FRAME_BYTES:
            raise LocalProtocolError(f"a frame of {len(frame)} bytes is larger than {MAX_FRAME_BYTES}")
        self._sending = True
        try:
            if self._is_open():
                self.send_now(frame)
                await self._connection.drain()
            else:
                await self._connection.send(frame)  # which says how it ended
        except ConnectionClosed as error:
            raise _gone(error) from None
        except OSError as error:
            raise NodeUnavailable(f"the connection is lost: {error.strerror}") from None
        finally:
            self._sending = False

    def can_send_now(self) -> bool:
        return not self._sending and self._is_open() and self._network.get_write_buffer_size() <= DIRECT_BYTES

    def _is_open(self) -> bool:
        return self._connection.protocol.state is State.OPEN and not self._network.is_closing()

    def send_now(self, *parts: Buffer) -> None:
        # A binary message in one frame changes nothing that the library keeps account of, so it need not know.
        frame = parts[0] if len(parts) == 1 else b"".join(parts)
        if self._masks:
            mask = secrets.token_bytes(4)
            head, frame = frame_head(len(frame), mask), apply_mask(frame, mask)
        else:
            head = frame_head(len(frame))
        if len(frame) <= SMALL_BYTES:
            self._network.write(head + frame)
        else:
            self._network.writelines([head, frame])

    async def receive(self) -> Buffer:
        frame = await self._connection.message()
        if frame is None:
            await self.close("only binary messages make sense here")
            raise WireError("a text message came over a connection that carries binary frames")
        return frame

    async def take_socket(self) -> socket.socket:
        """The TCP socket from under the connection, which is over with that: the far end must do the same.

        Everything sent has left, and nothing that has come is lost. Raises `NodeUnavailable` over TLS, or where more has come
        than was received.
        """
        network = self._network
        if network.get_extra_info("ssl_object") is not None:
            raise NodeUnavailable("a connection in TLS has no socket of its own")
        if network.is_closing():
            raise NodeUnavailable("the connection is closed")
        network.pause_reading()
        while network.get_write_buffer_size() and not network.is_closing():  # noqa: ASYNC110
            await asyncio.sleep(0)
        if network.is_closing() or self._connection.has_unread():
            raise NodeUnavailable("the connection is closed, or has more to be received")
        raw = socket.socket(fileno=os.dup(network.get_extra_info("socket").fileno()))
        raw.setblocking(False)
        network.abort()  # closes its descriptor alone; nothing is sent
        await self._connection.wait_closed()
        return raw

    async def close(self, reason: str = "") -> None:
        self._connection.drop_messages()
        with contextlib.suppress(TimeoutError):  # then it is cut, below
            async with asyncio.timeout(CLOSE_S):
                await self._connection.close(reason=reason.encode()[:MAX_REASON].decode(errors="ignore"))
        self._connection.transport.abort()


def frame_head(length: int, mask: bytes = b"") -> bytes:
    """What stands before the payload of a binary message in one frame (RFC 6455, 5.2)."""
    masked = 0x80 if mask else 0
    if length < 126:
        return bytes((BINARY_FRAME, masked | length)) + mask
    if length < 1 << 16:
        return bytes((BINARY_FRAME, masked | 126)) + length.to_bytes(2, "big") + mask
    return bytes((BINARY_FRAME, masked | 127)) + length.to_bytes(8, "big") + mask


def _gone(error: ConnectionClosed) -> NodeUnavailable:
    reason = error.rcvd.reason if error.rcvd is not None else ""
    return NodeUnavailable(f"the connection is closed{': ' + reason[:MAX_REASON] if reason else ''}")


class _Dialing(connect):
    """`connect` without redirects."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def trusted_certificates(file: Path | None) -> SSLContext | None:
    """Trust in the certificates of a PEM file; None, the system's own choice, without one. Raises `InvalidRequest`."""
    if file is None:
        return None
    try:
        return create_default_context(cafile=str(file))
    except SSLError:
        raise InvalidRequest(f"{file}: holds no certificate in PEM form") from None
    except OSError as error:
        raise InvalidRequest(f"{file}: cannot be read: {error.strerror}") from None


async def dial_websocket(url: str, *, ssl: SSLContext | None = None, open_s: float = OPEN_S) -> Transport:
    """Open a connection to `ws://` or `wss://`; for the latter `ssl` replaces the system's idea of whom to trust.

    Raises `NodeUnavailable` where nobody answers as a grid would, `AuthenticationFailed` for a certificate that is not
    trusted, `InvalidRequest` for a URL that is none.
    """
    place = urlsplit(url)
    if place.scheme not in ("ws", "wss") or not place.hostname:
        raise InvalidRequest("a grid's URL looks like ws://HOST:PORT or wss://HOST:PORT")
    shown = f"{place.scheme}://{place.netloc.rpartition('@')[2]}"
    options: dict[str, Any] = {} if ssl is None or place.scheme == "ws" else {"ssl": ssl}
    try:
        connection = await _Dialing(
            url,
            create_connection=_Dialed,
            compression=None,
            max_size=MAX_FRAME_BYTES,
            write_limit=WRITE_BUFFER_BYTES,
            ping_interval=None,
            open_timeout=open_s,
            close_timeout=CLOSE_S,
            user_agent_header=None,
            proxy=None if is_loopback(place.hostname) else True,
            **options,
        )
    except InvalidURI:
        raise InvalidRequest("a grid's URL looks like ws://HOST:PORT or wss://HOST:PORT") from None
    except InvalidStatus as error:
        raise NodeUnavailable(f"{shown} refused the connection with HTTP status {error.response.status_code}") from None
    except SSLCertVerificationError as error:
        raise AuthenticationFailed(
            f"the certificate of {shown} is not trusted: {error.verify_message}. If its issuer is your own, say --tls-ca FILE"
            " (in Python ca=FILE)"
        ) from None
    except (OSError, TimeoutError, WebSocketException) as error:
        raise NodeUnavailable(f"cannot connect to {shown}: {str(error) or type(error).__name__}") from None
    assert isinstance(connection, _Dialed)
    return WebSocketTransport(connection)


class WebSocketServer:
    """A listening socket; made by `serve_websocket`."""

    def __init__(self, port: int) -> None:
        self.port = port


@contextlib.asynccontextmanager
async def serve_websocket(
    host: str,
    port: int,
    on_transport: Callable[[Transport], Awaitable[None]],
    *,
    ssl: SSLContext | None = None,
    max_connections: int = 1024,
    at: Mapping[str, Callable[[Transport], Awaitable[None]]] | None = None,
) -> AsyncIterator[WebSocketServer]:
    """Listen while the context lasts; `port` 0 takes a free one. Each connection lives as long as `on_transport` runs, or
    what `at` has for its path.

    At the end connections are closed, and `on_transport` sees `NodeUnavailable`. Raises `OSError` for an address in use.
    """
    count = 0

    async def run(connection: ServerConnection) -> None:
        nonlocal count
        assert isinstance(connection, _Accepted)
        transport = WebSocketTransport(connection)
        count += 1
        try:
            path = connection.request.path if connection.request is not None else ""
            await (at or {}).get(path, on_transport)(transport)
        except GridError as error:
            log.info("a connection ended: %s", error)
        finally:
            count -= 1
            await transport.close()

    def admit(connection: ServerConnection, request: Request) -> Response | None:
        if count >= max_connections:
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections\n")
        return None

    async with serve(
        run,
        host,
        port,
        create_connection=_Accepted,
        ssl=ssl,
        origins=[None],
        process_request=admit,
        compression=None,
        max_size=MAX_FRAME_BYTES,
        write_limit=WRITE_BUFFER_BYTES,
        ping_interval=None,
        open_timeout=OPEN_S,
        close_timeout=CLOSE_S,
        server_header=None,
    ) as server:
        yield WebSocketServer(next(iter(server.sockets)).getsockname()[1])
