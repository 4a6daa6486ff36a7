"""Softmax and its logarithm: the largest item is taken off, so that the sum of exponentials is from 1 to n.

Such a sum is d 2**k with d in [1/2, 1] and k from 1 to ceil(log2 n), which ceil(log2 n) - 1 comparisons find: no bits need to
be made.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

from grid.errors import InvalidRequest
from grid.smpc.functions.arithmetic import broadcast, fixed
from grid.smpc.functions.exponential import exponential
from grid.smpc.functions.extremes import largest
from grid.smpc.functions.inverses import LOG, RECIPROCAL
from grid.smpc.functions.polynomials import ARGUMENT_BITS, polynomial
from grid.smpc.functions.rows import chosen, numbers, signs
from grid.smpc.link import Words
from grid.smpc.numbers import Number, public
from grid.smpc.protocol import FRACTION_BITS, Protocol
from grid.smpc.shares import Shared, joined_planes

_INVERSE_BITS = 20
_MAX_STEPS = 16

MOST_ITEMS = 1 << _MAX_STEPS
"""Of a softmax."""


def _power_bits(steps: int) -> int:
    """Fraction bits of exponentials: more where their sum has many of them, and is truncated anyway."""
    return FRACTION_BITS if steps <= ARGUMENT_BITS + 2 - FRACTION_BITS else 24


async def softmax(protocol: Protocol, x: Number, axis: int = -1) -> Number:
    """e**x over the sum of it along an axis, of n items. |x| < 2**17, n <= 65,536; error 8e-5 of the result (and n 6e-8 of it
    for n > 16), and 8e-6.

    38 rounds and those of the largest; 40 for n > 16, 30 for n = 2.
    """
    powers, summed, steps = await _exponentials(protocol, await _less_largest(protocol, fixed(x), axis), axis)
    d, hot = await _normalised(protocol, summed, steps)
    return await _quotients(protocol, powers, d, hot)


async def _quotients(protocol: Protocol, powers: Shared, d: Shared, hot: Sequence[Shared]) -> Number:
    """Exponentials over their sum. 12 rounds."""
    steps = len(hot)
    scale = _weighted(hot, [1 << (steps - 1 - k) for k in range(steps)])
    scaled, inverse = await protocol.together(
        lambda mine: mine.multiply(powers, broadcast(scale, powers.shape)),
        lambda mine: polynomial(mine, d, RECIPROCAL, _INVERSE_BITS),
    )
    excess = _INVERSE_BITS + steps + _power_bits(steps) - FRACTION_BITS
    return Number(await protocol.multiply(scaled, broadcast(inverse, powers.shape), excess))


async def log_softmax(protocol: Protocol, x: Number, axis: int = -1) -> Number:
    """The logarithm of softmax along an axis, of n items. |x| < 2**17, n <= 65,536; error 8e-5, and n 6e-8 for n > 16.

    35 rounds and those of the largest; 37 for n > 16, 27 for n = 2.
    """
    less = await _less_largest(protocol, fixed(x), axis)
    _, summed, steps = await _exponentials(protocol, less, axis)
    d, hot = await _normalised(protocol, summed, steps)
    return await _logarithms(protocol, less, d, hot)


async def _logarithms(protocol: Protocol, less: Shared, d: Shared, hot: Sequence[Shared]) -> Number:
    """Of those quotients, whose exponents are given. 9 rounds."""
    whole = _weighted(hot, [int(public((k + 1) * math.log(2), FRACTION_BITS)) for k in range(len(hot))])
    return Number(less - broadcast(await polynomial(protocol, d, LOG) + whole, less.shape))


async def log_softmax_beside_softmax(protocol: Protocol, x: Number, axis: int = -1) -> tuple[Number, Number]:
    """Both, in the rounds of softmax: the gradient of the first is made of the second."""
    less = await _less_largest(protocol, fixed(x), axis)
    powers, summed, steps = await _exponentials(protocol, less, axis)
    d, hot = await _normalised(protocol, summed, steps)
    logarithms, quotients = await protocol.together(
        lambda mine: _logarithms(mine, less, d, hot), lambda mine: _quotients(mine, powers, d, hot)
    )
    return logarithms, quotients


async def _less_largest(protocol: Protocol, x: Number, axis: int) -> Shared:
    top = await largest(protocol, x, axis)
    lead = axis % len(x.shape)
    shape = (*x.shape[:lead], 1, *x.shape[lead + 1 :])
    return x.raw - broadcast(top.raw.reshape(shape), x.shape)


async def _exponentials(protocol: Protocol, less: Shared, axis: int) -> tuple[Shared, Shared, int]:
    """e**x, their sum, and ceil(log2 n), at least 1. 18 rounds."""
    steps = max(1, (less.shape[axis] - 1).bit_length())
    if steps > _MAX_STEPS:
        raise InvalidRequest(f"a softmax is over at most {1 << _MAX_STEPS} items, not {less.shape[axis]}")

    def summed(part: Words) -> Words:
        return np.asarray(part.sum(axis=axis, keepdims=True, dtype=np.uint64))

    powers = await exponential(protocol, less, _power_bits(steps))
    return powers, powers.each(summed), steps


async def _normalised(protocol: Protocol, x: Shared, steps: int) -> tuple[Shared, list[Shared]]:
    """4 d - 3 for polynomials, and one-hot numbers of k = 1, ..., steps. 8 rounds, 10 for more than 4 steps, 0 for one."""
    bits = _power_bits(steps)
    shift = ARGUMENT_BITS + 2 - bits - steps
    if steps == 1:
        one = protocol.add_public(x - x, public(1, 0))
        return _argument(protocol, x.times(1 << shift)), [one]
    below = await signs(protocol, [protocol.add_public(x, public(-(1 << k), bits)) for k in range(1, steps)])
    planes = joined_planes([below[:1], below[1:] ^ below[:-1], protocol.invert(below[-1:])])
    spread = [x.times(1 << (steps - k)) for k in range(1, steps + 1)]
    parts, hot = await protocol.together(
        lambda mine: chosen(mine, planes, spread), lambda mine: numbers(mine, planes, x.shape)
    )
    d = functools.reduce(Shared.__add__, parts)
    d = d.times(1 << shift) if shift >= 0 else await protocol.truncate(d, -shift)
    return _argument(protocol, d), [hot[k] for k in range(steps)]


def _argument(protocol: Protocol, d: Shared) -> Shared:
    return protocol.add_public(d, public(-3, ARGUMENT_BITS))


def _weighted(hot: Sequence[Shared], weights: Sequence[int]) -> Shared:
    return functools.reduce(Shared.__add__, (one.times(weight) for one, weight in zip(hot, weights, strict=True)))
