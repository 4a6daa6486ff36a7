"""Whole numbers of fixed-point ones. A truncation gives one of both neighbours at random; comparisons tell which."""

from __future__ import annotations

from grid.smpc.functions.arithmetic import fixed
from grid.smpc.functions.rows import numbers, plane, signs
from grid.smpc.numbers import Number
from grid.smpc.protocol import FRACTION_BITS, Protocol
from grid.smpc.shares import Shared, joined_planes


async def floor(protocol: Protocol, x: Number) -> Number:
    """The largest whole number that is not above x, without fraction bits. Exact. 10 rounds."""
    near, beyond = await _neighbour(protocol, x)
    above = await protocol.number(await protocol.negative(-beyond), x.shape)
    return Number(near - above, 0)


async def ceil(protocol: Protocol, x: Number) -> Number:
    """The smallest whole number that is not below x, without fraction bits. Exact. 10 rounds."""
    found = await floor(protocol, Number(-x.raw, x.fraction))
    return Number(-found.raw, 0)


async def trunc(protocol: Protocol, x: Number) -> Number:
    """x without its fraction, as conversions to whole numbers have it, without fraction bits. Exact. 11 rounds."""
    near, beyond = await _neighbour(protocol, x)
    planes = await signs(protocol, [fixed(x).raw, beyond, -beyond])
    negative, below, above = (plane(planes, number) for number in range(3))
    wrong = await protocol.conjunction(joined_planes([below, above]), joined_planes([negative, protocol.invert(negative)]))
    flags = await numbers(protocol, wrong, x.shape)
    return Number(near + flags[0] - flags[1], 0)


async def _neighbour(protocol: Protocol, x: Number) -> tuple[Shared, Shared]:
    """A whole number next to x, and how much it is above x, at FRACTION_BITS. 2 rounds."""
    raw = fixed(x).raw
    near = await protocol.truncate(raw, FRACTION_BITS)
    return near, near.times(1 << FRACTION_BITS) - raw
