"""A stream of bytes between two processes that no socket connects: each side's node pumps one end of a socket pair.

What the near process writes is read in pieces and handed to `say`, which brings it to the `received` of the far side; that writes
it for the far process. At most `WINDOW` bytes are under way or unread: the far side says how much its process has taken, and no
more is read here before. So a process that does not read stops the one that writes, end to end, and memory is bounded.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable

from grid.errors import WireError
from grid.transport.pipes import pipe
from grid.wire.messages import Buffer

PIECE = 256 << 10
WINDOW = 4 * PIECE

Say = Callable[[bytes, int, bool], None]
"""Bytes for the far side, the number of bytes taken from it so far, and whether nothing more comes."""


class Relay:
    """One side. `end` is for the near process, which gets it as an ordinary connected socket."""

    def __init__(self, say: Say) -> None:
        self.end, self._socket = pipe()
        self._socket.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._say = say
        self._read = self._acknowledged = 0
        self._taken = self._told = 0
        self._waiting: deque[memoryview] = deque()
        self._waiting_bytes = 0
        self._reads = True
        self._far_is_done = self._closed = False
        self._loop.add_reader(self._socket, self._readable)

    def _readable(self) -> None:
        room = WINDOW - (self._read - self._acknowledged)
        try:
            data = self._socket.recv(min(room, PIECE))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._stop_reading()
            self._tell(b"", True)
            return
        self._read += len(data)
        if self._read - self._acknowledged >= WINDOW:
            self._stop_reading()
        self._tell(data, False)

    def _stop_reading(self) -> None:
        if self._reads:
            self._reads = False
            self._loop.remove_reader(self._socket)

    def _tell(self, data: bytes, over: bool) -> None:
        self._told = self._taken
        self._say(data, self._taken, over)

    def received(self, data: Buffer, taken: int, over: bool) -> None:
        """What the far side said. Raises `WireError` for what breaks the rules."""
        if self._closed:
            return
        if not self._acknowledged <= taken <= self._read:
            raise WireError("a relayed connection acknowledges what was not sent")
        if self._far_is_done and len(data):
            raise WireError("a relayed connection goes on after its end")
        if self._waiting_bytes + len(data) > WINDOW:
            raise WireError(f"more than {WINDOW} bytes of a relayed connection came that nobody has taken")
        full, self._acknowledged = self._read - self._acknowledged >= WINDOW, taken
        if full and self._read - taken < WINDOW:
            self._reads = True
            self._loop.add_reader(self._socket, self._readable)
        self._far_is_done = self._far_is_done or over
        if len(data):
            self._waiting.append(memoryview(data))
            self._waiting_bytes += len(data)
        if self._waiting_bytes == len(data):  # nothing waited before
            self._write()

    def _write(self) -> None:
        try:
            while self._waiting:
                first = self._waiting[0]
                sent = self._socket.send(first)
                self._taken += sent
                self._waiting_bytes -= sent
                if sent < len(first):
                    self._waiting[0] = first[sent:]
                else:
                    self._waiting.popleft()
        except (BlockingIOError, InterruptedError):
            self._loop.add_writer(self._socket, self._write)
        except OSError:  # the near process is gone, which reading tells
            self._waiting.clear()
            self._waiting_bytes = 0
        if not self._waiting:
            self._loop.remove_writer(self._socket)
            if self._far_is_done:
                self._shut()
        if self._taken - self._told >= WINDOW // 4:
            self._tell(b"", False)

    def _shut(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self) -> None:
        """Be done: the near process sees the end. Safe to call again."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()
