"""How much of large values a peer may still send to us: the receiving half of flow control.

A peer may have `size` bytes of large frames under way. They are given back as they arrive, in batches of a quarter window,
while the messages that were delivered and are still being worked on (`held`) fit one window. Beyond that the peer waits until
work is done. So what a peer can make us hold is one message in assembly and two windows.
"""

from __future__ import annotations

from grid.errors import LocalProtocolError, WireError
from grid.wire.frames import MAX_FRAME_BYTES

MIN_WINDOW_BYTES = 4 * MAX_FRAME_BYTES
"""Three quarters of a window must hold a frame, or a sender could wait for credit that is never due."""


class Window:
    """Accounts for the credit that we give."""

    __slots__ = ("_held", "_left", "_owed", "_size")

    def __init__(self, size: int) -> None:
        if size < MIN_WINDOW_BYTES:
            raise LocalProtocolError(f"window_bytes must be at least {MIN_WINDOW_BYTES}, not {size}")
        self._size = size
        self._left = 0
        self._owed = size
        self._held = 0

    def arrived(self, length: int) -> None:
        """A large frame came. Raises `WireError` if the peer had no credit for it."""
        if length > self._left:
            raise WireError("a peer sent more of large values than it had credit for")
        self._left -= length
        self._owed += length

    @property
    def open(self) -> bool:
        """Whether the peer has the credit for its next frame; without it, it waits for us."""
        return self._left >= MAX_FRAME_BYTES

    def hold(self, length: int) -> None:
        """A large message was delivered and is now being worked on."""
        self._held += length

    def release(self, length: int) -> None:
        """The work on a large message is done."""
        self._held -= length

    def due(self) -> int:
        """The credit to be given now; the caller sends it."""
        if self._held > self._size or self._owed * 4 < self._size:
            return 0
        amount, self._owed = self._owed, 0
        self._left += amount
        return amount
