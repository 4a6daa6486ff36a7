"""The largest and smallest along an axis.

Groups of items are compared all pairs at once, and the one that beats all others of its group goes on: a whole small tensor is
one group, large ones go by pairs, as in a tournament. With groups of g items a level takes 8 + ceil(log2(g - 1)) rounds. Of
equal items the first one wins.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from grid.errors import InvalidRequest
from grid.smpc.functions.comparisons import conjunction
from grid.smpc.functions.rows import chosen, filled, numbers, row_signs
from grid.smpc.link import Words
from grid.smpc.numbers import Number
from grid.smpc.protocol import Protocol
from grid.smpc.shares import Bits, Shared, joined, joined_planes, stacked

Places = npt.NDArray[np.int64]

PAIRS_AT_ONCE = 1 << 15
"""Comparisons of one level, where groups have more than two items."""

FAR_BELOW = -(1 << 60)
"""In the ring: less than any value, for the padding of a max-pool."""


class Level(NamedTuple):
    """One level of a tournament: of `groups` groups of `size` items, plane k - 1 says whether item k won, for k from 1."""

    planes: Bits
    groups: int
    size: int


class Winners(NamedTuple):
    """Who won, level by level. Items after the groups of a level go on to the next one."""

    levels: tuple[Level, ...]


def group_size(items: int, columns: int) -> int:
    """How many of `items` are compared at once, with `columns` independent comparisons beside one another."""
    return max(2, min(items, 1 + 2 * PAIRS_AT_ONCE // max(1, items * -(-columns // 64) * 64)))


def level_rounds(items: int, columns: int) -> int:
    """Rounds until one of `items` is left."""
    rounds = 0
    while items > 1:
        size = group_size(items, columns)
        rounds += 8 + (size - 2).bit_length()
        items = items // size + items % size
    return rounds


async def largest(protocol: Protocol, x: Number, axis: int = -1) -> Number:
    """The largest along an axis. Exact. 8 + ceil(log2(n - 1)) rounds for n items of a small tensor, else 8 a level."""
    value, _, _ = await _winner(protocol, _items(x, axis), indexed=False)
    return Number(value.reshape(_without(x.shape, axis)), x.fraction)


async def smallest(protocol: Protocol, x: Number, axis: int = -1) -> Number:
    """The smallest along an axis. Exact. Rounds as for the largest."""
    found = await largest(protocol, Number(-x.raw, x.fraction), axis)
    return Number(-found.raw, x.fraction)


async def argmax(protocol: Protocol, x: Number, axis: int = -1) -> Number:
    """Where the largest along an axis is, the first of equal ones, without fraction bits. Exact. Rounds as for the largest."""
    items = _items(x, axis)
    n, columns = items.shape
    if 1 < n == group_size(n, columns):  # then nobody needs the largest itself
        index = await _index_of(protocol, await _hot(protocol, items), columns)
    else:
        _, index, _ = await _winner(protocol, items, indexed=True)
    return Number(index.reshape(_without(x.shape, axis)), 0)


async def argmin(protocol: Protocol, x: Number, axis: int = -1) -> Number:
    """Where the smallest along an axis is, the first of equal ones. Exact. Rounds as for the largest."""
    return await argmax(protocol, Number(-x.raw, x.fraction), axis)


async def max_with_index(protocol: Protocol, x: Number, axis: int = -1) -> tuple[Number, Number]:
    """Both the largest and where it is, as `torch.max` gives them. Exact. Rounds as for the largest."""
    value, index, _ = await _winner(protocol, _items(x, axis), indexed=True)
    shape = _without(x.shape, axis)
    return Number(value.reshape(shape), x.fraction), Number(index.reshape(shape), 0)


async def max_pool2d(
    protocol: Protocol,
    x: Number,
    kernel: tuple[int, int],
    *,
    stride: tuple[int, int] | None = None,
    padding: tuple[int, int] = (0, 0),
) -> Number:
    """The largest of each window of images (..., h, w). Exact. Rounds as for the largest of a window's items."""
    return (await pooled(protocol, x, kernel, stride=stride or kernel, padding=padding))[0]


