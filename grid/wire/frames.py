"""The two kinds of frames, and how one long message becomes several.

A message whose frame has at most `WHOLE_BYTES` travels whole (`codec`). A longer one is cut into chunk frames:

    u32 kind = 2 | u32 number | u64 offset | u64 total | piece

`number` counts a sender's chunked messages from 0; `offset` and `total` are bytes of the message's whole frame, whose pieces
follow one another without a gap. No other message of the sender comes between the chunks of one message, except `Ping`,
`Pong`, `Credit` and `Goodbye`.

A frame of more than `SMALL_BYTES` of either kind spends its length of the credit that the receiver gave.
"""

from __future__ import annotations

import struct

from grid.errors import WireError
from grid.wire.memory import Growing
from grid.wire.messages import Buffer

CHUNK = 2
"""Kind of a frame that holds a piece of a message."""

SMALL_BYTES = 64 << 10
"""Frames up to this length spend no credit."""

CHUNK_BYTES = 512 << 10
"""The piece in one chunk frame. Small enough that a frame still travels whole once it is sealed and put into `LinkData`."""

WHOLE_BYTES = CHUNK_BYTES + (16 << 10)
"""The longest frame that travels whole."""

MAX_FRAME_BYTES = 1 << 20
"""No frame is longer, as for transports."""

CHUNK_PREFIX = struct.Struct("<IIQQ")


class Cutter:
    """Hands out the bytes of a message's parts piece by piece, without copies."""

    __slots__ = ("_index", "_parts", "_position", "number", "offset", "total")

    def __init__(self, parts: list[Buffer], total: int, number: int) -> None:
        self._parts = parts
        self._index = 0
        self._position = 0
        self.total = total
        self.offset = 0
        self.number = number

    def left(self) -> int:
        """Bytes not handed out yet."""
        return self.total - self.offset

    def next_chunk(self, size: int) -> list[Buffer]:
        """A chunk frame with the next `size` bytes, or what is left of them."""
        size = min(size, self.left())
        frame: list[Buffer] = [CHUNK_PREFIX.pack(CHUNK, self.number, self.offset, self.total)]
        self.offset += size
        while size:
            part = self._parts[self._index]
            piece = memoryview(part)[self._position : self._position + size]
            frame.append(piece)
            size -= len(piece)
            self._position += len(piece)
            if self._position == len(part):
                self._index += 1
                self._position = 0
        return frame


class Assembler:
    """Puts the chunks of one message after another together again.

    What it holds grows with what has arrived, never with what a chunk claims.
    """

    __slots__ = ("_growing", "_number")

    def __init__(self) -> None:
        self._number = 0
        self._growing: Growing | None = None

    @property
    def busy(self) -> bool:
        """Whether a message has begun and not ended."""
        return self._growing is not None

    def add(self, chunk: Buffer, max_bytes: int) -> Buffer | None:
        """Take a chunk frame; the whole frame if it was the last one. Raises `WireError` for a chunk that does not follow."""
        view = memoryview(chunk)
        if len(view) <= CHUNK_PREFIX.size:
            raise WireError("a chunk is empty")
        _, number, offset, total = CHUNK_PREFIX.unpack_from(view)
        piece = view[CHUNK_PREFIX.size :]
        growing = self._growing
        filled, wanted = (growing.filled, growing.total) if growing is not None else (0, total)
        if number != self._number or offset != filled or total != wanted or len(piece) > total - offset:
            raise WireError("a chunk does not continue the message before it")
        if growing is None:
            if total > max_bytes:
                raise WireError(f"a message of {total} bytes is longer than the {max_bytes} that are accepted here")
            growing = self._growing = Growing(total)
        growing.add(piece)
        if growing.filled < total:
            return None
        self._growing = None
        self._number = (self._number + 1) & 0xFFFFFFFF
        return growing.whole()

    def clear(self) -> None:
        """Forget what has arrived."""
        self._growing = None
