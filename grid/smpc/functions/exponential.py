"""e**x, by powers of two: x log2(e) is a whole part, whose bits are known, and a fraction."""

from __future__ import annotations

import math

import numpy as np

from grid.smpc.functions.arithmetic import fixed
from grid.smpc.functions.polynomials import argument, polynomial
from grid.smpc.functions.rows import combined, numbers
from grid.smpc.numbers import Number, public
from grid.smpc.protocol import FRACTION_BITS, Protocol
from grid.smpc.shares import Bits, Shared

EXP2 = (1.4142125179, 0.4901111353, 0.0849402999, 0.0098849747, 0.0008458855)
"""2**t on [0, 1], of s = 2 t - 1; within 2.6e-6, relative."""

SHIFT = 21
"""2**(floor(z) + 21) is a whole number for every z that matters; its truncation takes the 21 off again."""

WHOLE_BITS = 6
_LOG2_E_BITS = 24


async def exp(protocol: Protocol, x: Number) -> Number:
    """e**x. x from -2**18 to 14, and less than 4e-6 below -14; error 1.1e-5 of the result, and 8e-6. 18 rounds."""
    raw = fixed(x).raw
    protocol.expect(raw, -1 << (18 + FRACTION_BITS), 14 << FRACTION_BITS)
    return Number(await exponential(protocol, raw, FRACTION_BITS))


async def exponential(protocol: Protocol, raw: Shared, bits: int) -> Shared:
    """e**x of x at FRACTION_BITS, with `bits` fraction bits: up to 18 where x is up to 14, up to 30 where it is up to 0.

    z = x log2(e) + 21, of which the low 24 bits and the sign are made at the same time (2 + 7); 2**t by a polynomial (6)
    while 2**floor(z) is a product of (1 + b_i (2**(2**i) - 1)), 0 where z < 0; their product (3).
    """
    z = await protocol.truncate(raw.times(public(math.log2(math.e), _LOG2_E_BITS)), _LOG2_E_BITS)
    z = protocol.add_public(z, public(SHIFT, FRACTION_BITS))
    negative, places = await protocol.together(lambda mine: mine.negative(z), lambda mine: _whole_bits(mine, z))
    whole = [-(1 << (i + FRACTION_BITS)) for i in range(WHOLE_BITS)]
    fraction = combined([z, *(places[i] for i in range(WHOLE_BITS))], [1, *whole])
    s = argument(fraction, FRACTION_BITS - 1, -1, protocol)
    power, remainder = await protocol.together(
        lambda mine: _power(mine, places, protocol.invert(negative)), lambda mine: polynomial(mine.masked(), s, EXP2, bits)
    )
    return await protocol.multiply(power, remainder, SHIFT)


async def _whole_bits(protocol: Protocol, z: Shared) -> Shared:
    """Bits 18 to 23 of z as integers. 7 rounds."""
    planes = await protocol.bits(z, FRACTION_BITS + WHOLE_BITS)
    return await numbers(protocol, planes[FRACTION_BITS:], z.shape)


async def _power(protocol: Protocol, bits: Shared, valid: Bits) -> Shared:
    """2 to the number that has these bits, where it is valid, else 0. 5 rounds.

    A valid one is below 48, so that its two highest bits are not both 1, and their factor is linear in them.
    """
    steps = np.array([(1 << (1 << i)) - 1 for i in range(WHOLE_BITS)], np.uint64)
    steps = steps.reshape((WHOLE_BITS,) + (1,) * (len(bits.shape) - 1))
    weighted, one = bits.times(steps), np.asarray(np.uint64(1))
    low, high = protocol.add_public(weighted[:4], one), protocol.add_public(weighted[4] + weighted[5], one)
    pairs = await protocol.multiply(low[:2], low[2:])
    product = await protocol.multiply(await protocol.multiply(pairs[0], pairs[1]), high)
    return await protocol.choose(valid, product)
