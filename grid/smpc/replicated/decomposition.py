"""The bits of a secret: all carries of the sum of its components, by Sklansky's prefix network over groups of bit planes.

G and P within groups of four planes come after two rounds, see `groups`. At level l each plane of a group whose number has bit l
set takes in the last plane of the group below its block, (group >> l << l) - 1:

    G_j' = G_j xor (P_j & G_low),  P_j' = P_j & P_low, which is left out once group < 2**(l + 1), since nothing uses it

Then bit j = p_j xor G_(j-1). For `count` bits the planes 0 .. count - 2 are needed: 2 + ceil(log2(ceil((count - 1) / 4))) rounds,
which is 6 at 64 bits; 1 round for one bit.
"""

from __future__ import annotations

import numpy as np

from grid.smpc.kernels import bits
from grid.smpc.link import Words
from grid.smpc.party import Operations, Party
from grid.smpc.replicated import groups
from grid.smpc.replicated.groups import TREE_STEP, tree_draws
from grid.smpc.replicated.networks import network
from grid.smpc.shares import Bits, Shared


async def decompose(party: Party, operations: Operations, x: Shared, count: int) -> Bits:
    """The lowest `count` bits of x, lowest first; flat, a multiple of 64 elements."""
    operation = operations.take()
    below, group = count - 1, groups.GROUP
    given = await groups.addends(party, operation, x.pair, count, below)
    p = groups.sums(party, operation, given, groups.single_rows(below, group), slice(None))
    if not below:
        return p
    g, p_of_groups = _halves(await groups.carries(party, operation, given, groups.every(below, group)), below)
    levels, row = network(below, group), 0
    own, following = tree_draws(party, operation, sum(level.rows for level in levels), p.words)
    for number, (high, low, first_p) in enumerate(levels):
        last = row + levels[number].rows
        z = np.empty((last - row, p.words), np.uint64)
        bits.prefix_level(*g, *p_of_groups, high, low, group, first_p, own[row:last], following[row:last], z)
        party.send(party.preceding, operation, TREE_STEP + number, z.reshape(-1))
        received = (await party.receive(party.following, operation, TREE_STEP + number, z.size)).reshape(z.shape)
        for g_part, p_part, rows in zip(g, p_of_groups, (z, received), strict=True):
            g_part[high] = rows[: high.size]
            p_part[high[first_p:] - group] = rows[high.size :]
        row = last
    return Bits(*(_with_carries(part, carries) for part, carries in zip(p.parts, g, strict=True)))


def _halves(gp: Bits, planes: int) -> tuple[tuple[Words, Words], tuple[Words, Words]]:
    """G of all planes and P of the rest, both to be written to."""
    (g0, p0), (g1, p1) = ((part[:planes].copy(), part[planes:].copy()) for part in gp.parts)
    return (g0, g1), (p0, p1)


def _with_carries(p: Words, carries: Words) -> Words:
    made = p.copy()
    made[1:] ^= carries
    return made
