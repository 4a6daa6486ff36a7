"""Sums and products of numbers, with their scales: integers and booleans have no fraction bits and need no truncation.

Operands broadcast. A product of two numbers with fractions is truncated back to FRACTION_BITS, rounded to a neighbour: an
error below 2**-18 beside those of the operands. Products before their truncation must stay below 2**26 in size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from grid.errors import InvalidRequest
from grid.smpc.link import Words
from grid.smpc.numbers import Number, public
from grid.smpc.protocol import FRACTION_BITS, Protocol
from grid.smpc.shares import Shared, joined

FACTOR_BITS = 22
"""Significant bits of a public factor."""

FINE_BITS = 40
"""Fraction bits of squares that are summed up: a square below 2**-18 is not lost. Values stay below 64 in size."""

FINE_PRODUCT_BITS = 56
"""Fraction bits of a number with more than FRACTION_BITS, and significant bits of its factor, together at most."""

MOST_FACTOR_BITS = 50
"""Fraction bits of a public factor, however small it is."""

LARGEST_FACTOR = 42


async def add(protocol: Protocol, x: Number, y: Number) -> Number:
    """x + y. Exact. 0 rounds."""
    return _combined(x, y, Shared.__add__)


async def subtract(protocol: Protocol, x: Number, y: Number) -> Number:
    """x - y. Exact. 0 rounds."""
    return _combined(x, y, Shared.__sub__)


def _combined(x: Number, y: Number, combine: Callable[[Shared, Shared], Shared]) -> Number:
    """A sum; numpy's broadcasts by itself."""
    fraction = _fraction(x, y)
    try:
        return Number(combine(x.with_fraction(fraction).raw, y.with_fraction(fraction).raw), fraction)
    except ValueError:
        raise InvalidRequest(f"shapes {x.shape} and {y.shape} do not broadcast") from None


async def multiply(protocol: Protocol, x: Number, y: Number) -> Number:
    """x y. Error below 2**-18, none where one has no fraction. 3 rounds, 1 where one has no fraction."""
    x, y = _together(x, y)
    return Number(await protocol.multiply(x.raw, y.raw, _excess(x, y)), _fraction(x, y))


async def multiply_public(protocol: Protocol, x: Number, factor: npt.ArrayLike) -> Number:
    """x times a public number or array of them. A factor has 22 significant bits, one of an array 18 fraction bits if that is
    more: error 2**-22 of the result, and 2**-18 (1 + |x| / 2). |x| < 2**21, |x factor| < 2**25. 2 rounds, 0 for whole factors,
    which are exact."""
    by = np.asarray(factor)
    shape = np.broadcast_shapes(x.shape, by.shape)
    x = x.each(lambda part: np.broadcast_to(part, shape))
    if by.dtype.kind in "iub":
        return Number(x.raw.times(np.asarray(by.astype(np.int64)).view(np.uint64)), x.fraction)
    x = x.with_fraction(max(x.fraction, FRACTION_BITS))
    largest = float(np.abs(by).max(initial=0.0))
    if not largest < 2.0**LARGEST_FACTOR:  # written so that NaN fails it, too
        raise InvalidRequest(f"a public factor is not finite, or not smaller than 2**{LARGEST_FACTOR}")
    if x.fraction > FRACTION_BITS and by.ndim == 0 and abs(by - 1) < 0.25:  # a decay, whose distance from 1 matters
        return await add(protocol, x, await multiply_public(protocol, x, by - 1))
    significant = min(FACTOR_BITS, FINE_PRODUCT_BITS - x.fraction)
    bits = min(significant - (math.frexp(largest)[1] if largest else 0), MOST_FACTOR_BITS)
    bits = max(bits, FRACTION_BITS) if by.ndim else max(bits, 0)
    factors = public(by, bits)
    spare = min(bits, _trailing_zeros(factors))
    product = x.raw.times(np.asarray(factors.view(np.int64) >> spare).view(np.uint64))
    return Number(await protocol.truncate(product, bits - spare) if bits > spare else product, x.fraction)


def _trailing_zeros(words: Words) -> int:
    """Of all words."""
    together = int(np.bitwise_or.reduce(words, axis=None)) if words.size else 0
    return (together & -together).bit_length() - 1 if together else 64


async def add_product(protocol: Protocol, x: Number, y: Number, z: Number, factor: float = 1.0) -> Number:
    """x + y z factor, of a public factor with 16 significant bits, at FINE_BITS. |y z| < 1024, and all sums below 2**20; error
    2**-38, and 2**-16 of the product. 3 rounds, 1 for whole factors, which are exact."""
    y, z = _together(fixed(y), fixed(z))
    product = Number(await protocol.multiply(y.raw, z.raw), 2 * FRACTION_BITS)
    more = FINE_BITS - product.fraction
    if factor == int(factor):
        product = Number(product.raw.times(int(factor)), product.fraction)
    else:
        bits = FINE_PRODUCT_BITS - FINE_BITS - math.frexp(factor)[1]
        scaled = product.raw.times(public(factor, bits))
        if bits > more:
            product = Number(await protocol.truncate(scaled, bits - more), FINE_BITS)
        else:
            product = Number(scaled, product.fraction + bits)
    return await add(protocol, x, product.with_fraction(FINE_BITS))


