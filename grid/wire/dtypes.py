"""Short names of element types, and how many bytes a tensor of one takes.

A name is its kind and its item size: `f` float, `bf` brain float, `i` signed, `u` unsigned, `b` boolean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from grid.errors import WireError

DTYPES: Mapping[str, int] = MappingProxyType(
    {"f8": 8, "f4": 4, "f2": 2, "bf2": 2, "i8": 8, "i4": 4, "i2": 2, "i1": 1, "u1": 1, "b1": 1}
)
"""Short name -> bytes of one element."""

MAX_DIMS = 16
"""No tensor has more dimensions."""

MAX_ELEMENTS = 1 << 40
"""No product of a shape's dimensions is larger, dimensions of 0 counted as 1: strides stay far from overflow."""


def tensor_bytes(dtype: str, shape: Sequence[int]) -> int:
    """The bytes of a dense tensor. Raises `WireError` for an unknown dtype, a bad dimension or too many elements."""
    size = DTYPES.get(dtype)
    if size is None:
        raise WireError(f"a tensor has the unknown dtype {dtype[:16]!r}; known are {', '.join(DTYPES)}")
    if len(shape) > MAX_DIMS:
        raise WireError(f"a tensor has {len(shape)} dimensions; at most {MAX_DIMS} are allowed")
    spanned, empty = 1, False
    for length in shape:
        if type(length) is not int or length < 0:
            raise WireError("a tensor's shape must consist of integers of at least 0")
        empty = empty or length == 0
        spanned *= length or 1
        if spanned > MAX_ELEMENTS:
            raise WireError(f"a tensor's shape spans more than 2**40 elements: {tuple(shape)[:MAX_DIMS]}")
    return 0 if empty else spanned * size
