"""Reciprocals, quotients, roots and logarithms of secrets: x = d 2**e, a polynomial of d, a power of 2 that is known."""

from __future__ import annotations

import math

from grid.smpc.functions.arithmetic import fixed, multiply
from grid.smpc.functions.leading import DIGIT, PLANES, leading, scaled, weighted
from grid.smpc.functions.polynomials import ARGUMENT_BITS, polynomial
from grid.smpc.numbers import Number, public
from grid.smpc.protocol import FRACTION_BITS, Protocol
from grid.smpc.shares import Shared

RECIPROCAL = (
    1.3333333333, -0.4444413524, 0.1481471175, -0.0494236002, 0.0164745334, -0.0053430916, 0.0017810305, -0.0007915694,
    0.0002638565,
)  # fmt: skip
"""1 / d on [1/2, 1], of s = 4 d - 3; within 2.6e-7, relative."""

SQRT = (0.8660254583, 0.1443383645, -0.0120293329, 0.0019983595, -0.0004132871, 0.0001097611, -0.0000294690)
"""sqrt(d), likewise; within 1.5e-7, relative."""

RSQRT = (1.1547002203, -0.1924648258, 0.0481228657, -0.0132491655, 0.0038465803, -0.0013905494, 0.0004367305)
"""1 / sqrt(d), likewise; within 1.9e-6, relative."""

LOG = (-0.2876816969, 0.3333418386, -0.0555648085, 0.0122789333, -0.0030488394, 0.0009515390, -0.0002782455)
"""ln(d), likewise; within 1.3e-6."""

WORK_BITS = 22
"""Fraction bits of a polynomial of d that a power of 2 follows."""

ROOT_BITS = 10
"""Fraction bits of the powers of sqrt(2)."""

_DIGITS = range(DIGIT)
_RECIPROCAL_FACTORS = [1 << (DIGIT * (DIGIT - 1 - a)) for a in _DIGITS], [1 << (DIGIT - 1 - b) for b in _DIGITS]
_LARGEST = (1 << PLANES) - 1


async def reciprocal(protocol: Protocol, x: Number, *, positive: bool = False) -> Number:
    """1 / x, 0 for 0. 2**-17 <= |x| < 2**18; error 5e-6 of the result, and 6e-6. 30 rounds, 24 up to 256 elements.

    Where all x are `positive`, less is computed, in the same rounds.
    """
    raw = fixed(x).raw
    protocol.expect(raw, 0 if positive else -_LARGEST, _LARGEST)
    place = await leading(protocol, raw, signed=not positive)
    d, (scale,) = await scaled(protocol, place, _RECIPROCAL_FACTORS)

    async def signed_scale(mine: Protocol) -> Shared:
        return scale if place.sign is None else await mine.multiply(scale, place.sign)

    inverse, factor = await protocol.together(
        lambda mine: polynomial(mine.masked(), _argument(mine, d), RECIPROCAL, WORK_BITS), signed_scale
    )
    return Number(await protocol.multiply(inverse, factor, WORK_BITS))


async def divide(protocol: Protocol, x: Number, y: Number) -> Number:
    """x / y, as x (1 / y). |y| from 2**-17 to 2**18; error |x| times that of 1 / y, and 4e-6. 3 rounds more than 1 / y."""
    return await multiply(protocol, fixed(x), await reciprocal(protocol, y))


async def sqrt(protocol: Protocol, x: Number) -> Number:
    """The square root. 0 <= x < 2**18; error 4e-6 of the result, and 4e-6. 30 rounds, 24 up to 256 elements."""
    # sqrt(x) = sqrt(d) 2**((j - 17) / 2), at 18 bits 2**(j / 2 + 9.5), with j = 6 a + b.
    of_b = [round(2.0 ** (b / 2 + 9.5 + ROOT_BITS)) for b in _DIGITS]
    return await _root(protocol, x, ([1 << (3 * a) for a in _DIGITS], of_b), SQRT)


async def rsqrt(protocol: Protocol, x: Number) -> Number:
    """1 / sqrt(x), 0 for 0. 2**-18 <= x < 2**18; error 6e-6 of the result, and 4e-6. 30 rounds, 24 up to 256 elements."""
    # At 18 bits 2**(26.5 - j / 2), which is 2**(15 - 3 a) 2**(11.5 - b / 2).
    of_b = [round(2.0 ** (11.5 - b / 2 + ROOT_BITS)) for b in _DIGITS]
    return await _root(protocol, x, ([1 << (15 - 3 * a) for a in _DIGITS], of_b), RSQRT)


async def _root(protocol: Protocol, x: Number, factors: tuple[list[int], list[int]], coefficients: tuple[float, ...]) -> Number:
    raw = fixed(x).raw
    protocol.expect(raw, 0, _LARGEST)
    d, (scale,) = await scaled(protocol, await leading(protocol, raw), factors)
    root = await polynomial(protocol.masked(), _argument(protocol, d), coefficients, WORK_BITS)
    return Number(await protocol.multiply(root, scale, WORK_BITS + ROOT_BITS))


async def log(protocol: Protocol, x: Number) -> Number:
    """ln(x). 2**-18 <= x < 2**18; error 1e-5. 27 rounds, 21 up to 256 elements."""
    raw = fixed(x).raw
    protocol.expect(raw, 1, _LARGEST)
    place = await leading(protocol, raw)
    d, _ = await scaled(protocol, place)
    made = await polynomial(protocol, _argument(protocol, d), LOG)
    whole = weighted(place.a, _logs(DIGIT)) + weighted(place.b, _logs(1))
    return Number(protocol.add_public(made + whole, public(-(FRACTION_BITS - 1) * math.log(2), FRACTION_BITS)))


def _logs(step: int) -> list[int]:
    return [round(step * k * math.log(2) * (1 << FRACTION_BITS)) for k in _DIGITS]


def _argument(protocol: Protocol, d: Shared) -> Shared:
    """s = 4 d - 3."""
    return protocol.add_public(d, public(-3, ARGUMENT_BITS))
