"""Comparisons, choices, and what is made of them alone: exact, for differences below 2**62 in the ring (2**44 at 18 bits).

Truth values stay bits until somebody computes with them: `where` takes them as they are, `number` makes 0 and 1 of them.
"""

from __future__ import annotations

import numpy as np

from grid.smpc.functions.arithmetic import aligned
from grid.smpc.functions.rows import chosen, numbers, signs
from grid.smpc.numbers import Boolean, Number, public
from grid.smpc.protocol import Protocol


async def less(protocol: Protocol, x: Number, y: Number) -> Boolean:
    """x < y. Exact. 8 rounds."""
    x, y = aligned(x, y)
    return Boolean(await protocol.negative(x.raw - y.raw), x.shape)


async def less_equal(protocol: Protocol, x: Number, y: Number) -> Boolean:
    """x <= y. Exact. 8 rounds."""
    return invert(protocol, await less(protocol, y, x))


async def greater(protocol: Protocol, x: Number, y: Number) -> Boolean:
    """x > y. Exact. 8 rounds."""
    return await less(protocol, y, x)


async def greater_equal(protocol: Protocol, x: Number, y: Number) -> Boolean:
    """x >= y. Exact. 8 rounds."""
    return invert(protocol, await less(protocol, x, y))


async def equal(protocol: Protocol, x: Number, y: Number) -> Boolean:
    """x == y. Exact. 7 rounds."""
    x, y = aligned(x, y)
    return Boolean(await protocol.is_zero(x.raw - y.raw), x.shape)


async def not_equal(protocol: Protocol, x: Number, y: Number) -> Boolean:
    """x != y. Exact. 7 rounds."""
    return invert(protocol, await equal(protocol, x, y))


def invert(protocol: Protocol, b: Boolean) -> Boolean:
    """NOT b. No message."""
    return Boolean(protocol.invert(b.bits), b.shape)


async def both(protocol: Protocol, a: Boolean, b: Boolean) -> Boolean:
    """a AND b, of one shape. 1 round."""
    return Boolean(await protocol.conjunction(a.bits, b.bits), a.shape)


async def number(protocol: Protocol, b: Boolean) -> Number:
    """0 and 1, without fraction bits. Exact. 2 rounds."""
    return Number(await protocol.number(b.bits, b.shape), 0)


async def where(protocol: Protocol, condition: Boolean, x: Number, y: Number) -> Number:
    """x where the condition holds, y elsewhere. Exact. 2 rounds."""
    x, y = aligned(x, y)
    shape = np.broadcast_shapes(condition.shape, x.shape)
    if condition.shape != shape:
        condition = condition.each(lambda bits: np.broadcast_to(bits, shape))
    x, y = (value.each(lambda part: np.broadcast_to(part, shape)) for value in (x, y))
    return Number(await protocol.choose(condition.bits, x.raw - y.raw) + y.raw, x.fraction)


async def relu(protocol: Protocol, x: Number) -> Number:
    """max(x, 0). Exact. 10 rounds."""
    positive = protocol.invert(await protocol.negative(x.raw))
    return Number(await protocol.choose(positive, x.raw), x.fraction)


async def absolute(protocol: Protocol, x: Number) -> Number:
    """|x|. Exact. 10 rounds."""
    return Number(x.raw - (await protocol.choose(await protocol.negative(x.raw), x.raw)).times(2), x.fraction)


async def sign(protocol: Protocol, x: Number) -> Number:
    """-1, 0 or 1, without fraction bits. Exact. 10 rounds."""
    above_below = await numbers(protocol, await signs(protocol, [-x.raw, x.raw]), x.shape)
    return Number(above_below[0] - above_below[1], 0)


async def minimum(protocol: Protocol, x: Number, y: Number) -> Number:
    """The smaller one of each pair. Exact. 10 rounds."""
    x, y = aligned(x, y)
    difference = x.raw - y.raw
    return Number(y.raw + await protocol.choose(await protocol.negative(difference), difference), x.fraction)


async def maximum(protocol: Protocol, x: Number, y: Number) -> Number:
    """The larger one of each pair. Exact. 10 rounds."""
    x, y = aligned(x, y)
    difference = y.raw - x.raw
    return Number(x.raw + await protocol.choose(await protocol.negative(-difference), difference), x.fraction)


async def clamp(protocol: Protocol, x: Number, low: float | None = None, high: float | None = None) -> Number:
    """x kept between public bounds, which are rounded to x's fraction bits. Exact. 10 rounds."""
    beyond = []
    if low is not None:
        beyond.append(protocol.add_public(x.raw, public(-low, x.fraction)))
    if high is not None:
        beyond.append(protocol.add_public(-x.raw, public(high, x.fraction)))
    # Where x - low or high - x is negative it is taken off: x - (x - low) is low, and x + (high - x) is high.
    parts = await chosen(protocol, await signs(protocol, beyond), beyond) if beyond else []
    result = x.raw
    for part, upper in zip(parts, [False, True] if low is not None else [True], strict=False):
        result = result + part if upper else result - part
    return Number(result, x.fraction)
