"""Large tensors in pieces: cache-sized blocks, a few of them under way, each with operation numbers of its own.

While one block waits for its messages others compute. Kernels want flat arrays of a multiple of 64 elements; the last block is
filled up with zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from grid.smpc.link import Words
from grid.smpc.packing import padded
from grid.smpc.party import Operations
from grid.smpc.shares import Bits, Shared
from grid.smpc.steps import Work, pipeline

CHUNK = 1 << 16
"""Elements of a block."""

DEPTH = 4
"""Blocks under way at a time."""

Value = Shared | Bits


def empty_shared(count: int) -> Shared:
    return Shared(np.empty(count, np.uint64), np.empty(count, np.uint64))


def empty_bits(planes: int, count: int) -> Bits:
    """Planes of `count` elements, a multiple of 64."""
    shape = (planes, count // 64)
    return Bits(np.empty(shape, np.uint64), np.empty(shape, np.uint64))


async def in_chunks(
    operations: Operations,
    kernel: Callable[[Operations, Sequence[Value], Value], Work[None]],
    inputs: Sequence[Value],
    count: int,
    out: Value,
) -> None:
    """Run `kernel(operations, inputs, out)`, of one operation number, over all `count` elements.

    Inputs are flat with `count` elements, or planes of that many; `out` has room for `padded(count)`.
    """
    if count <= CHUNK:
        whole = inputs if count == padded(count) else [_piece(value, 0, padded(count), count) for value in inputs]
        await kernel(operations, whole, out)
        return
    starts = range(0, padded(count), CHUNK)
    works = []
    for mine, start in zip(operations.split(len(starts), 1), starts, strict=True):
        stop = min(start + CHUNK, padded(count))
        works.append(kernel(mine, [_piece(value, start, stop, count) for value in inputs], _place(out, start, stop)))
    await pipeline(works, DEPTH)


def _piece(value: Value, start: int, stop: int, count: int) -> Value:
    if isinstance(value, Bits):
        return Bits(*(part[:, start // 64 : stop // 64] for part in value.parts))
    return Shared(*(_filled(part, start, stop, count) for part in value.parts))


def _filled(part: Words, start: int, stop: int, count: int) -> Words:
    if stop <= count:
        return part[start:stop]
    filled = np.zeros(stop - start, np.uint64)
    filled[: count - start] = part[start:count]
    return filled


def _place(out: Value, start: int, stop: int) -> Value:
    if isinstance(out, Bits):
        return Bits(*(part[:, start // 64 : stop // 64] for part in out.parts))
    return Shared(*(part[start:stop] for part in out.parts))
