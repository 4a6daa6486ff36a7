"""Reciprocals, quotients, roots and logarithms of secrets: x = d 2**e, a polynomial of d, a power of 2 that is known."""

from __future__ import annotations

import math

import numpy as np

from grid.smpc.functions.arithmetic import FINE_BITS, broadcast, fixed
from grid.smpc.functions.leading import DIGIT, MANY_PLANES, PLANES, leading, scaled, shifts, weighted
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

FINE_ROOT_BITS, FINE_WORK_BITS = 7, 20
"""The same where the argument has 48 bits."""

FINE_FLOOR = 2.0**-38
"""Added to a number with extra fraction bits before its root: gradients are rounded to 2**-18, and their squares to no less."""

MOST_DIVISOR_BITS = FINE_BITS // 2 + 9
"""Fraction bits of a divisor."""

_QUOTIENT_BITS, _INVERSE_BITS = 19, 20
"""Fraction bits of a dividend that is scaled as its divisor is, and of 1 / d that it is multiplied with."""

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
    """x / y, 0 for y = 0. |y| from 2**-17 to 2**18, |x / y| < 2**22; error 5e-6 of the result, and 1e-5. 30 rounds, 24 up to 256
    elements.

    With y = d 2**e, d in [1/2, 1], it is (x 2**-e) (1 / d): what is rounded is of the quotient's size, however small y is. A y
    with up to 29 fraction bits, as roots of sums of squares have them, may be from 2**-28 to 2**7.
    """
    x, fraction = fixed(x), max(y.fraction, FRACTION_BITS)
    shape = np.broadcast_shapes(x.shape, y.shape)
    raw = y.with_fraction(fraction).raw
    protocol.expect(raw, -_LARGEST, _LARGEST)
    place = await leading(protocol, raw, signed=True)
    of_a, of_b = shifts()
    scale = await protocol.multiply(weighted(place.a, of_a), weighted(place.b, of_b))

    async def inverse(mine: Protocol) -> Shared:
        d = await mine.multiply(place.magnitude, scale, PLANES - ARGUMENT_BITS - 2)
        return await polynomial(mine.masked(), _argument(mine, d), RECIPROCAL, _INVERSE_BITS)

    async def dividend(mine: Protocol) -> Shared:
        assert place.sign is not None
        by = await mine.multiply(scale, place.sign)
        top = broadcast(x.raw, shape)
        return await mine.multiply(top, broadcast(by, shape), PLANES + FRACTION_BITS - _QUOTIENT_BITS - fraction)

    below, above = await protocol.together(inverse, dividend)
    return Number(await protocol.multiply(above, broadcast(below, shape), _QUOTIENT_BITS + _INVERSE_BITS - FRACTION_BITS))


async def sqrt(protocol: Protocol, x: Number) -> Number:
    """The square root. 0 <= x < 2**18; error 4e-6 of the result, and 4e-6. 30 rounds, 24 up to 256 elements.

    A sum of squares with 40 fraction bits, below 64, gets 29 of them, and the root of 2**-38 for 0: an optimizer that divides by
    it takes steps of at most about twice its learning rate, whatever roundings have left of gradients of 0.
    """
    if x.fraction == FINE_BITS:
        return await _fine_sqrt(protocol, x)
    # sqrt(x) = sqrt(d) 2**((j - 17) / 2), at 18 bits 2**(j / 2 + 9.5), with j = 6 a + b.
    of_b = [round(2.0 ** (b / 2 + 9.5 + ROOT_BITS)) for b in _DIGITS]
    return await _root(protocol, x, ([1 << (3 * a) for a in _DIGITS], of_b), SQRT)


async def _fine_sqrt(protocol: Protocol, x: Number) -> Number:
    """Of X = x 2**40, with its highest bit j of 48: sqrt(x) 2**29 = sqrt(X) 2**9 = sqrt(d) 2**((j + 1) / 2 + 9), j = 6 a + b."""
    raw = protocol.add_public(x.raw, public(FINE_FLOOR, FINE_BITS))
    protocol.expect(raw, 0, (1 << MANY_PLANES) - 1)
    place = await leading(protocol, raw, planes=MANY_PLANES)
    of_b = [round(2.0 ** (b / 2 + 9.5 + FINE_ROOT_BITS)) for b in _DIGITS]
    d, (scale,) = await scaled(protocol, place, ([1 << (3 * a) for a in range(MANY_PLANES // DIGIT)], of_b))
    root = await polynomial(protocol.masked(), _argument(protocol, d), SQRT, FINE_WORK_BITS)
    made = await protocol.multiply(root, scale, FINE_WORK_BITS + FINE_ROOT_BITS)
    return Number(made, FINE_BITS // 2 + 9)


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
