"""The raw section of a frame: the bytes of tensors, one after another, never copied."""

from __future__ import annotations

from grid.errors import LocalProtocolError, WireError
from grid.wire.messages import Buffer


class Raw:
    """A cursor over the raw section of one frame. Every buffer starts at a multiple of 8 bytes from the frame's start."""

    __slots__ = ("_at", "_frame")

    def __init__(self, frame: memoryview, at: int) -> None:
        self._frame = frame
        self._at = at

    def take(self, size: int) -> memoryview:
        """The next `size` bytes, without a copy. Raises `WireError` where the frame has fewer."""
        start = self._at
        if size > len(self._frame) - start:
            raise WireError("a frame is shorter than the tensors it describes")
        self._at = start + size + (-size & 7)
        return self._frame[start : start + size]

    def finish(self) -> None:
        """Raise `WireError` unless everything was taken; the padding of the last buffer is part of it."""
        if self._at != len(self._frame):
            raise WireError("a frame does not end where its last tensor ends")


def byte_view(data: Buffer) -> memoryview:
    """The buffer as flat bytes. Raises `LocalProtocolError` for a buffer with gaps."""
    view = memoryview(data)
    if not view.c_contiguous:
        raise LocalProtocolError("a tensor's buffer has gaps; make it contiguous before it is sent")
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")