async def pooled(
    protocol: Protocol, x: Number, kernel: tuple[int, int], *, stride: tuple[int, int], padding: tuple[int, int]
) -> tuple[Number, Winners]:
    """The same, and who won in each window."""
    taken = padded_windows(protocol, x, kernel, stride, padding)
    value, _, winners = await _winner(protocol, _items(taken, 0), indexed=False)
    return Number(value.reshape(taken.shape[1:]), x.fraction), winners


def padded_windows(
    protocol: Protocol, x: Number, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> Number:
    """Windows of images between what is less than any value. No message."""
    raw = x.raw
    if any(padding):
        (up, left), inside = padding, np.ones(x.shape[-2:], np.uint64)
        edges = [(0, 0)] * (len(x.shape) - 2) + [(up, up), (left, left)]
        outside = 1 - np.pad(inside, edges[-2:])
        raw = protocol.add_public(raw.each(lambda part: np.pad(part, edges)), outside * np.uint64(FAR_BELOW % (1 << 64)))
    return windows(Number(raw, x.fraction), kernel, stride)


def windows(x: Number, kernel: tuple[int, int], stride: tuple[int, int]) -> Number:
    """The windows of images (..., h, w) as (kh kw, ..., rows, columns). No message."""

    def take(part: Words) -> Words:
        views = np.lib.stride_tricks.sliding_window_view(part, kernel, (-2, -1))[..., :: stride[0], :: stride[1], :, :]
        lead = (kernel[0] * kernel[1],)
        return np.moveaxis(views, (-2, -1), (0, 1)).reshape(lead + views.shape[:-2])

    if any(size < width for size, width in zip(x.shape[-2:], kernel, strict=True)):
        raise InvalidRequest(f"a window of {kernel} does not fit into images of {x.shape[-2:]}")
    return x.each(take)


def put_back(
    part: Words, shape: tuple[int, ...], kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> Words:
    """What `windows` takes apart, (kh kw, ..., rows, columns), added up where it was in images of this shape. No message."""
    (up, left), (rows, columns) = padding, part.shape[-2:]
    whole = np.zeros((*shape[:-2], shape[-2] + 2 * up, shape[-1] + 2 * left), np.uint64)
    for place, one in enumerate(part):
        top, side = divmod(place, kernel[1])
        whole[..., top : top + rows * stride[0] : stride[0], side : side + columns * stride[1] : stride[1]] += one
    return whole[..., up : up + shape[-2], left : left + shape[-1]]


async def winners_of(protocol: Protocol, x: Number) -> Winners:
    """Who wins along axis 0. Rounds as for the largest."""
    return (await _winner(protocol, _items(x, 0), indexed=False))[2]


async def at_largest(protocol: Protocol, winners: Winners, value: Number) -> Number:
    """Along a new axis 0: `value`, which has the shape of the largest, where the first of the largest is, and 0 elsewhere. Exact.
    2 rounds a level: down from the last one, each group hands on what it has to the item that won."""
    held = value.raw.reshape((1, -1))
    columns = held.shape[1]
    for planes, count, size in reversed(winners.levels):
        own, rest = held[:count].reshape((count * columns,)), held[count:]
        won = await chosen(protocol, planes, [own] * (size - 1))
        first = own - functools.reduce(Shared.__add__, won)
        held = joined([_apart(stacked([first, *won]), count, size), rest])
    return Number(held.reshape((held.shape[0], *value.shape)), value.fraction)


def _items(x: Number, axis: int) -> Shared:
    """(n, everything else)."""
    if not x.shape or not x.shape[axis]:
        raise InvalidRequest(f"there is no largest of nothing: the shape is {x.shape}, the axis {axis}")
    return x.raw.each(lambda part: np.moveaxis(part, axis, 0).reshape(part.shape[axis], -1))


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    axis %= len(shape)
    return shape[:axis] + shape[axis + 1 :]


async def _winner(protocol: Protocol, x: Shared, *, indexed: bool) -> tuple[Shared, Shared, Winners]:
    """The largest of each column of (n, columns), its index where that is wanted, and who won."""
    n, columns = x.shape
    whole = np.broadcast_to(np.arange(n, dtype=np.uint64)[:, np.newaxis], (n, columns))
    index = protocol.constant(np.ascontiguousarray(whole))
    levels: list[Level] = []
    while x.shape[0] > 1:
        first = not levels
        n = x.shape[0]
        size = group_size(n, columns)
        count = n // size
        grouped = [_groups(value, count, size) for value in (x, index)]
        planes = await _hot(protocol, grouped[0])
        levels.append(Level(planes, count, size))
        taken = [value[k] - value[0] for value in (grouped if indexed and not first else grouped[:1]) for k in range(1, size)]
        # The first level's indices are public, so that its bits need to become numbers only.
        if indexed and first:
            offsets, picked = await protocol.together(
                lambda mine, planes=planes, shape=grouped[0].shape[1:]: numbers(mine, planes, shape),  # type: ignore[misc]
                lambda mine, planes=planes, taken=taken: chosen(mine, planes, taken),  # type: ignore[misc]
            )
            steps = np.arange(1, size, dtype=np.uint64)[:, np.newaxis]
            moved = offsets.times(steps).each(lambda part: part.sum(0, dtype=np.uint64))
        else:
            copies = joined_planes([planes, planes]) if indexed else planes
            picked = await chosen(protocol, copies, taken)
            moved = functools.reduce(Shared.__add__, picked[size - 1 :]) if indexed else grouped[1][0] - grouped[1][0]
        value = grouped[0][0] + functools.reduce(Shared.__add__, picked[: size - 1])
        rest = count * size
        x = joined([value.reshape((count, columns)), x[rest:]])
        index = joined([(grouped[1][0] + moved).reshape((count, columns)), index[rest:]])
    return x[0], index[0], Winners(tuple(levels))


async def _index_of(protocol: Protocol, hot: Bits, columns: int) -> Shared:
    """k + 1 where plane k is the one that is 1, 0 where none is: few bits, for a bit of it is the XOR of planes. 2 rounds."""
    width = hot.planes.bit_length()
    planes = [[k for k in range(hot.planes) if (k + 1) >> bit & 1] for bit in range(width)]
    bits = hot.each(lambda part: np.stack([np.bitwise_xor.reduce(part[taken], axis=0) for taken in planes]))
    powers = np.left_shift(np.uint64(1), np.arange(width, dtype=np.uint64))[:, np.newaxis]
    return (await numbers(protocol, bits, (columns,))).times(powers).each(lambda part: part.sum(0, dtype=np.uint64))


def _groups(x: Shared, count: int, size: int) -> Shared:
    """(n, columns) as (size, count * columns): item k of each group of neighbours is in row k."""
    columns = x.shape[1]

    def arrange(part: Words) -> Words:
        return part[: count * size].reshape(count, size, columns).swapaxes(0, 1).reshape(size, -1)

    return x.each(arrange)


def _apart(x: Shared, count: int, size: int) -> Shared:
    """What `_groups` puts together, as it was."""
    return x.each(lambda part: part.reshape(size, count, -1).swapaxes(0, 1).reshape(count * size, -1))


async def _hot(protocol: Protocol, x: Shared) -> Bits:
    """Plane k - 1: item k of (size, columns) is the first of the largest ones, for k from 1. 6 + ceil(log2(size - 1)) rounds."""
    size = x.shape[0]
    early, late, wins = _pairs(size)
    beaten = await row_signs(protocol, filled(x[early] - x[late]))  # the earlier one is less than the later one
    return await conjunction(protocol, joined_planes([beaten, protocol.invert(beaten)])[wins], size - 1)


@functools.cache
def _pairs(size: int) -> tuple[Places, Places, Places]:
    """All pairs of items, the earlier and the later one; and which of these and of their opposites say that item k wins: of
    each item from 1 the first such pair, then of each the second, and so on."""
    early, late = np.triu_indices(size, 1)
    place = np.zeros((size, size), np.int64)
    place[early, late] = place[late, early] = np.arange(early.size)
    # Item k beats an earlier one where that is less, and a later one where k is not less.
    wins = np.array([[place[k, i] + (early.size if i > k else 0) for i in range(size) if i != k] for k in range(1, size)])
    return early, late, wins.T.reshape(-1)
