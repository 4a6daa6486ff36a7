"""Several equal tensors at once: one call of the protocol, whose rounds they share.

Each tensor becomes one row, flat and filled up with zeros to a multiple of 64, so that a plane of bits that was made of rows
comes apart into one plane for each of them, and planes go back together in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from grid.smpc.packing import padded
from grid.smpc.protocol import Protocol
from grid.smpc.shares import Bits, Shared, stacked


def rows(values: Sequence[Shared]) -> Shared:
    """Tensors of one shape as (count, padded size)."""
    return filled(stacked([value.flat() for value in values]))


def filled(x: Shared) -> Shared:
    """(count, size) filled up with zeros to (count, padded size)."""
    more = padded(x.shape[1]) - x.shape[1]
    return x if more == 0 else x.each(lambda part: np.pad(part, ((0, 0), (0, more))))


async def signs(protocol: Protocol, values: Sequence[Shared]) -> Bits:
    """Plane k: 1 where values[k] < 0. 6 rounds."""
    return await row_signs(protocol, rows(values))


async def row_signs(protocol: Protocol, x: Shared) -> Bits:
    """The same of rows."""
    b = await protocol.negative(x)
    return b.each(lambda part: part.reshape(x.shape[0], -1))


async def chosen(protocol: Protocol, b: Bits, values: Sequence[Shared]) -> list[Shared]:
    """values[k] where plane k is 1, and 0 elsewhere. 2 rounds."""
    if not values:
        return []
    x = rows(values)
    made = await protocol.choose(b.each(lambda part: part.reshape(1, -1)), x)
    return [made[k, : values[k].size].reshape(values[k].shape) for k in range(len(values))]


async def numbers(protocol: Protocol, b: Bits, shape: Sequence[int]) -> Shared:
    """Planes as integers 0 and 1, of the shape (planes, *shape), one plane too. 2 rounds."""
    return (await protocol.number(b, shape)).reshape((b.planes, *shape))


def plane(b: Bits, number: int) -> Bits:
    """One of the planes."""
    return b[number : number + 1]


def combined(values: Sequence[Shared], factors: Sequence[int]) -> Shared:
    """The sum of factors[k] values[k], of one shape. No message."""
    from grid.smpc.kernels.arithmetic import add_multiple  # loads a compiler, which whoever makes a party has done before

    lead = np.uint64(factors[0] % (1 << 64))
    first = values[0].each(lambda part: np.asarray(np.multiply(part, lead, order="C")))
    for value, factor in zip(values[1:], factors[1:], strict=True):
        by = np.uint64(factor % (1 << 64))
        for source, target in zip(value.parts, first.parts, strict=True):
            add_multiple(np.ascontiguousarray(source).reshape(-1), by, target.reshape(-1))
    return first
