"""Polynomials of a secret with public coefficients, in few rounds.

Powers up to 4 are made at once, and blocks of terms are joined by Horner's rule over the highest of them, each join a product
fused with its addend and its truncation: 6 rounds up to degree 4, 9 up to 8, 12 up to 12, where Horner's rule over s itself
takes 3 a degree. Work inside has more fraction bits than results, so that errors do not add up: what a test sees is the
polynomial's own error and one rounding of the result, with 2**-19 on top at most.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from grid.smpc.functions.rows import combined
from grid.smpc.numbers import public
from grid.smpc.protocol import FRACTION_BITS, Protocol
from grid.smpc.shares import Shared, stacked

ARGUMENT_BITS = 20
"""Fraction bits of the argument and of its powers."""

COEFFICIENT_BITS = 19
"""Of coefficients that a secret is multiplied with after them."""

_BLOCK = ARGUMENT_BITS + COEFFICIENT_BITS
_SUM = _BLOCK + ARGUMENT_BITS


async def polynomial(protocol: Protocol, s: Shared, coefficients: Sequence[float], bits: int = FRACTION_BITS) -> Shared:
    """The sum of coefficients[k] s**k at `bits` fraction bits, for s of about [-1, 1] with ARGUMENT_BITS of them.

    Values up to 4, coefficients up to 8 in size, degrees 3 to 12. Rounds: 6 up to degree 4, 9 up to 8, 12 up to 12.
    """
    degree = len(coefficients) - 1
    assert 3 <= degree <= 12
    square = await protocol.multiply(s, s, ARGUMENT_BITS)
    powers = [s, square]
    if degree in (5, 6):
        powers.append(await protocol.multiply(square, s, ARGUMENT_BITS))
    elif degree > 6:
        both = await protocol.multiply(stacked([s, square]), stacked([square, square]), ARGUMENT_BITS)
        powers += [both[0], both[1]]
    step = len(powers)
    blocks = [coefficients[1 + at : 1 + at + step] for at in range(0, degree, step)]
    upper = _terms(powers, blocks.pop(), COEFFICIENT_BITS)
    while len(blocks) > 1:
        upper = await protocol.multiply(powers[-1], upper, ARGUMENT_BITS, add=_terms(powers, blocks.pop(), _BLOCK))
    lowest = protocol.add_public(_terms(powers, blocks.pop(), _BLOCK), public(coefficients[0], _SUM))
    return await protocol.multiply(powers[-1], upper, _SUM - bits, add=lowest)


def _terms(powers: Sequence[Shared], coefficients: Sequence[float], bits: int) -> Shared:
    """The sum of coefficients[k] powers[k], with `bits` fraction bits more than the powers."""
    used = powers[: len(coefficients)]
    return combined(used, [int(public(coefficient, bits).view(np.int64)) for coefficient in coefficients])


def argument(s: Shared, fraction: int, offset: float, protocol: Protocol) -> Shared:
    """The value with `fraction` of ARGUMENT_BITS or fewer fraction bits, plus a constant, as an argument of `polynomial`."""
    scaled = s.times(1 << (ARGUMENT_BITS - fraction))
    return protocol.add_public(scaled, np.asarray(public(offset, ARGUMENT_BITS)))
