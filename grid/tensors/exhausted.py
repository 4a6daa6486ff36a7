"""Telling that an operation failed for want of memory, and not because of what it worked on.

How much memory an operation takes follows from shapes, which are public, so whoever asked for it may hear of this.
"""

from __future__ import annotations

import errno

from grid.errors import QuotaExceeded

_WORDS = ("DefaultCPUAllocator: can't allocate memory", "std::bad_alloc", "could not create a memory object")
"""What torch and its kernels say when an allocation is refused; torch has no class of its own for that on processors."""


def is_exhausted(error: BaseException) -> bool:
    """Whether this is an allocation that was refused."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


def exhausted(what: str) -> QuotaExceeded:
    """The error for people. `what` names the operation."""
    return QuotaExceeded(
        f"{what}: the node has no more memory for this session (max_process_bytes); free values, work on smaller batches, or ask"
        " the node's owner for a higher limit",
        limit="max_process_bytes",
    )
