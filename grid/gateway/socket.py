"""The gateway's end of a WebSocket, as a `Transport`: binary messages without compression, one per frame."""

from __future__ import annotations

import asyncio
import contextlib

from aiohttp import ClientError, WSMsgType, web

from grid.errors import LocalProtocolError, NodeUnavailable
from grid.transport.base import DIRECT_BYTES, MAX_FRAME_BYTES, Buffer, Transport
from grid.transport.websocket import SMALL_BYTES, frame_head

CLOSE_S = 2.0
"""How long closing may take, the far end's part of it included."""

LOW_BYTES = 64 << 10
LOOK_S = 0.02

POLICY_VIOLATION = 1008
MAX_REASON_BYTES = 120
"""The protocol allows 123."""


def new_socket() -> web.WebSocketResponse:
    """A WebSocket that takes frames of at most `MAX_FRAME_BYTES`. The session has heartbeats of its own, so this one has none."""
    return web.WebSocketResponse(
        compress=False, max_msg_size=MAX_FRAME_BYTES + 1, autoping=True, autoclose=True, heartbeat=None, timeout=CLOSE_S
    )


class SocketTransport(Transport):
    """An accepted WebSocket. `prepare` was called on it with `request`."""

    def __init__(self, socket: web.WebSocketResponse, request: web.Request) -> None:
        self._socket = socket
        self._network = request.transport
        self._sending = False

    async def send(self, *parts: Buffer) -> None:
        frame = parts[0] if len(parts) == 1 else b"".join(parts)
        size = memoryview(frame).nbytes
        if size > MAX_FRAME_BYTES:
            raise LocalProtocolError(f"a frame of {size} bytes is larger than {MAX_FRAME_BYTES}")
        if self._socket.closed:
            raise NodeUnavailable("the WebSocket is closed")
        self._sending = True
        try:
            # The writer may keep what it is given until the network has room, after this has returned.
            await self._socket.send_bytes(frame if isinstance(frame, bytes) else bytes(frame))
        except (ConnectionError, ClientError, RuntimeError) as error:
            raise NodeUnavailable(f"the WebSocket was lost: {type(error).__name__}") from error
        except asyncio.CancelledError:
            if _cancelled():
                raise
            await self._room()
        finally:
            self._sending = False

    def can_send_now(self) -> bool:
        network = self._network
        if network is None or self._socket.closed or self._sending or network.is_closing():
            return False
        return network.get_write_buffer_size() <= DIRECT_BYTES

    def send_now(self, *parts: Buffer) -> None:
        # A binary message in one frame changes nothing that the library keeps account of, so it need not know.
        size = sum(len(part) if isinstance(part, (bytes, bytearray)) else part.nbytes for part in parts)
        assert self._network is not None  # `can_send_now` has seen it
        if size <= SMALL_BYTES:
            self._network.write(b"".join((frame_head(size), *parts)))
        else:
            self._network.writelines([frame_head(size), *parts])

    async def receive(self) -> Buffer:
        try:
            message = await self._socket.receive()
        except (ConnectionError, ClientError, RuntimeError) as error:
            raise NodeUnavailable(f"the WebSocket was lost: {type(error).__name__}") from error
        if message.type is WSMsgType.BINARY:
            data: bytes = message.data
            return data
        if message.type is WSMsgType.TEXT:
            await self._close(POLICY_VIOLATION, "only binary messages are understood here")
            raise NodeUnavailable("the far end sent text, which is not part of the protocol")
        if message.type is WSMsgType.ERROR:
            await self._close(POLICY_VIOLATION, "a message was too large or malformed")
        raise NodeUnavailable(f"the WebSocket was closed (code {self._socket.close_code or 'none'})")

    async def close(self, reason: str = "") -> None:
        await self._close(1000, reason)

    async def _close(self, code: int, reason: str) -> None:
        text = reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore").encode()
        try:
            # Where it is lost nothing is left to close, and whoever reads or writes sees that by itself.
            with contextlib.suppress(ConnectionError, ClientError, RuntimeError):
                async with asyncio.timeout(CLOSE_S):
                    await self._say_close(code, text)
        except TimeoutError:  # What was sent is stuck at a far end that does not read.
            if self._network is not None:
                self._network.abort()

    async def _say_close(self, code: int, text: bytes) -> None:
        try:
            await self._socket.close(code=code, message=text)
        except asyncio.CancelledError:
            if _cancelled():
                raise
            await self._room()
            if self._network is not None:
                self._network.close()

    async def _room(self) -> None:
        """Wait for the network to take what is queued, without the library's help.

        A `send` that was cancelled while it waited leaves its cancelled waiter with the library, which hands it to all who
        wait after, until the network has room again. What they had to send is queued by then; only the waiting is left.
        """
        while self._network is not None and not self._network.is_closing():
            if self._network.get_write_buffer_size() <= LOW_BYTES:
                return
            await asyncio.sleep(LOOK_S)


def _cancelled() -> bool:
    """Whether somebody wants this task to end, as opposed to something that it waited for having been cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
