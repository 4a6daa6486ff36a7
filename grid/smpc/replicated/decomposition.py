"""The bits of a secret: all carries of the sum of its components, by Sklansky's prefix network over bit planes.

The inputs are those of `comparison`: p = m xor n and g = m and n, after two rounds. At level l each plane j whose number has
bit l set takes in the plane below its block, (j >> l << l) - 1:

    G_j' = G_j xor (P_j & G_low),  P_j' = P_j & P_low, which is left out once j < 2**(l + 1), since nothing uses it

Then bit j = p_j xor G_(j-1). For `count` bits the planes 0 .. count - 2 are needed: 2 + ceil(log2(count - 1)) rounds, which is
8 at 64 bits, with 140 bytes in all; 1 round for one bit.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from grid.smpc.kernels import bits
from grid.smpc.party import Operations, Party
from grid.smpc.replicated.comparison import TREE_STEP, generate_propagate, level_draws, sum_planes
from grid.smpc.shares import Bits, Shared


class Level(NamedTuple):
    """One level of the network."""

    high: bits.Indices
    """The planes that change."""

    low: bits.Indices
    """The plane that each of these takes in."""

    first_p: int
    """From which of these on P is used later."""

    @property
    def rows(self) -> int:
        """Bits that one party sends for an element."""
        return 2 * self.high.size - self.first_p


@cache
def network(planes: int) -> list[Level]:
    """The levels over so many planes."""
    levels = []
    for level in range((planes - 1).bit_length()):
        high = np.array([j for j in range(planes) if j >> level & 1], np.int64)
        levels.append(Level(high, (high >> level << level) - 1, int(np.count_nonzero(high < 2 << level))))
    return levels


async def decompose(party: Party, operations: Operations, x: Shared, count: int) -> Bits:
    """The lowest `count` bits of x, lowest first; flat, a multiple of 64 elements."""
    operation = operations.take()
    if count == 1:
        return await sum_planes(party, operation, x.pair, 1)
    p, g = await generate_propagate(party, operation, x, count)
    g0, g1 = g.parts
    p0, p1 = (part[:-1].copy() for part in p.parts)
    for number, (high, low, first_p) in enumerate(levels := network(count - 1)):
        shape = (levels[number].rows, p.words)
        own, following = (draw.reshape(shape) for draw in level_draws(party, operation, number, shape[0] * shape[1]))
        z = np.empty(shape, np.uint64)
        bits.prefix_level(g0, g1, p0, p1, high, low, first_p, own, following, z)
        party.send(party.preceding, operation, TREE_STEP + number, z.reshape(-1))
        received = (await party.receive(party.following, operation, TREE_STEP + number, z.size)).reshape(shape)
        for g_part, p_part, rows in ((g0, p0, z), (g1, p1, received)):
            g_part[high] = rows[: high.size]
            p_part[high[first_p:]] = rows[high.size :]
    for part, carries in zip(p.parts, (g0, g1), strict=True):
        part[1:] ^= carries
    return p
