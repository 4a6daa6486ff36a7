"""Whether a secret is zero: m = -n, where P0 knows m = x0 + x1, and P1 and P2 know n = x2.

    round 1   m is shared by XOR as (s0, s1, 0); then e = not (m xor -x2) = (not s0, s1, -x2), all ones where x = 0
    then      an AND-tree over all planes of e

1 + ceil(log2(width)) rounds: 7 at width 64, with 31.6 bytes in all.
"""

from __future__ import annotations

import numpy as np

from grid.smpc.kernels import arithmetic
from grid.smpc.link import Words
from grid.smpc.party import A, Operations, Party
from grid.smpc.replicated.comparison import TREE_STEP, level_draws, sum_planes
from grid.smpc.shares import Bits, Shared


async def is_zero(party: Party, operations: Operations, x: Shared) -> Bits:
    """1 where x = 0, for every x of the ring. Flat, a multiple of 64 elements; one plane comes back."""
    operation = operations.take()
    role = party.role(operation)
    e = await sum_planes(party, operation, x.pair if role == A else (-x.parts[0], -x.parts[1]), party.ring.width)
    e0, e1 = (~part if (role + place) % 3 == 0 else part for place, part in enumerate(e.parts))
    level = 0
    while len(e0) > 1:
        half = len(e0) // 2
        own, following = level_draws(party, operation, level, half * e.words)
        z = np.empty(half * e.words, np.uint64)
        (x0, y0), (x1, y1) = _halves(e0, half), _halves(e1, half)
        arithmetic.conjunction(x0, x1, y0, y1, own, following, z)
        party.send(party.preceding, operation, TREE_STEP + level, z)
        received = await party.receive(party.following, operation, TREE_STEP + level, z.size)
        e0, e1 = (_with_odd(rows.reshape(half, -1), part[2 * half :]) for rows, part in ((z, e0), (received, e1)))
        level += 1
    return Bits(e0, e1)


def _halves(planes: Words, half: int) -> tuple[Words, Words]:
    return planes[:half].reshape(-1), planes[half : 2 * half].reshape(-1)


def _with_odd(rows: Words, odd: Words) -> Words:
    """The last of an odd number of planes passes a level unchanged."""
    return np.concatenate([rows, odd]) if len(odd) else rows
