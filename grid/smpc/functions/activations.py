"""Activations: a polynomial of |x| near zero, what they tend to elsewhere.

Both bounds of the near part and the sign of x are compared at the same time. |x| is replaced by 0 outside, and polynomials
are fitted to be 0 there, so nothing has to be chosen after them. Fits are minimax, coefficients low to high.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from grid.smpc.functions.arithmetic import fixed, multiply_public
from grid.smpc.functions.exponential import exponential
from grid.smpc.functions.inverses import LOG
from grid.smpc.functions.polynomials import argument, polynomial
from grid.smpc.functions.rows import chosen, numbers, plane, signs
from grid.smpc.numbers import Number, public
from grid.smpc.protocol import FRACTION_BITS, Protocol
from grid.smpc.shares import Bits, Shared, joined_planes

SIGMOID_BOUND = 9.0
SIGMOID = (
    0.4818800039, 0.0697769691, -0.1315287941, 0.1768358265, -0.1719072245, 0.0631441301, 0.0567987142, -0.0599392571,
    0.0145749690,
)  # fmt: skip
"""sigmoid(y) - 1/2 on [0, 9], of s = y / 4 - 1; within 1.71e-4, and sigmoid(9) is 1.24e-4 from 1."""

GELU_BOUND = 4.0
GELU = (
    0.0454236857, -0.1713441622, 0.2192600790, 0.0121073577, -0.3116881558, 0.2437788162, 0.0345417253, -0.0845398432,
    0.0124648343,
)  # fmt: skip
"""y Phi(-y) on [0, 4], of s = y / 2 - 1; within 1.23e-4, and 1.27e-4 at 4."""

SILU_BOUND = 11.5
SILU_OFFSET = -1.4375
SILU = (
    0.0181501616, -0.0602589538, 0.0975730044, -0.0873118138, 0.0300205674, -0.0179244864, 0.0395311816, 0.0240842940,
    -0.0737101659, 0.0182167046, 0.0194067992, -0.0060363720, -0.0010787069,
)  # fmt: skip
"""y / (1 + e**y) on [0, 11.5], of s = y / 4 - 1.4375; within 9.6e-5, and 1.17e-4 at 11.5."""


GELU_TANH = (
    0.0453277402, -0.1729428593, 0.2189215293, 0.0176665620, -0.3106316740, 0.2369448524, 0.0335855894, -0.0816885309,
    0.0127768394,
)  # fmt: skip
"""The same of GELU's approximation by tanh; within 1.11e-4, and 7e-5 at 4."""

GELU_SLOPE_BOUND = 4.5
GELU_SLOPE = (
    0.5591392377, -0.1949790632, 0.1543211319, 0.2552114830, -0.5959237311, 0.2973244143, 0.2489946806, -0.2679410269,
    -0.0093252653, 0.0628270289, -0.0094483652,
)  # fmt: skip
"""Phi(y) + y phi(y) - 1/2 on [0, 4.5], phi the density of the normal distribution, of s = y / 2 - 1.125; within 7.7e-5, and
6.9e-5 from 1/2 at 4.5."""

GELU_TANH_SLOPE_BOUND = 4.25
GELU_TANH_SLOPE = (
    0.5726675759, -0.2114536127, 0.0827549394, 0.4176668043, -0.6511755587, 0.1781286536, 0.3500609916, -0.2532468091,
    -0.0495122454, 0.0693583807, -0.0051030845,
)  # fmt: skip
"""The same of its approximation by tanh, on [0, 4.25], of s = y / 2 - 1.0625; within 4.8e-5, and 1.1e-4 at 4.25."""

SILU_SLOPE = (
    0.5148208613, -0.0485892819, 0.0750707988, -0.0320330279, -0.0379230332, -0.0535197995, 0.0952519275, 0.1406106066,
    -0.1811773432, -0.0449836619, 0.0820227953, 0.0025658274, -0.0113735935,
)  # fmt: skip
"""sigmoid(y) (1 + y (1 - sigmoid(y))) - 1/2 on [0, 11.5], of s = y / 4 - 1.4375; within 2.7e-4, and 1.1e-4 from 1/2 at 11.5."""


class Regions(NamedTuple):
    """Where x lies with respect to a bound, one plane each."""

    negative: Bits
    near_below: Bits
    near_above: Bits
    above: Bits


async def _regions(protocol: Protocol, x: Shared, bound: float) -> Regions:
    """x < 0; -bound <= x < 0; 0 <= x < bound; bound <= x. 6 rounds."""
    at = public(bound, FRACTION_BITS)
    planes = await signs(protocol, [x, protocol.add_public(x, at), protocol.add_public(x, -at)])
    negative, far_below, not_above = (plane(planes, number) for number in range(3))
    return Regions(negative, negative ^ far_below, not_above ^ negative, protocol.invert(not_above))


async def sigmoid(protocol: Protocol, x: Number) -> Number:
    """1 / (1 + e**-x). Every |x| < 2**42; error 1.8e-4. 18 rounds."""
    return _raised(protocol, await _centred_sigmoid(protocol, fixed(x).raw))


async def tanh(protocol: Protocol, x: Number) -> Number:
    """The hyperbolic tangent, 2 sigmoid(2 x) - 1. Every |x| < 2**41; error 3.6e-4. 18 rounds."""
    return Number((await _centred_sigmoid(protocol, fixed(x).raw.times(2))).times(2))


async def gelu_slope(protocol: Protocol, x: Number) -> Number:
    """The derivative of GELU. Every |x| < 2**42; error 1e-4. 21 rounds."""
    return _raised(protocol, await _odd(protocol, fixed(x).raw, GELU_SLOPE_BOUND, 1, -1.125, GELU_SLOPE))


