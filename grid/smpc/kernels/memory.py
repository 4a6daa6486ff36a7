"""Memory for large arrays: kept by the process and used again.

Protocols make many arrays of half a megabyte and drop them soon. As it comes, glibc asks the kernel for each of them and gives it
back, and filling fresh pages takes longer than the arithmetic (keystreams: 10 GB/s into memory in use, 2 GB/s into fresh).
"""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3

KEPT_BLOCK_BYTES = 1 << 25
"""Larger arrays are asked of the kernel each time; glibc allows no more."""

KEPT_BYTES = 1 << 28
"""Free memory that the process keeps at the end of its heap."""

GROWTH_BYTES = 1 << 24


def keep_large_blocks() -> bool:
    """Tell the allocator, for the whole process, to keep what is freed. False where it is not glibc's, and nothing changes."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_MMAP_THRESHOLD, KEPT_BLOCK_BYTES), (_TRIM_THRESHOLD, KEPT_BYTES), (_TOP_PAD, GROWTH_BYTES))
    return all(mallopt(setting, value) == 1 for setting, value in settings)
