"""Sorted numbers, and where they were, along an axis: `grid.smpc.order`."""

from __future__ import annotations

import numpy as np

from grid.smpc import order
from grid.smpc.numbers import Number
from grid.smpc.protocol import Protocol


async def sort(protocol: Protocol, x: Number, axis: int = -1, *, descending: bool = False) -> tuple[Number, Number]:
    """The items along an axis in order, and where they were; equal ones keep their order. Exact for |x| below 2**42 / n.

    9 rounds, and 8 for each level: one up to 128 items in all, about log4(n) for n in the thousands.
    """
    return await topk(protocol, x, x.shape[axis], axis, largest=descending)


async def topk(protocol: Protocol, x: Number, k: int, axis: int = -1, *, largest: bool = True) -> tuple[Number, Number]:
    """The k largest or smallest along an axis in order, and where they were; of equal ones the first comes first. Exact for |x|
    below 2**42 / n. 9 rounds, and 8 for each level, of which there are no more than for sorting."""
    rows = x.raw.each(lambda part: np.moveaxis(part, axis, -1))
    found = await order.topk(protocol, rows, k, largest=largest)
    values, indices = (one.each(lambda part: np.moveaxis(part, -1, axis)) for one in found)
    return Number(values, x.fraction), Number(indices, 0)
