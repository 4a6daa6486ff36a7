"""What one side of a session still has to send: messages in order, cut into frames when there is credit for them.

Frames are pulled one at a time, so a message of a gigabyte costs no more memory than the tensor itself, and the answer to a
ping leaves before the next chunk of it. `Hello` is first; `Pong`, `Ping` and `Credit` overtake everything else. There is never
more than one of each waiting, so a peer that asks and never reads makes nothing grow. All other messages keep their order.
"""

from __future__ import annotations

from collections import deque

from grid.wire import codec
from grid.wire.frames import CHUNK_BYTES, CHUNK_PREFIX, SMALL_BYTES, WHOLE_BYTES, Cutter
from grid.wire.messages import Buffer, Credit, Goodbye, Hello, Ping, Pong

MESSAGE_OVERHEAD = 128
"""What a waiting message counts beyond its bytes, so that many tiny ones count as what they cost."""


class Outgoing:
    """The outgoing half of a session. `queued_bytes` is what waits, in bytes of memory, roughly."""

    def __init__(self) -> None:
        self._hello: Hello | None = None
        self._queue: deque[tuple[list[Buffer], int]] = deque()
        self._cutter: Cutter | None = None
        self._chunked = 0
        self._credit = 0
        self._credit_due = 0
        self._ping: int | None = None
        self._pong: int | None = None
        self._goodbye: Goodbye | None = None
        self.queued_bytes = 0

    def greet(self, hello: Hello) -> None:
        """Send `Hello` before everything."""
        self._hello = hello

    def post(self, parts: list[Buffer]) -> None:
        """Queue a message's frame behind those before it."""
        size = sum(map(len, parts))
        self._queue.append((parts, size))
        self.queued_bytes += size + MESSAGE_OVERHEAD

    def ping(self, number: int) -> None:
        """Send `Ping` before anything else."""
        self._ping = number

    def pong(self, number: int) -> None:
        """Send `Pong` before anything else; only the newest unanswered ping gets one."""
        self._pong = number

    def give(self, amount: int) -> None:
        """Send `Credit` for so many bytes more, before ordinary messages."""
        self._credit_due += amount

    def credit(self, amount: int) -> None:
        """The peer takes so many bytes more of large frames."""
        self._credit += amount

    def finish(self, goodbye: Goodbye, *, at_once: bool) -> None:
        """Say goodbye last: after what is queued, or `at_once`, dropping it."""
        if at_once:
            self.clear()
        self._goodbye = goodbye

    def clear(self) -> None:
        """Drop everything that has not been handed out."""
        self._queue.clear()
        self._cutter = None
        self._hello = self._ping = self._pong = self._goodbye = None
        self._credit_due = self.queued_bytes = 0

    @property
    def empty(self) -> bool:
        """Whether nothing waits, not even for credit."""
        urgent = self._credit_due or self._ping is not None or self._pong is not None or self._hello is not None
        return not urgent and not self._queue and self._goodbye is None

    def next_frame(self) -> list[Buffer] | None:
        """The frame to send now, as parts; None when there is none, or no credit for it."""
        if self._credit_due or self._pong is not None or self._ping is not None or self._hello is not None:
            return self._urgent_frame()
        if not self._queue:
            return self._last_frame()
        parts, size = self._queue[0]
        if size > WHOLE_BYTES:
            return self._chunk(parts, size)
        if size > SMALL_BYTES:
            if size > self._credit:
                return None
            self._credit -= size
        self._queue.popleft()
        self.queued_bytes -= size + MESSAGE_OVERHEAD
        return parts

    def _urgent_frame(self) -> list[Buffer]:
        if self._hello is not None:
            hello, self._hello = self._hello, None
            return codec.encode(hello)
        if self._pong is not None:
            number, self._pong = self._pong, None
            return codec.encode(Pong(number=number))
        if self._ping is not None:
            number, self._ping = self._ping, None
            return codec.encode(Ping(number=number))
        amount, self._credit_due = self._credit_due, 0
        return codec.encode(Credit(amount=amount))

    def _last_frame(self) -> list[Buffer] | None:
        if self._goodbye is None:
            return None
        goodbye, self._goodbye = self._goodbye, None
        return codec.encode(goodbye)

    def _chunk(self, parts: list[Buffer], size: int) -> list[Buffer] | None:
        cutter = self._cutter
        if cutter is None:
            cutter = self._cutter = Cutter(parts, size, self._chunked)
        piece = min(CHUNK_BYTES, cutter.left())
        length = piece + CHUNK_PREFIX.size
        if length > SMALL_BYTES:
            if length > self._credit:
                return None
            self._credit -= length
        frame = cutter.next_chunk(piece)
        self.queued_bytes -= piece
        if not cutter.left():
            self._queue.popleft()
            self._cutter = None
            self._chunked = (self._chunked + 1) & 0xFFFFFFFF
            self.queued_bytes -= MESSAGE_OVERHEAD
        return frame
