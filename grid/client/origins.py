"""Where in the user's program an operation was written.

An error of a pipelined command arrives long after the line that caused it. So each command remembers the innermost frame
that belongs neither to torch, nor to this package, nor to the standard library: a code object and a position in it, which
costs a few hundred nanoseconds. The line number is worked out only if it is asked for.
"""

from __future__ import annotations

import functools
import sys
import sysconfig
from pathlib import Path
from types import CodeType

import torch

Origin = tuple[CodeType, int] | None
"""A code object and the byte offset of the instruction in it; None where no frame of the user's was found."""

_GRID = str(Path(__file__).parent.parent) + "/"
_TORCH = str(Path(torch.__file__).parent) + "/"
_LIBRARY = sysconfig.get_paths()["stdlib"] + "/"


@functools.lru_cache(maxsize=4096)
def _is_machinery(filename: str) -> bool:
    """True for files of torch, of this package and of the standard library: no user wrote that line."""
    if filename.startswith((_GRID, _TORCH, "<frozen ")):
        return True
    return filename.startswith(_LIBRARY) and "/site-packages/" not in filename


def origin(depth: int = 1) -> Origin:
    """The innermost frame of the user's, `depth` frames up or further."""
    frame = sys._getframe(depth)
    while _is_machinery(frame.f_code.co_filename):
        if frame.f_back is None:
            return None
        frame = frame.f_back
    return frame.f_code, frame.f_lasti


def describe(place: Origin) -> str:
    """`file.py:12`, or `an unknown line`."""
    if place is None:
        return "an unknown line"
    code, offset = place
    line = code.co_firstlineno
    for start, end, number in code.co_lines():
        if start <= offset < end and number is not None:
            line = number
            break
    return f"{code.co_filename}:{line}"
