"""How the arithmetic of a party is compiled.

Loops over words in one thread: three parties may share a machine, and numba's own threads then wait for one another. The GIL
is released; the machine code is kept beside the source, or in NUMBA_CACHE_DIR. Overflow of uint64 wraps, as the ring wants.

Packed bits: element e is bit e mod 64 of word e div 64. All arrays of one call have a multiple of 64 elements.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile on the first call with each combination of dtypes and layouts."""
    made = numba.njit(cache=True, nogil=True, error_model="numpy", boundscheck=False)(function)
    return cast(F, made)
