"""Memory for large messages.

Where a page is touched for the first time the kernel stops the program to find and clear it; with pages of 4 KiB that takes
several times as long as copying the data. So large messages are put together in huge pages where the system has them, and
the allocator is told to keep what is freed.
"""

from __future__ import annotations

import functools
import mmap
import sys

HUGE_PAGE_BYTES = 2 << 20
LARGE_BYTES = 2 * HUGE_PAGE_BYTES
"""From this size on, a huge page that is not filled costs little beside the others."""

_KEPT_BYTES = 31 << 20


class Growing:
    """A buffer of `total` bytes that is filled from the front. It takes memory as it is filled, whatever `total` says."""

    __slots__ = ("_buffer", "_view", "filled", "total")

    def __init__(self, total: int) -> None:
        self.total = total
        self.filled = 0
        self._buffer = bytearray()
        self._view: memoryview | None = None
        if total >= LARGE_BYTES and sys.platform == "linux":
            size = -(-total // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
            pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            pages.madvise(mmap.MADV_HUGEPAGE)
            self._view = memoryview(pages)

    def add(self, piece: memoryview) -> None:
        """Fill in the next bytes; the caller knows that they fit."""
        if self._view is None:
            self._buffer += piece
        else:
            self._view[self.filled : self.filled + len(piece)] = piece
        self.filled += len(piece)

    def room(self) -> memoryview | None:
        """Where the next bytes may be put directly, to be told to `added`; None where they have to be given to `add`."""
        return None if self._view is None else self._view[self.filled : self.total]

    def added(self, count: int) -> None:
        """So many bytes were put into `room`."""
        self.filled += count

    def whole(self) -> memoryview:
        """What was filled in; writable. The memory lives as long as any view of it."""
        return memoryview(self._buffer) if self._view is None else self._view[: self.filled]


@functools.cache
def keep_freed_memory() -> None:
    """Make glibc's allocator keep what is freed, up to some tens of megabytes, for the next message. Acts once a process.

    It gives freed memory back to the kernel above a threshold, which it raises to the largest block that it has seen freed.
    So one free of a large block, never touched, is all it takes; other allocators do not mind.
    """
    bytes(_KEPT_BYTES)
