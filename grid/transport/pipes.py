"""Frames between two processes of one machine, over a connected pair of Unix sockets.

    u64 length, little-endian | frame

One end is a process that does one thing at a time and reads and writes with plain blocking calls (`BlockingPipe`); the other
lives on an event loop and never waits (`LoopPipe`). Both read many small frames with one system call and large ones straight
into memory of their own, in which the tensors of the message then lie. Memory is taken as bytes arrive, whatever a length claims.
Open files travel beside the bytes of a frame (`send_files`, `receive_files`).
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence

from grid.errors import WireError
from grid.wire.memory import Growing
from grid.wire.messages import Buffer

PREFIX = struct.Struct("<Q")

READ_BYTES = 256 << 10
"""What one read takes at most; frames that do not fit into it get memory of their own."""

SOCKET_BYTES = 1 << 20
"""Asked of the kernel for each direction; it may give less."""

MAX_PARTS = 512
"""Buffers that one write takes."""

MAX_FILES = 250
"""Open files beside one frame; the kernel takes no more."""


End = socket.socket
"""One end of a pipe."""


def end_of(fd: int) -> End:
    """The end of a pipe that this process was given as an open file, which is the end's from now on."""
    return socket.socket(fileno=fd)


def pipe() -> tuple[socket.socket, socket.socket]:
    """Two connected ends, both blocking and closed in programs that this process starts."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for end in (left, right):
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            end.setsockopt(socket.SOL_SOCKET, option, SOCKET_BYTES)
    return left, right


class Frames:
    """Cuts a stream of bytes into frames. `max_bytes` bounds a frame: a longer one raises `WireError`."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._start = 0
        self._end = 0
        self._growing: Growing | None = None
        self._direct: Growing | None = None  # where the last room was

    def room(self) -> memoryview:
        """Where the next bytes are to be put."""
        growing = self._growing
        room = growing.room() if growing is not None else None
        self._direct = None if room is None else growing
        return self._buffer[self._end :] if room is None else room

    def added(self, count: int) -> None:
        """So many bytes were put there."""
        if self._direct is not None:
            self._direct.added(count)
        else:
            self._end += count

    def next(self) -> Buffer | None:
        """The next whole frame, in writable memory of its own; None until more bytes are there."""
        if self._growing is not None:
            return self._grow(self._growing)
        waiting = self._end - self._start
        if waiting < PREFIX.size:
            self._make_room()
            return None
        (length,) = PREFIX.unpack_from(self._buffer, self._start)
        if length > self._max_bytes:
            raise WireError(f"a frame of {length} bytes is longer than the {self._max_bytes} that are accepted here")
        begin = self._start + PREFIX.size
        if length <= waiting - PREFIX.size:
            self._start = begin + length
            return bytearray(self._buffer[begin : self._start])
        if length <= READ_BYTES // 2:
            self._make_room()
            return None
        self._growing = Growing(length)
        self._start = begin
        return self._grow(self._growing)

    def _grow(self, growing: Growing) -> Buffer | None:
        piece = self._buffer[self._start : min(self._end, self._start + growing.total - growing.filled)]
        growing.add(piece)
        self._start += len(piece)
        if growing.filled < growing.total:
            self._make_room()
            return None
        self._growing = None
        return growing.whole()

    def _make_room(self) -> None:
        """Make room for what is missing."""
        if self._start == self._end:
            self._start = self._end = 0
        elif self._start:
            left = self._end - self._start
            self._buffer[:left] = bytes(self._buffer[self._start : self._end])
            self._start, self._end = 0, left


class BlockingPipe:
    """The end of a process that waits. Both methods raise `EOFError` once the other end is gone."""

    def __init__(self, end: socket.socket, max_bytes: int) -> None:
        self._socket = end
        self._frames = Frames(max_bytes)

    def receive(self) -> Buffer:
        """The next frame."""
        while True:
            frame = self._frames.next()
            if frame is not None:
                return frame
            try:
                count = self._socket.recv_into(self._frames.room())
            except OSError:
                count = 0
            if not count:
                raise EOFError("the other end of the pipe is gone")
            self._frames.added(count)

    def waiting(self) -> Buffer | None:
        """A frame that has been read already, or None."""
        return self._frames.next()

    def send(self, frames: Sequence[Sequence[Buffer]]) -> None:
        """Write whole frames, each given as parts."""
        parts = deque(_prefixed(frames))
        while parts:
            try:
                _drop(parts, self._socket.sendmsg([parts[at] for at in range(min(len(parts), MAX_PARTS))]))
            except OSError:
                raise EOFError("the other end of the pipe is gone") from None


