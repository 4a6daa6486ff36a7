"""Comparisons, choices, and what is made of them alone: exact, for differences below 2**62 in the ring (2**44 at 18 bits).

Truth values stay bits until somebody computes with them: `where` takes them as they are, `number` makes 0 and 1 of them.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from grid.errors import InvalidRequest
from grid.smpc.functions.arithmetic import aligned
from grid.smpc.functions.rows import chosen, numbers, signs
from grid.smpc.numbers import Boolean, Number, public
from grid.smpc.packing import pack, unpack
from grid.smpc.protocol import Protocol
from grid.smpc.shares import Bits, joined_planes


async def less(protocol: Protocol, x: Number, y: Number) -> Boolean:
    """x < y. Exact. 6 rounds."""
    x, y = aligned(x, y)
    return Boolean(await protocol.negative(x.raw - y.raw), x.shape)


async def less_equal(protocol: Protocol, x: Number, y: Number) -> Boolean:
    """x <= y. Exact. 6 rounds."""
    return invert(protocol, await less(protocol, y, x))


async def greater(protocol: Protocol, x: Number, y: Number) -> Boolean:
    """x > y. Exact. 6 rounds."""
    return await less(protocol, y, x)


async def greater_equal(protocol: Protocol, x: Number, y: Number) -> Boolean:
    """x >= y. Exact. 6 rounds."""
    return invert(protocol, await less(protocol, x, y))


async def equal(protocol: Protocol, x: Number, y: Number) -> Boolean:
    """x == y. Exact. 6 rounds."""
    x, y = aligned(x, y)
    return Boolean(await protocol.is_zero(x.raw - y.raw), x.shape)


async def not_equal(protocol: Protocol, x: Number, y: Number) -> Boolean:
    """x != y. Exact. 6 rounds."""
    return invert(protocol, await equal(protocol, x, y))


def invert(protocol: Protocol, b: Boolean) -> Boolean:
    """NOT b. No message."""
    return Boolean(protocol.invert(b.bits), b.shape)


async def both(protocol: Protocol, a: Boolean, b: Boolean) -> Boolean:
    """a AND b. Exact. 1 round."""
    a, b = _spread(a, b)
    return Boolean(await protocol.conjunction(a.bits, b.bits), a.shape)


async def either(protocol: Protocol, a: Boolean, b: Boolean) -> Boolean:
    """a OR b. Exact. 1 round."""
    return invert(protocol, await both(protocol, invert(protocol, a), invert(protocol, b)))


async def differ(protocol: Protocol, a: Boolean, b: Boolean) -> Boolean:
    """a XOR b. Exact. 0 rounds."""
    a, b = _spread(a, b)
    return Boolean(a.bits ^ b.bits, a.shape)


async def every(protocol: Protocol, b: Boolean, axis: int = -1) -> Boolean:
    """Whether all are true along an axis, of n items. Exact. ceil(log2 n) rounds."""
    b = b.each(lambda bits: np.moveaxis(bits, axis, 0))
    if not b.shape[0]:
        raise InvalidRequest("all or any of nothing needs no shares: the axis has no items")
    count, shape = b.shape[0], b.shape[1:]
    planes = [pack(unpack(part, math.prod(b.shape))[0].reshape(count, math.prod(shape))) for part in b.bits.parts]
    return Boolean(await conjunction(protocol, Bits(*planes), count), shape)


async def some(protocol: Protocol, b: Boolean, axis: int = -1) -> Boolean:
    """Whether any is true along an axis, of n items. Exact. ceil(log2 n) rounds."""
    return invert(protocol, await every(protocol, invert(protocol, b), axis))


async def conjunction(protocol: Protocol, terms: Bits, count: int) -> Bits:
    """AND of all `count` terms, which are equally many planes each, one after the other. ceil(log2(count)) rounds."""
    each = terms.planes // count
    while count > 1:
        half = count // 2
        first, second, rest = terms[: half * each], terms[half * each : 2 * half * each], terms[2 * half * each :]
        made = await protocol.conjunction(first, second)
        terms = joined_planes([made, rest]) if count % 2 else made
        count -= half
    return terms


async def boolean(protocol: Protocol, x: Number) -> Boolean:
    """Numbers 0 and 1, without fraction bits, as truth values. Exact. 1 round."""
    return Boolean(await protocol.bits(x.raw, 1), x.shape)


def where_public(condition: npt.NDArray[np.bool_], x: Boolean, y: Boolean) -> Boolean:
    """x where a public condition holds, y elsewhere. No message."""
    shape = np.broadcast_shapes(condition.shape, x.shape, y.shape)
    x, y = (value.each(lambda bits: np.broadcast_to(bits, shape)) for value in (x, y))
    mask = pack(np.broadcast_to(condition, shape).reshape(1, -1))
    parts = zip(x.bits.parts, y.bits.parts, strict=True)
    return Boolean(Bits(*((mask & a) | (~mask & b) for a, b in parts)), shape)


def _spread(a: Boolean, b: Boolean) -> tuple[Boolean, Boolean]:
    if a.shape == b.shape:
        return a, b
    shape = np.broadcast_shapes(a.shape, b.shape)
    return a.each(lambda bits: np.broadcast_to(bits, shape)), b.each(lambda bits: np.broadcast_to(bits, shape))


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
    """max(x, 0). Exact. 8 rounds."""
    positive = protocol.invert(await protocol.negative(x.raw))
    return Number(await protocol.choose(positive, x.raw), x.fraction)


async def absolute(protocol: Protocol, x: Number) -> Number:
    """|x|. Exact. 8 rounds."""
    return Number(x.raw - (await protocol.choose(await protocol.negative(x.raw), x.raw)).times(2), x.fraction)


async def sign(protocol: Protocol, x: Number) -> Number:
    """-1, 0 or 1, without fraction bits. Exact. 8 rounds."""
    above_below = await numbers(protocol, await signs(protocol, [-x.raw, x.raw]), x.shape)
    return Number(above_below[0] - above_below[1], 0)


async def minimum(protocol: Protocol, x: Number, y: Number) -> Number:
    """The smaller one of each pair. Exact. 8 rounds."""
    x, y = aligned(x, y)
    difference = x.raw - y.raw
    return Number(y.raw + await protocol.choose(await protocol.negative(difference), difference), x.fraction)


async def maximum(protocol: Protocol, x: Number, y: Number) -> Number:
    """The larger one of each pair. Exact. 8 rounds."""
    x, y = aligned(x, y)
    difference = y.raw - x.raw
    return Number(x.raw + await protocol.choose(await protocol.negative(-difference), difference), x.fraction)


async def clamp(protocol: Protocol, x: Number, low: float | None = None, high: float | None = None) -> Number:
    """x kept between public bounds, which are rounded to x's fraction bits. Exact. 8 rounds."""
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
