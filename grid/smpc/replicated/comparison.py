"""The sign of a secret: its most significant bit, by a prefix tree over groups of bit planes.

P0 knows m = x0 + x1, and P1 and P2 know n = x2; the top bit of m + n is their XOR there and the carry into it.

    rounds 1, 2   G and P of groups of four planes, 0 .. width - 2 (never the top one: the carry out of the plane below it is
                  wanted), see `groups`
    then          a tree over the groups: G' = Ghi xor (Phi & Glo), P' = Phi & Plo, both in one message; the lowest P' of a
                  level is never used

An odd top group passes a level unchanged. 2 + ceil(log2(ceil((width - 1) / 4))) rounds: 6 at width 64, with 46.6 bytes in all.
"""

from __future__ import annotations

import numpy as np

from grid.smpc.kernels import bits
from grid.smpc.party import Operations, Party
from grid.smpc.replicated import groups
from grid.smpc.replicated.groups import TREE_STEP, tree_draws
from grid.smpc.replicated.networks import tree_rows
from grid.smpc.shares import Bits, Shared


async def top_bit(party: Party, operations: Operations, x: Shared) -> Bits:
    """1 where x, as a signed integer, is negative. Flat, a multiple of 64 elements; one plane comes back.

    Exact for every x of the ring. 6 rounds, 46.6 bytes an element in all (width 64).
    """
    operation = operations.take()
    below = party.ring.width - 1
    given = await groups.addends(party, operation, x.pair, below + 1, below)
    gp = await groups.carries(party, operation, given, groups.whole(below, groups.GROUP))
    carry = await _carry_out(party, operation, gp, -(-below // groups.GROUP))
    top = groups.sums(party, operation, given, slice(-1, None), slice(below, None))
    return top ^ carry


async def _carry_out(party: Party, operation: int, gp: Bits, count: int) -> Bits:
    """The carry out of the highest of `count` groups, of which there are all G and then all P but the lowest: one plane."""
    words, level = gp.words, 0
    (g0, p0), (g1, p1) = ((part[:count], part[count:]) for part in gp.parts)
    top = (g0[0], g0[0], g1[0], g1[0])
    with_top, row = False, 0
    own, following = tree_draws(party, operation, tree_rows(count), words)
    while count + with_top > 1:
        if count % 2 and not with_top:
            count, with_top = count - 1, True
            top = (p0[count - 1], p1[count - 1], g0[count], g1[count])
        uses_top = with_top and count % 2 == 1
        pairs = (count + uses_top) // 2
        last = row + 2 * pairs - 1
        z = np.empty((last - row, words), np.uint64)
        bits.tree_level(
            g0, g1, p0, p1, top[2], top[0], top[1], uses_top, pairs,
            own[row:last], following[row:last], z,
        )  # fmt: skip
        party.send(party.preceding, operation, TREE_STEP + level, z.reshape(-1))
        received = (await party.receive(party.following, operation, TREE_STEP + level, z.size)).reshape(z.shape)
        g0, g1, p0, p1 = z[:pairs], received[:pairs], z[pairs:], received[pairs:]
        count, level, row = pairs, level + 1, last
        with_top = with_top and not uses_top
    return Bits(g0[:1], g1[:1])
