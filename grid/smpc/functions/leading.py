"""Positive numbers as d 2**e with d in [1/2, 1): what reciprocals, roots and logarithms start from.

The highest bit j of the ring element, of 36 or 48, is made one-hot: from the bits and a prefix OR where tensors are large, by 36
comparisons at once where they are small, which takes fewer rounds. j = 6 a + b, and the one-hot forms of a and b are XORs of
that of j: 11 numbers and one product, where 36 numbers would do it directly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from grid.smpc.functions.polynomials import ARGUMENT_BITS
from grid.smpc.functions.rows import combined, numbers, row_signs, rows
from grid.smpc.link import Words
from grid.smpc.protocol import Protocol
from grid.smpc.shares import Bits, Shared, joined, joined_planes, stacked

DIGIT = 6
PLANES = DIGIT * DIGIT
"""Numbers are below 2**36 in the ring, unless said otherwise."""

MANY_PLANES = 8 * DIGIT
"""Of numbers with extra fraction bits."""

COMPARED_AT_ONCE = 256
"""Elements of a tensor whose leading bit is found by comparisons."""


class Leading(NamedTuple):
    """The leading bit of |x|: one-hot forms of a and b as integers, of the shape (planes / 6, *shape) and (6, *shape). `a` is 0
    for 0."""

    a: Shared
    b: Shared
    magnitude: Shared
    sign: Shared | None
    """1 or -1, as integers; None where the sign was not asked for."""


async def leading(protocol: Protocol, x: Shared, *, signed: bool = False, planes: int = PLANES) -> Leading:
    """The leading bit of x, 0 <= x < 2**planes, or -2**planes < x < -1 too where it is `signed`. 8 rounds up to 256 elements, 14
    above, with the sign or without it."""
    few = x.size <= COMPARED_AT_ONCE
    found, negative = await (_below_by_comparisons if few else _clear_bits)(protocol, x, signed, planes)

    async def digits(mine: Protocol) -> tuple[Shared, Shared]:
        return await one_hot_digits(mine, found if few else await _clear_from(mine, found), x.shape)

    if negative is None:
        return Leading(*await digits(protocol), x, None)
    known = negative
    (a, b), less, flag = await protocol.together(
        digits, lambda mine: mine.choose(known, x), lambda mine: mine.number(known, x.shape)
    )
    sign = protocol.add_public(flag.times(-2), np.asarray(np.uint64(1)))
    return Leading(a, b, x - less.times(2), sign)


async def one_hot_digits(protocol: Protocol, below: Bits, shape: tuple[int, ...]) -> tuple[Shared, Shared]:
    """a and b from planes j = 1{x < 2**j}. 2 rounds."""
    highest, rows = protocol.invert(below[below.planes - 1 :]), below.planes // DIGIT
    hot = joined_planes([below[:-1] ^ below[1:], highest]).each(lambda part: part.reshape(rows, DIGIT, -1))
    high = hot.each(lambda part: np.bitwise_xor.reduce(part, 1))
    low = hot.each(lambda part: np.bitwise_xor.reduce(part, 0))
    made = await numbers(protocol, joined_planes([high, low[: DIGIT - 1]]), shape)
    # The last one is what is left of 1. It is 1 for x = 0, where all of `a` are 0.
    last = -made[rows:].each(lambda part: part.sum(0, dtype=np.uint64))
    last = protocol.add_public(last, np.asarray(np.uint64(1)))
    return made[:rows], stacked([*(made[rows + k] for k in range(DIGIT - 1)), last])


async def scaled(
    protocol: Protocol, place: Leading, *factors: tuple[Sequence[int], Sequence[int]]
) -> tuple[Shared, list[Shared]]:
    """d, as 4 d at ARGUMENT_BITS, and for each (of a, of b) the integer of_a[a] of_b[b]. 4 rounds."""
    rows = place.a.shape[0]
    tables = [shifts(rows), *factors]
    high = stacked([weighted(place.a, of_a) for of_a, _ in tables])
    low = stacked([weighted(place.b, of_b) for _, of_b in tables])
    made = await protocol.multiply(high, low)
    d = await protocol.multiply(place.magnitude, made[0], rows * DIGIT - ARGUMENT_BITS - 2)
    return d, [made[1 + k] for k in range(len(factors))]


def shifts(rows: int = DIGIT) -> tuple[list[int], list[int]]:
    """Of a and of b: powers of 2 that make the highest bit of all planes of the leading one."""
    return [1 << (DIGIT * (rows - 1 - a)) for a in range(rows)], [1 << (DIGIT - 1 - b) for b in range(DIGIT)]


def weighted(hot: Shared, weights: Sequence[int]) -> Shared:
    """The weight of the place that is 1. No message."""
    return combined([hot[k] for k in range(len(weights))], weights)


async def _below_by_comparisons(protocol: Protocol, x: Shared, signed: bool, planes: int) -> tuple[Bits, Bits | None]:
    """Planes j = 1{|x| < 2**j}, and 1{x < 0} where it is wanted. 6 rounds."""
    powers = np.array([[1 << j] for j in range(planes)], np.uint64)
    sides = [rows([x])] + ([rows([-x])] if signed else [])
    spread = joined([side.each(lambda part: np.broadcast_to(part, (planes, part.shape[1]))) for side in sides])
    below = await row_signs(protocol, protocol.add_public(spread, -np.concatenate([powers] * len(sides))))
    if not signed:
        return below, None
    # x and -x are not both above a power of 2.
    return protocol.invert(below[:planes] ^ below[planes:]), protocol.invert(below[planes : planes + 1])


async def _clear_bits(protocol: Protocol, x: Shared, signed: bool, planes: int) -> tuple[Bits, Bits | None]:
    """Planes j = 1 where bit j of |x| is 0, or of |x| - 1 for x < 0: where that has a bit less, d is 1. 6 rounds."""
    found = await protocol.bits(x, planes + signed)
    if not signed:
        return protocol.invert(found), None
    negative = found[planes:]
    return protocol.invert(found[:planes] ^ negative), negative


async def _clear_from(protocol: Protocol, clear: Bits) -> Bits:
    """No bit from j up is 1: a prefix AND from the top (Sklansky). 6 rounds."""
    distance, planes = 1, clear.planes
    while distance < planes:
        from_top = np.arange(planes)
        late = from_top[from_top & distance != 0]
        earlier = late // distance * distance - 1
        made = await protocol.conjunction(clear[planes - 1 - late], clear[planes - 1 - earlier])
        clear = Bits(*(_with(part, planes - 1 - late, new) for part, new in zip(clear.parts, made.parts, strict=True)))
        distance *= 2
    return clear


def _with(part: Words, at: npt.NDArray[np.int64], new: Words) -> Words:
    changed = part.copy()
    changed[at] = new
    return changed