async def divide_public(protocol: Protocol, x: Number, divisor: npt.ArrayLike) -> Number:
    """x divided by a public number or array of them, as a product with 1 / divisor: see `multiply_public`. 2 rounds.

    Divisors of very different sizes get both the first bits of each 1 / divisor and the next ones, at the same time: error 2**-22
    of the result, and 2**-17. Raises `InvalidRequest` for a divisor of 0.
    """
    by = np.asarray(divisor, np.float64)
    if not by.all():
        raise InvalidRequest("a division by zero: a public divisor is 0")
    factor = 1.0 / by
    if factor.ndim == 0 or not factor.size or np.abs(factor).max() <= 2 * np.abs(factor).min():
        return await multiply_public(protocol, x, factor)
    first = np.rint(factor * 2.0**FRACTION_BITS) / 2.0**FRACTION_BITS
    parts = await protocol.together(
        lambda mine: multiply_public(mine, x, first), lambda mine: multiply_public(mine, x, factor - first)
    )
    return Number(parts[0].with_fraction(FRACTION_BITS).raw + parts[1].with_fraction(FRACTION_BITS).raw)


async def matmul(protocol: Protocol, x: Number, y: Number) -> Number:
    """x @ y for matrices (m, k) and (k, n), or batches of them (b, m, k) and (b, k, n). Error below 2**-18, none where one has no
    fraction. 3 rounds, 1 where one has no fraction."""
    if len(x.shape) not in (2, 3) or x.shape[:-2] != y.shape[:-2] or x.shape[-1] != y.shape[-2]:
        raise InvalidRequest(f"a matrix product takes (m, k) and (k, n), not {x.shape} and {y.shape}")
    return Number(await protocol.matmul(x.raw, y.raw, _excess(x, y)), _fraction(x, y))


async def conv2d(
    protocol: Protocol,
    x: Number,
    w: Number,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    groups: int = 1,
) -> Number:
    """The cross-correlation of images (n, c, h, w) with filters (o, c / groups, kh, kw). Error below 2**-18. 3 rounds."""
    made = await protocol.conv2d(x.raw, w.raw, stride=stride, padding=padding, truncate=_excess(x, w), groups=groups)
    return Number(made, _fraction(x, w))


async def mapped(protocol: Protocol, x: Number, linear: Callable[[Words], Words], fraction: int) -> Number:
    """A linear map whose public factors have `fraction` bits: a product with a public matrix, say, or a convolution with public
    filters. Each component goes through it by itself. Error below 2**-18, and of the factors 2**-19 for each |x|. 2 rounds, 0
    where one has no fraction."""
    excess = min(x.fraction, fraction)
    product = x.raw.each(linear)
    return Number(await protocol.truncate(product, excess) if excess else product, max(x.fraction, fraction))


async def total(protocol: Protocol, x: Number, axis: int | Sequence[int] | None = None, *, keepdims: bool = False) -> Number:
    """The sum over axes, or over all of them. Exact. 0 rounds."""
    return x.each(lambda part: np.asarray(part.sum(axis=_axes(axis), keepdims=keepdims, dtype=np.uint64)))


