"""What layers of a network need beyond activations: pooling, normalisations, embeddings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from grid.errors import InvalidRequest
from grid.smpc.functions.arithmetic import add, broadcast, centred, divide_public, fixed, inner, multiply, subtract, total
from grid.smpc.functions.extremes import windows
from grid.smpc.functions.inverses import rsqrt
from grid.smpc.functions.rows import filled, numbers
from grid.smpc.numbers import Number, public
from grid.smpc.protocol import FRACTION_BITS, Protocol
from grid.smpc.shares import Shared


async def avg_pool2d(
    protocol: Protocol,
    x: Number,
    kernel: tuple[int, int],
    *,
    stride: tuple[int, int] | None = None,
    padding: tuple[int, int] = (0, 0),
) -> Number:
    """The mean of each window of images (..., h, w); padding counts as zeros. |x| < 2**12; error 2**-21 of the result, and
    4e-6. 2 rounds."""
    (up, left) = padding
    edges = [(0, 0)] * (len(x.shape) - 2) + [(up, up), (left, left)]
    taken = windows(x.each(lambda part: np.pad(part, edges)), kernel, stride or kernel)
    return await divide_public(protocol, await total(protocol, taken, 0), math.prod(kernel))


async def batch_norm(
    protocol: Protocol,
    x: Number,
    average: Number,
    variance: Number,
    weight: Number | None = None,
    bias: Number | None = None,
    *,
    eps: float = 1e-5,
) -> Number:
    """(x - average) / sqrt(variance + eps) weight + bias by channel, axis 1, with the running statistics (evaluation).

    variance + eps from 2**-10 to 2**18; error that of 1 / sqrt, times |x - average| (1 + |weight|), and 4e-6.
    Rounds: those of rsqrt on the channels, 3 with a weight, and 3.
    """
    scale = await rsqrt(protocol, plus_public(protocol, variance, eps))
    if weight is not None:
        scale = await multiply(protocol, scale, fixed(weight))
    shape = (-1,) + (1,) * (len(x.shape) - 2)

    def by_channel(value: Number) -> Number:
        return value.each(lambda part: part.reshape(shape))

    apart = await subtract(protocol, fixed(x), by_channel(average))
    made = await multiply(protocol, apart, by_channel(scale))
    return made if bias is None else await add(protocol, made, by_channel(bias))


async def layer_norm(
    protocol: Protocol,
    x: Number,
    weight: Number | None = None,
    bias: Number | None = None,
    *,
    axes: Sequence[int] = (-1,),
    eps: float = 1e-5,
) -> Number:
    """(x - mean) / sqrt(variance + eps) weight + bias over the last axes.

    |x| < 2**21 / n, variance + eps from 2**-6 to 2048; error 2e-3 (4e-4 where it is 1 or more) times 1 + |weight|.
    Rounds: 5, those of rsqrt on the rows, 3, and 3 with a weight.
    """
    made = (await normalised(protocol, x, tuple(axes), eps)).value
    if weight is not None:
        made = await multiply(protocol, made, fixed(weight))
    return made if bias is None else await add(protocol, made, bias)


class Normalised(NamedTuple):
    """A number less its mean over axes, times `scale`, which is 1 / sqrt(variance + eps). Statistics keep these axes."""

    value: Number
    mean: Number
    variance: Number
    scale: Number


async def normalised(protocol: Protocol, x: Number, axes: Sequence[int], eps: float) -> Normalised:
    """As `layer_norm` without weight and bias, and what it was made with. Rounds: 5, those of rsqrt on the statistics, and 3."""
    distances, variance, average = await centred(protocol, x, axes)
    scale = await rsqrt(protocol, plus_public(protocol, variance, eps))
    return Normalised(await multiply(protocol, distances, scale), average, variance, scale)


async def through_norm(
    protocol: Protocol, grad: Number, x: Number, average: Number, scale: Number, axes: Sequence[int]
) -> Number:
    """The gradient for x of (x - its mean over axes) times its scale, from that of the result.

    (n g - sum(g) - y sum(g y)) / n scale, of the result y: divided last, so that no rounding is the same for a whole mean, which
    sums of gradients would show n times. |g| < 2**21 / n. Error 2**-17 scale. 14 rounds.
    """
    grad = fixed(grad)
    y = await multiply(protocol, await subtract(protocol, fixed(x), average), scale)
    n = x.raw.size // max(1, average.raw.size)
    level = await total(protocol, grad, axes, keepdims=True)
    along = await multiply(protocol, y, await inner(protocol, grad, y, axes, keepdims=True))
    left = await subtract(protocol, await subtract(protocol, Number(grad.raw.times(n)), level), along)
    return await multiply(protocol, await divide_public(protocol, left, n), scale)


async def embedding(protocol: Protocol, index: Number, table: Number) -> Number:
    """Rows of a secret table (n, width) by secret indices, integers from 0 to n - 1; zeros for any other. Exact. 9 rounds."""
    hot = await one_hot(protocol, index, table.shape[0])
    flat = hot.raw.reshape((-1, table.shape[0]))
    made = await protocol.matmul(flat, table.raw)
    return Number(made.reshape((*index.shape, table.shape[1])), table.fraction)


async def one_hot(protocol: Protocol, index: Number, classes: int) -> Number:
    """Integers as 0 and 1 along a new last axis; all 0 for one that is no class. Exact. 8 rounds."""
    if not classes:
        raise InvalidRequest("one-hot numbers, and so rows by secret positions, need one class or row at least")
    flat = index.raw.reshape((1, -1))
    spread = filled(broadcast(flat, (classes, flat.shape[1])))
    apart = protocol.add_public(spread, -(np.arange(classes, dtype=np.uint64)[:, np.newaxis] << np.uint64(index.fraction)))
    same = (await protocol.is_zero(apart)).each(lambda part: part.reshape(classes, -1))
    made: Shared = await numbers(protocol, same, index.shape)
    return Number(made.each(lambda part: np.moveaxis(part, 0, -1)), 0)


def plus_public(protocol: Protocol, x: Number, value: float) -> Number:
    """x + value. No message."""
    return Number(protocol.add_public(fixed(x).raw, public(value, FRACTION_BITS)))
