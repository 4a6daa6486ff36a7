"""Products of replicated sharings (Araki et al., CCS 2016): local products, a zero share, one message."""

from __future__ import annotations

import numpy as np

from grid.smpc.kernels import arithmetic
from grid.smpc.link import Words
from grid.smpc.party import Operations, Party
from grid.smpc.shares import Bits, Shared

OWN_ZERO = 0
"""Purposes of keystreams, per operation."""


async def multiply(party: Party, operations: Operations, x: Shared, y: Shared, add: Shared | None = None) -> Shared:
    """x y + add mod 2**width, elementwise; flat arrays of one length. 1 round, 1 element sent by each party."""
    operation = operations.take()
    z = local_product(party, operation, x, y, add)
    return await reshare(party, operation, z)


async def conjunction(party: Party, operations: Operations, x: Bits, y: Bits) -> Bits:
    """x AND y, bit by bit; equal shapes. 1 round, 1 bit sent by each party."""
    operation = operations.take()
    shape = x.parts[0].shape
    own, following = zero_draws(party, operation, x.parts[0].size)
    (x0, x1), (y0, y1) = _flat(x), _flat(y)
    z = np.empty(own.size, np.uint64)
    arithmetic.conjunction(x0, x1, y0, y1, own, following, z)
    party.send(party.preceding, operation, 0, z)
    received = await party.receive(party.following, operation, 0, z.size)
    return Bits(z.reshape(shape), received.reshape(shape))


def local_product(party: Party, operation: int, x: Shared, y: Shared, add: Shared | None = None) -> Words:
    """This party's addend of x y + add, hidden by its zero share; the three of them add up to it."""
    own, following = zero_draws(party, operation, x.size)
    z = np.empty(x.size, np.uint64)
    arithmetic.product(*x.pair, *y.pair, own, following, party.ring.mask, z)
    if add is not None:
        arithmetic.add(z, add.parts[0], party.ring.mask, z)
    return z


def zero_draws(party: Party, operation: int, count: int) -> tuple[Words, Words]:
    """F(k_i) and F(k_(i+1)), whose differences (or XORs) of the three parties cancel."""
    # Components are given as those of roles: party i's own is (i - operation) mod 3 of this operation.
    role = party.role(operation)
    return party.draw(role, operation, OWN_ZERO, count), party.draw(role + 1, operation, OWN_ZERO, count)


async def reshare(party: Party, operation: int, z: Words) -> Shared:
    """The sharing whose component i is z_i: it goes to P_(i-1). 1 round, 1 element."""
    party.send(party.preceding, operation, 0, z)
    return Shared(z, await party.receive(party.following, operation, 0, z.size))


def _flat(x: Bits) -> tuple[Words, Words]:
    first, second = (np.ascontiguousarray(part).reshape(-1) for part in x.parts)
    return first, second
