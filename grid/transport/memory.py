"""A transport whose two ends are in one process, on one event loop.

It behaves as a network does: a frame is copied when it is sent, a slow reader holds up the writer once `capacity_bytes` wait,
and what was sent before a close can still be read.
"""

from __future__ import annotations

import asyncio
from collections import deque

from grid.errors import LocalProtocolError, NodeUnavailable
from grid.transport.base import DIRECT_BYTES, MAX_FRAME_BYTES, Buffer, Transport


class _Pipe:
    """One direction: frames on their way, and who waits for what."""

    __slots__ = ("capacity", "closed", "frames", "readable", "size", "writable")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.frames: deque[bytes] = deque()
        self.size = 0
        self.closed = ""
        self.readable: asyncio.Future[None] | None = None
        self.writable: asyncio.Future[None] | None = None

    def close(self, reason: str) -> None:
        self.closed = self.closed or reason
        _wake(self.readable)
        _wake(self.writable)


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


class MemoryTransport(Transport):
    """One end of `memory_pair`."""

    def __init__(self, incoming: _Pipe, outgoing: _Pipe) -> None:
        self._incoming = incoming
        self._outgoing = outgoing

    async def send(self, *parts: Buffer) -> None:
        pipe = self._outgoing
        size = sum(memoryview(part).nbytes for part in parts)
        if size > MAX_FRAME_BYTES:
            raise LocalProtocolError(f"a frame of {size} bytes is larger than {MAX_FRAME_BYTES}")
        if pipe.writable is not None:
            raise LocalProtocolError("two tasks send on one transport at once")
        while pipe.size > 0 and pipe.size + size > pipe.capacity and not pipe.closed:
            pipe.writable = asyncio.get_running_loop().create_future()
            try:
                await pipe.writable
            finally:
                pipe.writable = None
        if pipe.closed:
            raise NodeUnavailable(f"the connection is closed: {pipe.closed}")
        self._put(pipe, parts)

    def can_send_now(self) -> bool:
        pipe = self._outgoing
        return pipe.writable is None and not pipe.closed and pipe.size <= min(pipe.capacity // 2, DIRECT_BYTES)

    def send_now(self, *parts: Buffer) -> None:
        self._put(self._outgoing, parts)

    def _put(self, pipe: _Pipe, parts: tuple[Buffer, ...]) -> None:
        frame = b"".join(parts)
        pipe.frames.append(frame)
        pipe.size += len(frame)
        _wake(pipe.readable)

    async def receive(self) -> Buffer:
        pipe = self._incoming
        if pipe.readable is not None:
            raise LocalProtocolError("two tasks receive from one transport at once")
        while not pipe.frames:
            if pipe.closed:
                raise NodeUnavailable(f"the connection is closed: {pipe.closed}")
            pipe.readable = asyncio.get_running_loop().create_future()
            try:
                await pipe.readable
            finally:
                pipe.readable = None
        frame = pipe.frames.popleft()
        pipe.size -= len(frame)
        _wake(pipe.writable)
        return frame

    async def close(self, reason: str = "") -> None:
        self._outgoing.close(reason or "closed by the peer")
        self._incoming.close(reason or "closed")


def memory_pair(capacity_bytes: int = 4 << 20) -> tuple[Transport, Transport]:
    """Two connected ends. Each direction holds `capacity_bytes` (or one frame, if that is larger) that nobody has read."""
    there, back = _Pipe(capacity_bytes), _Pipe(capacity_bytes)
    return MemoryTransport(back, there), MemoryTransport(there, back)