async def mean(protocol: Protocol, x: Number, axis: int | Sequence[int] | None = None, *, keepdims: bool = False) -> Number:
    """The mean over axes, or over all of them. |sum| < 2**32; error 2**-22 of the mean, and 2**-17. 2 rounds.

    The first half of the bits of 1 / n and the second half are factors of their own, for sums are large.
    """
    summed = await total(protocol, fixed(x), axis, keepdims=keepdims)
    n = x.raw.size // max(1, summed.raw.size)
    if n & (n - 1) == 0:  # 1 / n has one bit; none for nothing
        return await divide_public(protocol, summed, n)
    first = _rounded(1 / n, n.bit_length() - 1 + FACTOR_BITS // 2)
    second = _rounded(1 / n - first, n.bit_length() - 1 + FACTOR_BITS)
    parts = await protocol.together(
        lambda mine: multiply_public(mine, summed, first), lambda mine: multiply_public(mine, summed, second)
    )
    return await add(protocol, *parts)


def _rounded(value: float, bits: int) -> float:
    return math.ldexp(round(math.ldexp(value, bits)), -bits)


async def variance(
    protocol: Protocol, x: Number, axis: int | Sequence[int] | None = None, *, correction: int = 1, keepdims: bool = False
) -> Number:
    """The variance over axes, the sum of squared distances from the mean over n - correction.

    |x| < 2**21 / n, and the variance below 2048. Error 2**-16 sqrt(1 + variance), of any n. 5 rounds.
    """
    _, spread, _ = await centred(protocol, x, axis, correction=correction)
    return spread if keepdims else spread.each(lambda part: part.squeeze(_axes(axis)))


async def squared_norm(
    protocol: Protocol, x: Number, axis: int | Sequence[int] | None = None, *, keepdims: bool = False
) -> Number:
    """The sum of squares over axes, or over all of them: below 2**25. Error below 2**-18. 3 rounds."""
    x = fixed(x)
    summed = await total(protocol, Number(await protocol.multiply(x.raw, x.raw), 2 * x.fraction), axis, keepdims=keepdims)
    return Number(await protocol.truncate(summed.raw, x.fraction), x.fraction)


async def inner(protocol: Protocol, x: Number, y: Number, axis: int | Sequence[int], *, keepdims: bool = False) -> Number:
    """The sum of products over axes: below 2**25. Error below 2**-18. 3 rounds, 1 where one has no fraction."""
    x, y = _together(x, y)
    products = Number(await protocol.multiply(x.raw, y.raw), x.fraction + y.fraction)
    summed, excess = await total(protocol, products, axis, keepdims=keepdims), _excess(x, y)
    return Number(await protocol.truncate(summed.raw, excess) if excess else summed.raw, _fraction(x, y))


async def cumulative(protocol: Protocol, x: Number, axis: int) -> Number:
    """Sums of all items up to each one along an axis. Exact. 0 rounds."""
    return x.each(lambda part: np.cumsum(part, axis, dtype=np.uint64))


async def product(protocol: Protocol, x: Number, axis: int) -> Number:
    """The product along an axis, by pairs. Error below 2**-18, times what it is multiplied with, for each pair. ceil(log2 n)
    levels of 3 rounds, 1 for integers."""
    items = x.raw.each(lambda part: np.moveaxis(part, axis, 0))
    while items.shape[0] > 1:
        half = items.shape[0] // 2
        made = await protocol.multiply(items[:half], items[half : 2 * half], x.fraction)
        items = joined([made, items[2 * half :]])
    return Number(items[0], x.fraction)


CENTRED_BITS = 24
"""Fraction bits of what is squared for a variance."""


async def centred(
    protocol: Protocol, x: Number, axis: int | Sequence[int] | None, *, correction: int = 0
) -> tuple[Number, Number, Number]:
    """x less its mean over axes, its variance and its mean, which keep these axes. 5 rounds.

    The distances are scaled by 1 / sqrt(n - correction) before they are squared, so that the sum of squares is the variance.
    """
    x = fixed(x)
    summed = await total(protocol, x, axis, keepdims=True)
    n = x.raw.size // max(1, summed.raw.size)
    if n - correction < 1:
        raise InvalidRequest(f"a variance of {n} values with correction {correction} divides by {n - correction}")
    apart = x.raw.times(n) - summed.raw.each(lambda part: np.broadcast_to(part, x.shape))
    bits = FACTOR_BITS + (n - 1).bit_length()
    scale = 2.0 ** (CENTRED_BITS - FRACTION_BITS)
    both = [apart.times(public(1 / n, bits)), apart.times(public(scale / n / math.sqrt(n - correction), bits))]
    level = summed.raw.times(public(1 / n, bits))
    distances, scaled, average = await protocol.together(
        lambda mine: mine.truncate(both[0], bits),
        lambda mine: mine.truncate(both[1], bits),
        lambda mine: mine.truncate(level, bits),
    )
    squares = await protocol.multiply(scaled, scaled)
    spread = squares.each(lambda part: np.asarray(part.sum(axis=_axes(axis), keepdims=True, dtype=np.uint64)))
    return Number(distances), Number(await protocol.truncate(spread, 2 * CENTRED_BITS - FRACTION_BITS)), Number(average)


def fixed(x: Number) -> Number:
    """The same value at FRACTION_BITS. No message."""
    return x.with_fraction(FRACTION_BITS)


def aligned(x: Number, y: Number) -> tuple[Number, Number]:
    """Both with the same fraction bits and shape. No message."""
    fraction = max(x.fraction, y.fraction)
    return _together(x.with_fraction(fraction), y.with_fraction(fraction))


def _together(x: Number, y: Number) -> tuple[Number, Number]:
    if x.shape == y.shape:
        return x, y
    try:
        shape = np.broadcast_shapes(x.shape, y.shape)
    except ValueError:
        raise InvalidRequest(f"shapes {x.shape} and {y.shape} do not broadcast") from None
    return x.each(lambda part: np.broadcast_to(part, shape)), y.each(lambda part: np.broadcast_to(part, shape))


def _fraction(x: Number, y: Number) -> int:
    return max(x.fraction, y.fraction)


def _excess(x: Number, y: Number) -> int:
    """Bits to truncate a product by: it then has as many as the operand with more."""
    return min(x.fraction, y.fraction)


def _axes(axis: int | Sequence[int] | None) -> int | tuple[int, ...] | None:
    return axis if axis is None or isinstance(axis, int) else tuple(axis)


def broadcast(x: Shared, shape: tuple[int, ...]) -> Shared:
    """Repeated along axes of length 1. No message."""
    return x if x.shape == shape else x.each(lambda part: np.broadcast_to(part, shape))
