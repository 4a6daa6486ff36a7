"""Secret bits back to ring elements, and choices by secret bits.

A bit b = b0 xor b1 xor b2 is u xor v with u = b0 xor b1, which A knows, and v = b2, which B and H know. A masked exchange
turns a value wB of B and one of H into a sharing of their sum: B -> H: wB - F(k1), H -> B: wH - F(k0), and
[wB + wH] = (F(k0), F(k1), the sum of both messages).
"""

from __future__ import annotations

import numpy as np

from grid.smpc.kernels import arithmetic, bits
from grid.smpc.link import Words
from grid.smpc.party import A, B, H, Operations, Party
from grid.smpc.replicated.chunks import CHUNK
from grid.smpc.replicated.multiplication import zero_draws
from grid.smpc.shares import Bits, Shared

SHARE, EXCHANGE = 16, 17
"""Purposes of keystreams."""

PRODUCT_STEP, SHARE_STEP, EXCHANGE_STEP = 0, 1, 2
"""Steps of messages."""

_NOTHING = np.empty(0, np.uint64)
_kept_zeros = np.zeros(CHUNK, np.uint64)


async def bit_to_number(party: Party, operations: Operations, b: Bits, out: Shared) -> None:
    """out = the bits of one plane as integers 0 and 1: u + v - 2 u v. 2 rounds, 3 elements in all, one sent by each party."""
    operation = operations.take()
    n, mask, role = out.size, party.ring.mask, party.role(operation)
    if role == A:
        u0, u1 = _share_first(party, operation, b, n)
        for part, u, purpose_of in zip(out.parts, (u0, u1), (0, 1), strict=True):
            bits.joined_bit(u, party.draw(purpose_of, operation, EXCHANGE, n), _NOTHING, False, mask, part)
        return
    v = b.parts[1 if role == B else 0][0]
    if role == B:
        u1 = await party.receive(party.at(operation, A), operation, SHARE_STEP, n)
        r1 = party.draw(1, operation, EXCHANGE, n)
        both = await _exchange(party, operation, H, _chosen(v, u1, _NOTHING, r1, mask))
        bits.joined_bit(u1, r1, v, False, mask, out.parts[0])
        bits.joined_bit(_zeros(n), both, v, True, mask, out.parts[1])
        return
    u0 = party.draw(0, operation, SHARE, n)
    r0 = party.draw(0, operation, EXCHANGE, n)
    both = await _exchange(party, operation, B, _chosen(v, u0, _NOTHING, r0, mask))
    bits.joined_bit(_zeros(n), both, v, True, mask, out.parts[0])
    bits.joined_bit(u0, r0, v, False, mask, out.parts[1])


async def choose(party: Party, operations: Operations, b: Bits, x: Shared, out: Shared) -> None:
    """out = x where the bit is 1, and 0 elsewhere: [v x] by an exchange while u is shared, then [v x] + u (x - 2 [v x]).

    Whatever x counts (fixed point or integers), no truncation. 2 rounds, 6 elements in all, two sent by each party.
    """
    operation = operations.take()
    n, mask, role = x.size, party.ring.mask, party.role(operation)
    if role == A:
        u0, u1 = _share_first(party, operation, b, n)
        u = (u0, u1)
        vx = (party.draw(0, operation, EXCHANGE, n), party.draw(1, operation, EXCHANGE, n))
    elif role == B:
        r1 = party.draw(1, operation, EXCHANGE, n)
        both = await _exchange(party, operation, H, _chosen(b.parts[1][0], x.parts[0], x.parts[1], r1, mask))
        u = (await party.receive(party.at(operation, A), operation, SHARE_STEP, n), _zeros(n))
        vx = (r1, both)
    else:
        r0 = party.draw(0, operation, EXCHANGE, n)
        both = await _exchange(party, operation, B, _chosen(b.parts[0][0], x.parts[1], _NOTHING, r0, mask))
        u = (_zeros(n), party.draw(0, operation, SHARE, n))
        vx = (both, r0)
    own, following = zero_draws(party, operation, n)
    bits.chosen_product(*vx, *u, *x.pair, own, following, mask, out.parts[0])
    party.send(party.preceding, operation, PRODUCT_STEP, out.parts[0])
    out.parts[1][:] = await party.receive(party.following, operation, PRODUCT_STEP, n)


def _share_first(party: Party, operation: int, b: Bits, n: int) -> tuple[Words, Words]:
    """A shares u = b0 xor b1 as (F(k0), u - F(k0), 0)."""
    u0 = party.draw(0, operation, SHARE, n)
    u1 = np.empty(n, np.uint64)
    bits.bits_less(b.parts[0][0] ^ b.parts[1][0], u0, party.ring.mask, u1)
    party.send(party.at(operation, B), operation, SHARE_STEP, u1)
    return u0, u1


def _chosen(v: Words, x: Words, y: Words, hidden: Words, mask: np.uint64) -> Words:
    out = np.empty(hidden.size, np.uint64)
    bits.chosen_less(v, x, y, hidden, mask, out)
    return out


async def _exchange(party: Party, operation: int, other: int, ours: Words) -> Words:
    """The sum of this party's masked value and that of the other role."""
    rank = party.at(operation, other)
    party.send(rank, operation, EXCHANGE_STEP, ours)
    theirs = await party.receive(rank, operation, EXCHANGE_STEP, ours.size)
    arithmetic.add(ours, theirs, party.ring.mask, ours)
    return ours


def _zeros(n: int) -> Words:
    """The component that is known to be 0, to be read only: one array for all blocks, which stays in the cache."""
    return _kept_zeros[:n] if n <= CHUNK else np.zeros(n, np.uint64)
