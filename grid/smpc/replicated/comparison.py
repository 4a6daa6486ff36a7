"""The sign of a secret: its most significant bit, by a prefix tree over bit planes.

P0 knows m = x0 + x1, and P1 and P2 know n = x2; the top bit of m + n is their XOR there and the carry into it.

    round 1   m is shared by XOR as (s0, s1, 0): s0 = F(k0) [P0, P2], P0 -> P1: s1 = m xor s0. n is (0, 0, x2)
    round 2   p = m xor n is local; g = m and n: P1 -> P2: eB = (s1 & x2) xor F(k1); P2 -> P1: eH = (s0 & x2) xor F(k0);
              g = (F(k0), F(k1), eB xor eH)
    then      a tree over planes 0 .. width - 2 (never the top one: the carry out of the plane below it is wanted):
              G' = Ghi xor (Phi & Glo), P' = Phi & Plo, both in one message; the lowest P' of a level is never used

An odd top plane passes a level unchanged. 2 + ceil(log2(width - 1)) rounds: 8 at width 64, with 68 bytes in all.
"""

from __future__ import annotations

import numpy as np

from grid.smpc.kernels import bits
from grid.smpc.link import Words
from grid.smpc.party import A, B, H, Operations, Party
from grid.smpc.shares import Bits, Shared

SHARE, CARRY, TREE = 16, 17, 32
"""Purposes of keystreams; level l of the tree uses TREE + l."""

SHARE_STEP, CARRY_STEP, TREE_STEP = 0, 1, 2
"""Steps of messages."""

_NOTHING = np.empty(0, np.uint64)


async def top_bit(party: Party, operations: Operations, x: Shared) -> Bits:
    """1 where x, as a signed integer, is negative. Flat, a multiple of 64 elements; one plane comes back.

    Exact for every x of the ring. 8 rounds, 68 bytes an element in all (width 64).
    """
    operation = operations.take()
    p, g = await generate_propagate(party, operation, x, party.ring.width)
    top = p.planes - 1
    carry = await _carry_out(party, operation, p, g)
    return Bits(*(part[top:] ^ own for part, own in zip(p.parts, carry.parts, strict=True)))


async def generate_propagate(party: Party, operation: int, x: Shared, planes: int) -> tuple[Bits, Bits]:
    """The lowest `planes` bits of p = m xor n, and all but the highest of these of g = m and n. 2 rounds."""
    p = await sum_planes(party, operation, x.pair, planes)
    shape = (planes - 1, p.words)
    role = party.role(operation)
    if role == A:
        return p, Bits(*(_hidden_carries(party, operation, component, shape) for component in (0, 1)))
    other = party.at(operation, H if role == B else B)
    hidden = _hidden_carries(party, operation, 1 if role == B else 0, shape)
    ours = np.empty(shape, np.uint64)
    bits.and_mask(*p.pair, hidden, ours)
    party.send(other, operation, CARRY_STEP, ours.reshape(-1))
    g2 = ours ^ (await party.receive(other, operation, CARRY_STEP, ours.size)).reshape(shape)
    return p, Bits(hidden, g2) if role == B else Bits(g2, hidden)


async def sum_planes(party: Party, operation: int, x: tuple[Words, Words], planes: int) -> Bits:
    """The lowest planes of m xor n, as (s0, s1, x2). 1 round. Where B and H pass their x2 negated, it is m xor -n."""
    role = party.role(operation)
    sliced = np.empty((planes, x[0].size // 64), np.uint64)
    if role == A:
        bits.slice_bits(*x, sliced)
        s0 = party.draw(0, operation, SHARE, sliced.size).reshape(sliced.shape)
        s1 = np.bitwise_xor(sliced, s0, out=sliced)
        party.send(party.at(operation, B), operation, SHARE_STEP, s1.reshape(-1))
        return Bits(s0, s1)
    bits.slice_bits(x[1 if role == B else 0], _NOTHING, sliced)
    if role == B:
        s1 = await party.receive(party.at(operation, A), operation, SHARE_STEP, sliced.size)
        return Bits(s1.reshape(sliced.shape), sliced)
    return Bits(sliced, party.draw(0, operation, SHARE, sliced.size).reshape(sliced.shape))


def _hidden_carries(party: Party, operation: int, component: int, shape: tuple[int, int]) -> Words:
    return party.draw(component, operation, CARRY, shape[0] * shape[1]).reshape(shape)


async def _carry_out(party: Party, operation: int, p: Bits, g: Bits) -> Bits:
    """The carry out of the highest plane of g: one plane."""
    words = g.words
    count, skipped, level = g.planes, 0, 0
    g0, g1 = g.parts
    p0, p1 = p.parts
    top = (p0[0], p1[0], g0[0], g1[0])
    with_top = False
    while count + with_top > 1:
        if count % 2 and not with_top:
            count, with_top = count - 1, True
            top = (p0[count - skipped], p1[count - skipped], g0[count], g1[count])
        uses_top = with_top and count % 2 == 1
        pairs = (count + uses_top) // 2
        rows = 2 * pairs - 1
        own, following = level_draws(party, operation, level, rows * words)
        z = np.empty((rows, words), np.uint64)
        bits.tree_level(
            g0, g1, p0, p1, skipped, top[2], top[0], top[1], uses_top, pairs,
            own.reshape(rows, words), following.reshape(rows, words), z,
        )  # fmt: skip
        party.send(party.preceding, operation, TREE_STEP + level, z.reshape(-1))
        received = (await party.receive(party.following, operation, TREE_STEP + level, z.size)).reshape(z.shape)
        g0, g1, p0, p1 = z[:pairs], received[:pairs], z[pairs:], received[pairs:]
        count, skipped, level = pairs, 1, level + 1
        with_top = with_top and not uses_top
    return Bits(g0[:1], g1[:1])


def level_draws(party: Party, operation: int, level: int, count: int) -> tuple[Words, Words]:
    role = party.role(operation)
    return party.draw(role, operation, TREE + level, count), party.draw(role + 1, operation, TREE + level, count)
