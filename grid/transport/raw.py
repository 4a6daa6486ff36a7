"""A plain socket out of a WebSocket connection that has done its part: it found the way to the other side.

The dialling side sends one message, a token, and from then on both sides use the socket itself. The listening side answers over
that, with bytes that only who expects this token can know, and the dialling side reads exactly those: whatever follows belongs
to whoever gets the socket. Only over plain TCP: a connection in TLS is more than its socket.
"""

from __future__ import annotations

import asyncio
import socket

from grid.errors import AuthenticationFailed, NodeUnavailable
from grid.transport.base import Transport
from grid.transport.websocket import WebSocketTransport

Socket = socket.socket


async def call(transport: Transport, token: bytes, answer: bytes) -> Socket:
    """The dialling side. Raises `NodeUnavailable`, `AuthenticationFailed` for another answer. Without a limit of time."""
    await transport.send(token)
    raw = await _taken_out(transport)
    try:
        got = b""
        while len(got) < len(answer):
            piece = await asyncio.get_running_loop().sock_recv(raw, len(answer) - len(got))
            if not piece:
                raise NodeUnavailable("the other side ended the connection")
            got += piece
        if got != answer:
            raise AuthenticationFailed("the other side does not answer as the one that is expected")
    except BaseException as error:
        raw.close()
        if isinstance(error, OSError):
            raise NodeUnavailable(f"the connection is lost: {error.strerror}") from None
        raise
    return raw


async def pick_up(transport: Transport, answer: bytes) -> Socket:
    """The listening side, once it has received the token and knows it. Raises `NodeUnavailable`."""
    raw = await _taken_out(transport)
    try:
        await asyncio.get_running_loop().sock_sendall(raw, answer)
    except BaseException as error:
        raw.close()
        if isinstance(error, OSError):
            raise NodeUnavailable(f"the connection is lost: {error.strerror}") from None
        raise
    return raw


async def _taken_out(transport: Transport) -> Socket:
    if not isinstance(transport, WebSocketTransport):
        raise NodeUnavailable("this connection has no socket of its own")
    return await transport.take_socket()