class LoopPipe:
    """The end on an event loop, which must be running. `on_frame` gets each frame; `on_end` is called once, when the
    other end is gone ("") or has sent what is no frame (what was wrong).

    Nothing waits: what the other end does not take stays queued here (`queued_bytes`). After `pause` no frame comes until
    `resume`, and the other end ends up waiting.
    """

    def __init__(
        self, end: socket.socket, *, max_bytes: int, on_frame: Callable[[Buffer], None], on_end: Callable[[str], None]
    ) -> None:
        end.setblocking(False)
        self._socket = end
        self._loop = asyncio.get_running_loop()
        self._frames = Frames(max_bytes)
        self._on_frame = on_frame
        self._on_end = on_end
        self._parts: deque[Buffer] = deque()
        self._writing = False
        self._paused = False
        self._closed = False
        self.queued_bytes = 0
        self._loop.add_reader(end.fileno(), self._readable)

    def send(self, parts: Sequence[Buffer]) -> None:
        """Queue a frame, given as parts; buffers must not change until they are sent. Does nothing after the end."""
        if self._closed:
            return
        for part in _prefixed([parts]):
            self._parts.append(part)
            self.queued_bytes += len(part)
        if not self._writing:
            self._writable()

    def _writable(self) -> None:
        try:
            while self._parts:
                sent = self._socket.sendmsg([self._parts[at] for at in range(min(len(self._parts), MAX_PARTS))])
                self.queued_bytes -= sent
                _drop(self._parts, sent)
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self._loop.call_soon(self._ended, "")
            return
        if bool(self._parts) != self._writing:
            self._writing = not self._writing
            if self._writing:
                self._loop.add_writer(self._socket.fileno(), self._writable)
            else:
                self._loop.remove_writer(self._socket.fileno())

    def _readable(self) -> None:
        """One read, and the frames that it completes: other connections have their turn in between."""
        try:
            count = self._socket.recv_into(self._frames.room())
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            count = 0
        if not count:
            self._ended("")
            return
        self._frames.added(count)
        self._deliver()

    def _deliver(self) -> None:
        try:
            while not self._paused and not self._closed:
                frame = self._frames.next()
                if frame is None:
                    return
                self._on_frame(frame)
        except WireError as error:
            self._ended(error.message)

    def pause(self) -> None:
        """Give no frame any more."""
        if not self._paused and not self._closed:
            self._paused = True
            self._loop.remove_reader(self._socket.fileno())

    def resume(self) -> None:
        """Give frames again; those that have come already first, in a later turn of the loop."""
        if self._paused and not self._closed:
            self._paused = False
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._deliver()
        if not self._paused and not self._closed:
            self._loop.add_reader(self._socket.fileno(), self._readable)

    def _ended(self, wrong: str) -> None:
        if not self._closed:
            self.close()
            self._on_end(wrong)

    def close(self) -> None:
        """Close the socket and drop what waits; `on_end` is not called for that. Safe to call again."""
        if self._closed:
            return
        self._closed = True
        if not self._loop.is_closed():
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_writer(self._socket.fileno())
        self._parts.clear()
        self.queued_bytes = 0
        self._socket.close()


def send_files(end: socket.socket, parts: Sequence[Buffer], files: Sequence[int]) -> None:
    """Write one frame on a blocking end, with open files beside its first byte. Raises `OSError`."""
    whole = list(_prefixed([parts]))
    socket.send_fds(end, [whole[0][:1]], list(files))
    end.sendall(b"".join([whole[0][1:], *whole[1:]]))


def receive_files(end: socket.socket, max_bytes: int) -> tuple[Buffer, list[int]] | None:
    """One frame on a blocking end and the files that came with it, which the caller closes; None at the end.

    Only for an end on which nothing but `send_files` writes.
    """
    first, files, _, _ = socket.recv_fds(end, 1, MAX_FILES)
    if not first:
        return None
    prefix = first + _exactly(end, PREFIX.size - 1)
    (length,) = PREFIX.unpack(prefix)
    if length > max_bytes:
        raise WireError("a frame is longer than is accepted here")
    return _exactly(end, length), list(files)


def _exactly(end: socket.socket, count: int) -> bytes:
    found = bytearray()
    while len(found) < count:
        piece = end.recv(count - len(found))
        if not piece:
            raise EOFError("the other end of the pipe is gone")
        found += piece
    return bytes(found)


def _prefixed(frames: Sequence[Sequence[Buffer]]) -> list[Buffer]:
    """The parts of frames with their lengths before them; none is empty. Short frames become one part each."""
    out: list[Buffer] = []
    for parts in frames:
        prefix = PREFIX.pack(sum(len(part) for part in parts))
        out.append(prefix + parts[0] if parts else prefix)
        out.extend([part for part in parts[1:] if len(part)])
    return out


def _drop(parts: deque[Buffer], sent: int) -> None:
    """Take what was sent from the front."""
    while sent:
        first = parts[0]
        if sent < len(first):
            parts[0] = memoryview(first)[sent:]
            return
        sent -= len(first)
        parts.popleft()
