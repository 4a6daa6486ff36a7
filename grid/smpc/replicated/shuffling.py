"""Items in an order that no party knows: three passes, each by a pair of parties that do not tell the third one.

    pass i    A and B draw a permutation from the key that they share. A permutes x0 + x1 and B permutes x2: no message
              A -> B: tA - y0;  B -> A: tB - y2;  y0 = F(k0) [A, H], y2 = F(k2) [B, H], and y1 is the sum of both messages

Roles rotate from pass to pass, so every party is once the one that does not know, and the order that results is uniform for
each of them. 3 rounds; 6 elements in all for an element of x.
"""

from __future__ import annotations

import numpy as np

from grid.smpc.kernels import arithmetic, permutations
from grid.smpc.link import Words
from grid.smpc.party import PARTIES, A, B, Operations, Party
from grid.smpc.shares import Shared

PERMUTATION, MASK = 16, 17
"""Purposes of keystreams."""

PASS_STEP = 0

_NOTHING = np.empty((0, 0, 0), np.uint64)


async def shuffle(party: Party, operations: Operations, x: Shared) -> Shared:
    """The items of each row in an order of their own: (rows, n, size of an item), contiguous."""
    for _ in range(PARTIES):
        x = await _one_pass(party, operations.take(), x)
    return x


async def _one_pass(party: Party, operation: int, x: Shared) -> Shared:
    role = party.role(operation)
    if role not in (A, B):
        return Shared(_mask(party, operation, 2, x), _mask(party, operation, 0, x))
    rows, n, _ = x.shape
    order = np.empty((rows, n), np.int64)
    permutations.orders(party.draw(1, operation, PERMUTATION, rows * n + permutations.SPARE_WORDS), order)
    hidden = _mask(party, operation, 0 if role == A else 2, x)
    ours = np.empty(x.shape, np.uint64)
    first, second = x.pair if role == A else (x.parts[1], _NOTHING)
    permutations.reordered_less(first, second, order, hidden, party.ring.mask, ours)
    other = party.at(operation, B if role == A else A)
    party.send(other, operation, PASS_STEP, ours.reshape(-1))
    theirs = await party.receive(other, operation, PASS_STEP, ours.size)
    arithmetic.add(ours.reshape(-1), theirs, party.ring.mask, theirs)
    both = theirs.reshape(x.shape)
    return Shared(hidden, both) if role == A else Shared(both, hidden)


def _mask(party: Party, operation: int, component: int, x: Shared) -> Words:
    return party.draw(component, operation, MASK, x.size).reshape(x.shape)
