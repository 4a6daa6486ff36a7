"""Binary messages out of the bytes of a WebSocket (RFC 6455), without I/O: what every frame of a grid passes through.

Data frames are cut out here, with one copy at most before the mask is taken off, and none of those that come in one piece.
Everything else, which is rare (pings, the closing handshake, whatever breaks the rules), is given back as it came, whole frames
in order, for the library's own machine.
"""

from __future__ import annotations

from collections import deque

from websockets.frames import apply_mask as apply_mask  # type: ignore[attr-defined]  # in C where it was built with that

from grid.transport.base import Buffer

FIN = 0x80
CONTINUATION, TEXT, BINARY = 0, 1, 2
LONGEST_CONTROL = 125


class Reader:
    """Cuts messages of at most `max_bytes` out of a stream. `masked`: whether the far end has to mask (clients have).

    `messages`: what has come; None in the place of a text message. `broken`: everything is given back from here on.
    """

    def __init__(self, *, masked: bool, max_bytes: int) -> None:
        self.messages: deque[Buffer | None] = deque()
        self.broken = False
        self._masked = masked
        self._max_bytes = max_bytes
        self._part = bytearray()  # the beginning of one frame, never more than it
        self._wanted = 2
        self._pieces: list[Buffer] | None = None
        self._size = 0

    @property
    def has_begun(self) -> bool:
        """Whether a part of something has come that is not in `messages` yet."""
        return bool(self._part) or self._pieces is not None or self.broken

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes. Gives back those that are not data frames."""
        given: list[bytes] = []
        view, at = memoryview(data), 0
        while at < len(data) and not self.broken:
            if self._part or len(data) - at < self._wanted:
                take = min(self._wanted - len(self._part), len(data) - at)
                self._part += view[at : at + take]
                at += take
                if len(self._part) < self._wanted:
                    break
                self._next(self._part, given)
            else:  # a frame that is there in one piece needs no copy
                at += self._next(view[at : at + self._wanted], given)
        if self.broken and at < len(data):
            given.append(data[at:])
        return given

    def _next(self, part: bytearray | memoryview, given: list[bytes]) -> int:
        """The part is as long as was wanted: want more of the frame, or take it. `given` gets a frame that is not data.

        Returns how long the frame was, or 0 if more of it is wanted.
        """
        first, second = part[0], part[1]
        length, head = second & 0x7F, 2
        if length == 126:
            head = 4
        elif length == 127:
            head = 10
        if len(part) < head:
            self._wanted = head
            return 0
        if head > 2:
            length = int.from_bytes(part[2:head], "big")
        opcode = first & 0x0F
        masked = bool(second & 0x80)
        starts = self._pieces is None
        known = first & 0x70 == 0 and masked is self._masked and (opcode <= BINARY or 8 <= opcode <= 10)
        fits = length <= LONGEST_CONTROL if opcode >= 8 else self._size + length <= self._max_bytes
        follows = opcode >= 8 or starts is (opcode != CONTINUATION)
        if not (known and fits and follows):
            self.broken = True
            self._part = bytearray()
            given.append(bytes(part))
            return len(part)
        head += 4 if masked else 0
        self._wanted = head + length
        if len(part) < self._wanted:
            return 0
        self._part, self._wanted = bytearray(), 2
        if opcode >= 8:
            given.append(bytes(part))
            return len(part)
        payload: Buffer = memoryview(part)[head:]
        if masked:
            payload = apply_mask(payload, bytes(part[head - 4 : head]))
        self._take(first, opcode, payload)
        return len(part)

    def _take(self, first: int, opcode: int, payload: Buffer) -> None:
        """A data frame. A message of several is put together."""
        if self._pieces is None and first & FIN:
            self.messages.append(payload if opcode == BINARY else None)
            return
        if self._pieces is None:
            self._pieces = []
            self._text = opcode == TEXT
        self._pieces.append(payload)
        self._size += len(payload)
        if first & FIN:
            self.messages.append(None if self._text else b"".join(self._pieces))
            self._pieces, self._size = None, 0
