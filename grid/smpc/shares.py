"""What one party holds of a secret tensor.

`Shared` is linear: sums, differences, multiples by public integers and any rearrangement of elements are done on each
component by itself and need no message. How many components there are is the protocol's matter: two of three in
`replicated`, one (the value itself) in `plain`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from grid.smpc.link import Words


class Shared:
    """A secret tensor of ring elements: this party's components, arrays of one shape."""

    __slots__ = ("parts",)

    def __init__(self, *parts: Words) -> None:
        # Operations on arrays without dimensions give numpy's scalars, which warn where they wrap.
        self.parts = tuple(map(np.asarray, parts))

    @property
    def pair(self) -> tuple[Words, Words]:
        """Both components of a replicated sharing."""
        first, second = self.parts
        return first, second

    @property
    def shape(self) -> tuple[int, ...]:
        return self.parts[0].shape

    @property
    def size(self) -> int:
        return self.parts[0].size

    def each(self, rearrange: Callable[[Words], Words]) -> Shared:
        """The same rearrangement of elements (index, reshape, transpose, sum over an axis) of every component."""
        return Shared(*map(rearrange, self.parts))

    def flat(self) -> Shared:
        """One-dimensional, as kernels take it: with one kind of array they are compiled once."""
        return self.each(_flat)

    def reshape(self, shape: Sequence[int]) -> Shared:
        return self.each(lambda part: part.reshape(tuple(shape)))

    def __getitem__(self, index: Any) -> Shared:
        return self.each(lambda part: part[index])

    def __add__(self, other: Shared) -> Shared:
        return Shared(*(a + b for a, b in zip(self.parts, other.parts, strict=True)))

    def __sub__(self, other: Shared) -> Shared:
        return Shared(*(a - b for a, b in zip(self.parts, other.parts, strict=True)))

    def __neg__(self) -> Shared:
        return self.each(np.negative)

    def times(self, factor: Words | int) -> Shared:
        """Times a public integer, or an array of them that broadcasts."""
        by = np.uint64(factor % (1 << 64)) if isinstance(factor, int) else factor
        return self.each(lambda part: part * by)

    def __repr__(self) -> str:
        return f"<Shared {'x'.join(map(str, self.shape)) or 'scalar'}>"


class Bits:
    """Secret bits, shared by XOR and packed: each component has the shape (planes, words).

    Element e of a plane is bit e mod 64 of word e div 64.
    """

    __slots__ = ("parts",)

    def __init__(self, *parts: Words) -> None:
        self.parts = parts

    @property
    def pair(self) -> tuple[Words, Words]:
        """Both components of a replicated sharing."""
        first, second = self.parts
        return first, second

    @property
    def planes(self) -> int:
        return int(self.parts[0].shape[0])

    @property
    def words(self) -> int:
        return int(self.parts[0].shape[1])

    def each(self, rearrange: Callable[[Words], Words]) -> Bits:
        """The same rearrangement of bits, or XOR of planes, in every component."""
        return Bits(*map(rearrange, self.parts))

    def __getitem__(self, planes: Any) -> Bits:
        """Some planes, by a slice or an array of their numbers."""
        return Bits(*(part[planes] for part in self.parts))

    def __xor__(self, other: Bits) -> Bits:
        return Bits(*(a ^ b for a, b in zip(self.parts, other.parts, strict=True)))

    def __repr__(self) -> str:
        return f"<Bits {self.planes} x {64 * self.words}>"


def joined(values: Sequence[Shared], axis: int = 0) -> Shared:
    """Concatenated along an axis."""
    return Shared(*(np.concatenate(parts, axis) for parts in zip(*(value.parts for value in values), strict=True)))


def stacked(values: Sequence[Shared], axis: int = 0) -> Shared:
    """Stacked along a new axis."""
    return Shared(*(np.stack(parts, axis) for parts in zip(*(value.parts for value in values), strict=True)))


def joined_planes(values: Sequence[Bits]) -> Bits:
    """The planes of all of them, one after the other."""
    return Bits(*(np.concatenate(parts) for parts in zip(*(value.parts for value in values), strict=True)))


def _flat(part: Words) -> Words:
    flat = part.reshape(-1)
    if not flat.flags.carray:
        flat = np.ascontiguousarray(flat)
        if not flat.flags.writeable:  # as `numpy.broadcast_to` leaves it; kernels write no operand
            flat = flat.copy() if flat.base is None else _writable(flat)
    return flat


def _writable(flat: Words) -> Words:
    try:
        flat.flags.writeable = True
    except ValueError:
        return flat.copy()
    return flat
