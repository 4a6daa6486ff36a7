"""Sorting secrets: sort, argsort and the k largest or smallest, along the last axis.

The items of each row are shuffled, in an order of its own that no party knows; then they are sorted by comparisons whose
results are opened. An item is compared by its value and, where values are equal, by its index before the shuffle, which goes
along as a secret: so all items of a row differ.

What the parties learn: the results of these comparisons, thus which *shuffled* position comes before which. That is the order
of distinct items in an order uniform over all n!, whatever the values are (equal ones included), so it says nothing about them,
and could be drawn by anybody. How many rounds there are, and how large the messages are, follows from it and says no more.
Rows are compared with themselves only, and their orders are independent: nothing shows how one row relates to another.

All rows go side by side. In each level every unfinished segment is divided by a few pivots at once, more where there is little
to compare, since a level has 8 rounds (7 of the comparison, 1 of the opening) however much it compares. Levels: about
log4(n) for n in the thousands, one up to 128 items in all. After MAX_LEVELS of them, which chance never brings, whatever is left
is compared in full.

What is compared is ordered for all ring elements, by signs that are worked out once (6 rounds) where a difference would wrap:
else the results for values beyond the domain could contradict each other, which all parties would see and the client could time.
So values beyond it come out in a wrong order, and nothing else shows.

Domain: |x| < 2**(62 - ceil(log2 n)) as integers, for the items of a row of n.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from grid.errors import WireError
from grid.smpc.packing import pack, unpack
from grid.smpc.protocol import Protocol
from grid.smpc.shares import Bits, Shared, stacked

Indices = npt.NDArray[np.int64]

FEWEST_PIVOTS = 3
"""In each segment of a level."""

WORTH = 1 << 14
"""Comparisons that cost about as much as the rounds of a level."""

MAX_LEVELS = 64


class Ordered(NamedTuple):
    """The items in order, and where each of them was, as integers."""

    values: Shared
    indices: Shared


async def sort(protocol: Protocol, x: Shared, *, descending: bool = False) -> Ordered:
    """The items of each row (..., n) in order; equal ones keep theirs. 9 rounds, and 8 for each level."""
    return await topk(protocol, x, x.shape[-1], largest=descending)


async def argsort(protocol: Protocol, x: Shared, *, descending: bool = False) -> Shared:
    """The indices that sort each row (..., n), as integers; those of equal items rise."""
    return (await sort(protocol, x, descending=descending)).indices


async def topk(protocol: Protocol, x: Shared, k: int, *, largest: bool = True) -> Ordered:
    """The k largest or smallest items of each row (..., n), in order: (..., k). Of equal ones the first comes first.

    Raises `ValueError` unless 0 <= k <= n.
    """
    n = x.shape[-1]
    if not 0 <= k <= n:
        raise ValueError(f"topk of {n} items wants a k from 0 to {n}, not {k}")
    places = np.broadcast_to(np.arange(n, dtype=np.uint64), x.shape).copy()
    items = stacked([x, protocol.constant(places)], axis=-1).reshape((math.prod(x.shape[:-1]), n, 2))
    if n > 1 and k > 0:
        items = await protocol.shuffle(items, axis=1)
        values, indices = items[:, :, 0], items[:, :, 1]
        keys = (-values if largest else values).times(1 << (n - 1).bit_length()) + indices
        order = await _order(protocol, keys, k)
        items = items.each(lambda part: np.take_along_axis(part, order[:, :, None], 1))
    items = items[:, :k].reshape((*x.shape[:-1], k, 2))
    return Ordered(items[..., 0], items[..., 1])


async def _order(protocol: Protocol, keys: Shared, k: int) -> Indices:
    """Which items of each row (rows, n) of distinct, shuffled keys come first to k-th: (rows, k)."""
    rows, n = keys.shape
    comparable = await _Comparable.of(protocol, keys.flat())
    order = np.arange(rows * n)
    starts = order // n * n  # the first place of the segment that each place belongs to
    level = 0
    while (unfinished := _unfinished(starts, n, k)).size:
        level += 1
        if level > MAX_LEVELS + 1:
            raise WireError("opened comparisons contradict each other: a party does not follow the protocol")
        pivots = max(FEWEST_PIVOTS, WORTH // unfinished.size) if level <= MAX_LEVELS else n
        offsets = unfinished - starts[unfinished]
        # Places are compared with those of the first `pivots` of their segment that come before them.
        later = np.repeat(np.arange(unfinished.size), np.minimum(offsets, pivots))
        earlier = starts[unfinished[later]] + _counted(np.minimum(offsets, pivots))
        less = await comparable.less(protocol, order[earlier], order[unfinished[later]])
        bucket = _buckets(unfinished, offsets, later, earlier, less, pivots)
        moved = np.lexsort((bucket, starts[unfinished]))
        order[unfinished] = order[unfinished][moved]
        bucket = bucket[moved]
        begins = np.flatnonzero(np.r_[True, (np.diff(bucket) != 0) | (np.diff(starts[unfinished]) != 0)])
        lengths = np.diff(np.r_[begins, unfinished.size])
        starts[unfinished] = np.repeat(unfinished[begins], lengths)
    return (order % n).reshape(rows, n)[:, :k]


def _unfinished(starts: Indices, n: int, k: int) -> Indices:
    """The places of segments of more than one item that reach into the first k places of their row."""
    lengths = np.bincount(starts, minlength=starts.size)
    return np.flatnonzero((lengths[starts] > 1) & (starts % n < k))


def _counted(counts: Indices) -> Indices:
    """0 .. c - 1 for each c of `counts`."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1]) - np.repeat(ends - counts, counts)


def _buckets(
    unfinished: Indices, offsets: Indices, later: Indices, earlier: Indices, less: npt.NDArray[np.bool_], pivots: int
) -> Indices:
    """Where each place goes in its segment: 2 r + 1 for the pivot of rank r, 2 r for what lies between two of them."""
    smaller = np.bincount(later, less, unfinished.size).astype(np.int64)  # pivots below
    is_pivot = offsets < pivots
    of_pivots = is_pivot[later]
    at = np.searchsorted(unfinished, earlier[of_pivots])
    smaller += np.bincount(at, ~less[of_pivots], unfinished.size).astype(np.int64)
    return 2 * smaller + is_pivot


class _Comparable(NamedTuple):
    """Secret integers with their signs, one bit an element: of two with different signs the negative one is less, and the
    difference of two others does not wrap. So this is an order, whatever they are."""

    keys: Shared
    signs: Sequence[npt.NDArray[np.uint8]]

    @classmethod
    async def of(cls, protocol: Protocol, keys: Shared) -> _Comparable:
        """6 rounds."""
        signs = await protocol.negative(keys)
        return cls(keys, [unpack(part, keys.size)[0] for part in signs.parts])

    async def less(self, protocol: Protocol, x: Indices, y: Indices) -> npt.NDArray[np.bool_]:
        """Whether the elements at `x` are less than those at `y`, opened. 8 rounds."""
        wrapped = await protocol.negative(self.keys[x] - self.keys[y])
        negative, other = self._signs_at(x), self._signs_at(y)
        differ = await protocol.conjunction(negative ^ other, wrapped ^ negative)
        less: npt.NDArray[np.bool_] = unpack(await protocol.open_bits(wrapped ^ differ), x.size)[0] == 1
        return less

    def _signs_at(self, places: Indices) -> Bits:
        return Bits(*(pack(part[np.newaxis, places]) for part in self.signs))
