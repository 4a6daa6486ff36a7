"""A transport moves whole binary frames between two ends, in order, with backpressure.

Implementations: `memory` (two ends in one process), `websocket` (the network), `rpc.channel` (sealed, over any other).
One conformance suite, `grid.testing.conformance`, runs on each of them.
"""

from __future__ import annotations

import abc
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Self

from grid.errors import LocalProtocolError

Buffer = bytes | bytearray | memoryview

DIRECT_BYTES = 256 << 10
"""With more than this waiting in a connection, nothing is sent without waiting."""

MAX_FRAME_BYTES = 1 << 20
"""No frame is larger; what does not fit is chunked by the session."""


def size_of(parts: Sequence[Buffer]) -> int:
    """Bytes of a frame that is given as parts."""
    first = parts[0]
    if len(parts) == 1 and type(first) is bytes:  # what seals and relays hand on
        return len(first)
    return sum(part.nbytes if isinstance(part, memoryview) else len(part) for part in parts)


class Transport(abc.ABC):
    """One end of a connection. `send` and `receive` are each for one task at a time."""

    @abc.abstractmethod
    async def send(self, *parts: Buffer) -> None:
        """Send one frame, the concatenation of `parts`; wait while the far end is slow.

        The caller does not change the buffers until this returns. Raises `NodeUnavailable` once the connection is gone,
        `LocalProtocolError` for a frame of more than `MAX_FRAME_BYTES`.
        """

    def can_send_now(self) -> bool:
        """Whether `send_now` may be called: the connection is there, has room, and no `send` is under way."""
        return False

    def send_now(self, *parts: Buffer) -> None:
        """`send` without waiting, right after `can_send_now` has said yes. Saves a small frame the turn of a task.

        The buffers may be in use after this has returned.
        """
        raise LocalProtocolError("this transport sends nothing without waiting")

    @abc.abstractmethod
    async def receive(self) -> Buffer:
        """The next frame. Raises `NodeUnavailable` once the connection is gone and every frame that came has been read.

        A cancelled `receive` loses nothing: the next call returns the frame.
        """

    @abc.abstractmethod
    async def close(self, reason: str = "") -> None:
        """Close both directions; never raises, may be called twice. Frames sent before are delivered if the peer reads."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()


Dial = Callable[[], Awaitable[Transport]]
"""Opens a new transport to a fixed place; raises `NodeUnavailable`."""
