"""Positive numbers as d 2**e with d in [1/2, 1): what reciprocals, roots and logarithms start from.

The highest bit j of the ring element, of 36, is made one-hot: from the bits and a prefix OR where tensors are large, by 36
comparisons at once where they are small, which takes fewer rounds. j = 6 a + b, and the one-hot forms of a and b are XORs of
that of j: 11 numbers and one product, where 36 numbers would do it directly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from grid.smpc.functions.polynomials import ARGUMENT_BITS
from grid.smpc.functions.rows import numbers, row_signs, rows
from grid.smpc.link import Words
from grid.smpc.protocol import Protocol
from grid.smpc.shares import Bits, Shared, joined_planes, stacked

DIGIT = 6
PLANES = DIGIT * DIGIT
"""Numbers are below 2**36 in the ring."""

COMPARED_AT_ONCE = 256
"""Elements of a tensor whose leading bit is found by comparisons."""


class Leading(NamedTuple):
    """The leading bit of a number: one-hot forms of a and b as integers, of the shape (6, *shape). `a` is 0 for 0."""

    a: Shared
    b: Shared


async def leading(protocol: Protocol, x: Shared) -> Leading:
    """The leading bit of 0 <= x < 2**36. 10 rounds up to 256 elements, 16 above."""
    below = await (_below_by_comparisons if x.size <= COMPARED_AT_ONCE else _below_by_bits)(protocol, x)
    return await one_hot_digits(protocol, below, x.shape)


async def one_hot_digits(protocol: Protocol, below: Bits, shape: tuple[int, ...]) -> Leading:
    """From planes j = 1{x < 2**j}. 2 rounds."""
    highest = protocol.invert(below[PLANES - 1 :])
    hot = joined_planes([below[:-1] ^ below[1:], highest]).each(lambda part: part.reshape(DIGIT, DIGIT, -1))
    high = hot.each(lambda part: np.bitwise_xor.reduce(part, 1))
    low = hot.each(lambda part: np.bitwise_xor.reduce(part, 0))
    made = await numbers(protocol, joined_planes([high, low[: DIGIT - 1]]), shape)
    # The last one is what is left of 1. It is 1 for x = 0, where all of `a` are 0.
    last = -made[DIGIT:].each(lambda part: part.sum(0, dtype=np.uint64))
    last = protocol.add_public(last, np.asarray(np.uint64(1)))
    return Leading(made[:DIGIT], stacked([*(made[DIGIT + k] for k in range(DIGIT - 1)), last]))


async def scaled(
    protocol: Protocol, x: Shared, place: Leading, *factors: tuple[Sequence[int], Sequence[int]]
) -> tuple[Shared, list[Shared]]:
    """d, as 4 d at ARGUMENT_BITS, and for each (of a, of b) the integer of_a[a] of_b[b]. 4 rounds."""
    tables = [([1 << (DIGIT * (DIGIT - 1 - a)) for a in range(DIGIT)], [1 << (DIGIT - 1 - b) for b in range(DIGIT)]), *factors]
    high = stacked([weighted(place.a, of_a) for of_a, _ in tables])
    low = stacked([weighted(place.b, of_b) for _, of_b in tables])
    made = await protocol.multiply(high, low)
    d = await protocol.multiply(x, made[0], PLANES - ARGUMENT_BITS - 2)
    return d, [made[1 + k] for k in range(len(factors))]


def weighted(hot: Shared, weights: Sequence[int]) -> Shared:
    """The weight of the place that is 1. No message."""
    total = hot[0].times(int(weights[0]))
    for k, weight in enumerate(weights[1:], 1):
        total = total + hot[k].times(int(weight))
    return total


async def _below_by_comparisons(protocol: Protocol, x: Shared) -> Bits:
    """8 rounds."""
    row = rows([x])
    powers = np.array([[1 << j] for j in range(PLANES)], np.uint64)
    spread = row.each(lambda part: np.broadcast_to(part, (PLANES, part.shape[1])))
    return await row_signs(protocol, protocol.add_public(spread, -powers))


async def _below_by_bits(protocol: Protocol, x: Shared) -> Bits:
    """No bit from j up is 1: a prefix AND from the top (Sklansky). 8 + 6 rounds."""
    clear = protocol.invert(await protocol.bits(x, PLANES))
    distance = 1
    while distance < PLANES:
        from_top = np.arange(PLANES)
        late = from_top[from_top & distance != 0]
        earlier = late // distance * distance - 1
        made = await protocol.conjunction(clear[PLANES - 1 - late], clear[PLANES - 1 - earlier])
        clear = Bits(*(_with(part, PLANES - 1 - late, new) for part, new in zip(clear.parts, made.parts, strict=True)))
        distance *= 2
    return clear


def _with(part: Words, at: npt.NDArray[np.int64], new: Words) -> Words:
    changed = part.copy()
    changed[at] = new
    return changed