async def gelu_tanh_slope(protocol: Protocol, x: Number) -> Number:
    """The derivative of GELU's approximation by tanh. Every |x| < 2**42; error 1.4e-4. 21 rounds."""
    return _raised(protocol, await _odd(protocol, fixed(x).raw, GELU_TANH_SLOPE_BOUND, 1, -1.0625, GELU_TANH_SLOPE))


async def silu_slope(protocol: Protocol, x: Number) -> Number:
    """The derivative of x sigmoid(x). Every |x| < 2**42; error 2.9e-4. 21 rounds."""
    return _raised(protocol, await _odd(protocol, fixed(x).raw, SILU_BOUND, 2, SILU_OFFSET, SILU_SLOPE))


def _raised(protocol: Protocol, x: Shared) -> Number:
    """x + 1/2."""
    return Number(protocol.add_public(x, public(0.5, FRACTION_BITS)))


async def _centred_sigmoid(protocol: Protocol, x: Shared) -> Shared:
    """sigmoid(x) - 1/2."""
    return await _odd(protocol, x, SIGMOID_BOUND, 2, -1, SIGMOID)


async def _odd(protocol: Protocol, x: Shared, bound: float, shift: int, offset: float, coefficients: Sequence[float]) -> Shared:
    """An odd function that tends to 1/2: the sign of x times a polynomial of |x| / 2**shift + offset, or 1/2 from the bound on.
    9 rounds (6 + 2 + 1), and those of the polynomial."""
    where = await _regions(protocol, x, bound)
    far = protocol.invert(where.near_below ^ where.near_above)
    near, flags = await protocol.together(
        lambda mine: chosen(mine, joined_planes([where.near_above, where.near_below]), [x, -x]),
        lambda mine: numbers(mine, joined_planes([where.negative, far]), x.shape),
    )
    half = await polynomial(protocol, argument(near[0] + near[1], FRACTION_BITS + shift, offset, protocol), coefficients)
    sign = protocol.add_public(flags[0].times(-2), np.asarray(np.uint64(1)))
    return await protocol.multiply(sign, half + flags[1].times(1 << (FRACTION_BITS - 1)))


async def gelu(protocol: Protocol, x: Number) -> Number:
    """x Phi(x), Phi the normal distribution's function. Every |x| < 2**42; error 1.4e-4. 17 rounds."""
    return await _rectified_less(protocol, x, GELU_BOUND, 1, -1, GELU)


async def gelu_tanh(protocol: Protocol, x: Number) -> Number:
    """GELU's approximation by tanh. Every |x| < 2**42; error 1.4e-4. 17 rounds."""
    return await _rectified_less(protocol, x, GELU_BOUND, 1, -1, GELU_TANH)


async def silu(protocol: Protocol, x: Number) -> Number:
    """x sigmoid(x). Every |x| < 2**42; error 1.8e-4. 20 rounds."""
    return await _rectified_less(protocol, x, SILU_BOUND, 2, SILU_OFFSET, SILU)


async def _rectified_less(
    protocol: Protocol, x: Number, bound: float, shift: int, offset: float, coefficients: Sequence[float]
) -> Number:
    """max(x, 0) less a polynomial of |x| / 2**shift + offset that is 0 at x = 0. 8 rounds and those of the polynomial."""
    raw = fixed(x).raw
    where = await _regions(protocol, raw, bound)
    planes = joined_planes([where.near_above, where.near_below, where.above])
    above, below, far = await chosen(protocol, planes, [raw, -raw, raw])
    lost = await polynomial(protocol, argument(above + below, FRACTION_BITS + shift, offset, protocol), coefficients)
    return Number(above + far - lost)


async def leaky_relu(protocol: Protocol, x: Number, slope: float = 0.01) -> Number:
    """x, times a public slope where it is negative. |x| < 2**21; error 2**-22 of the result, and 4e-6. 10 rounds."""
    x = fixed(x)
    below = Number(await protocol.choose(await protocol.negative(x.raw), x.raw))
    return Number(x.raw - below.raw + (await multiply_public(protocol, below, slope)).raw)


async def elu(protocol: Protocol, x: Number, alpha: float = 1.0) -> Number:
    """x where it is positive, alpha (e**x - 1) elsewhere. -2**18 < x; error 2e-5 (1 + |alpha|). 26 rounds, 28 with an alpha."""
    x = fixed(x)
    below = await protocol.choose(await protocol.negative(x.raw), x.raw)
    lost = Number(protocol.add_public(await exponential(protocol, below, FRACTION_BITS), public(-1, FRACTION_BITS)))
    return Number(x.raw - below + (await multiply_public(protocol, lost, alpha)).raw)


async def softplus(protocol: Protocol, x: Number) -> Number:
    """ln(1 + e**x), as max(x, 0) + ln(1 + e**-|x|). |x| < 2**18; error 3e-5. 35 rounds."""
    x = fixed(x)
    below = await protocol.choose(await protocol.negative(x.raw), x.raw)
    power = await exponential(protocol, below.times(2) - x.raw, FRACTION_BITS)
    # ln(1 + e) is ln 2 + ln(d) of d = (1 + e) / 2, and s = 4 d - 3 = 2 e - 1.
    made = await polynomial(protocol, argument(power, FRACTION_BITS - 1, -1, protocol), LOG)
    return Number(protocol.add_public(x.raw - below + made, public(math.log(2), FRACTION_BITS)))
