"""Division by a power of two, without catastrophic failures.

Local truncation of shares is wrong by 2**(width - k) with a probability that grows with the value. Here the two carries that
it gets wrong are computed: A knows u = x0 + x1 - 1 and B knows v = x2, and x - 1 + 2**(width - 2) = u + v wraps or not.

    offline  alpha = a bit of F(k0) [A, H];  beta = a bit of F(k2) [B, H];  g0 = F(k0) mod 2**w, w >= k [A, H]
             H -> B: g1 = alpha beta - g0 mod 2**w
    round 1  A -> B: ea = a xor alpha, a = 1{(u - 2**(width-2)) mod 2**width >= 2**(width-1)}
             B -> A: ec = c xor beta, c = 1{v >= 2**(width-1)}
             with sa = 1 - 2 ea and sc = 1 - 2 ec, the counts of wraps mA and mB, whose sum is a c + 1 - 1{u < 2**(width-2)}:
             A: mA = ea ec + ec sa alpha + sa sc g0 + 1 - 1{u < 2**(width-2)};   B: mB = ea sc beta + sa sc g1
             A: tA = (u >> k) - mA 2**(width-k) + 1;   B: tB = (v >> k) - mB 2**(width-k)
    round 2  y0 = F(k0) [A, H], y2 = F(k2) [B, H];  A -> B: tA - y0;  B -> A: tB - y2;  y1 is their sum

Domain: |x| <= 2**(width-2) as a signed integer. The result less floor(x / 2**k) is 0 or 1, its mean is exactly x / 2**k, and
multiples of 2**k are exact: it is stochastic rounding whose threshold the adversary may know (u mod 2**k for A, v mod 2**k for
B and H). After SecretFlow SPU's TruncAPr2 and "On Probabilistic Truncation in Privacy-Preserving Machine Learning" (AAAI 2025).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from grid.smpc.kernels import arithmetic, truncation
from grid.smpc.link import Words
from grid.smpc.party import A, B, H, Operations, Party
from grid.smpc.replicated.multiplication import local_product
from grid.smpc.shares import Shared

ALPHA, BETA, COUNTS, MASK = 8, 9, 10, 11
"""Purposes of keystreams. A product of the same operation has others."""

FROM_HELPER, FROM_A, FROM_B, LAST = 8, 9, 10, 11
"""Steps of messages."""


async def truncate(party: Party, operations: Operations, x: Shared, k: int, out: Shared) -> None:
    """out = x / 2**k, rounded to one of its neighbours; flat arrays of a multiple of 64 elements.

    2 rounds; 2 elements, 2 bits and 32 bits (64 where k > 32) on the wire in all.
    """
    operation = operations.take()
    role = party.role(operation)
    if role == A:
        u = np.empty(x.size, np.uint64)
        arithmetic.add(*x.pair, party.ring.mask, u)
        await _as_a(party, operation, u, k, out, fused=False)
    elif role == B:
        await _as_b(party, operation, x.parts[1], k, out)
    else:
        _as_helper(party, operation, x.size, k, out, None)


async def multiply_truncate(
    party: Party, operations: Operations, x: Shared, y: Shared, k: int, out: Shared, add: Shared | None = None
) -> None:
    """out = (x y + add) / 2**k; flat arrays of a multiple of 64 elements.

    3 rounds; 3 elements, 2 bits and 32 bits (64 where k > 32) on the wire in all.
    """
    operation = operations.take()
    await truncate_product(party, operation, local_product(party, operation, x, y, add), k, out)


async def truncate_product(party: Party, operation: int, z: Words, k: int, out: Shared) -> None:
    """out = (z0 + z1 + z2) / 2**k from the parties' addends of a product: u = z0 - 1, and B gets v = z1 + z2 by one message."""
    role = party.role(operation)
    if role == A:
        await _as_a(party, operation, z, k, out, fused=True)
    elif role == B:
        await _as_b_of_product(party, operation, z, k, out)
    else:
        _as_helper(party, operation, z.size, k, out, z)


async def _as_a(party: Party, operation: int, u: Words, k: int, out: Shared, *, fused: bool) -> None:
    n, words, ring, b = u.size, u.size // 64, party.ring, party.at(operation, B)
    alpha = party.draw(0, operation, ALPHA, words)
    ea = np.empty(words, np.uint64)
    truncation.first_bits(u, alpha, ring.width, ea)
    party.send(b, operation, FROM_A, ea)
    g0 = party.draw(0, operation, COUNTS, _count_words(n, k)).view(_count_type(k))
    y0 = party.draw(0, operation, MASK, n)
    from_b = await party.receive(b, operation, FROM_B, words + n if fused else words)
    ours = np.empty(n, np.uint64)
    truncation.first_part(u, ea, from_b[:words], alpha, g0, y0, k, ring.width, ring.mask, ours)
    party.send(b, operation, LAST, ours)
    theirs = from_b[words:] if fused else await party.receive(b, operation, LAST, n)
    out.parts[0][:] = y0
    arithmetic.add(ours, theirs, ring.mask, out.parts[1])


async def _as_b(party: Party, operation: int, v: Words, k: int, out: Shared) -> None:
    n, words, ring, a = v.size, v.size // 64, party.ring, party.at(operation, A)
    beta = party.draw(2, operation, BETA, words)
    ec = np.empty(words, np.uint64)
    truncation.second_bits(v, beta, ring.width, ec)
    party.send(a, operation, FROM_B, ec)
    g1 = await party.receive(party.at(operation, H), operation, FROM_HELPER, _count_words(n, k))
    ea = await party.receive(a, operation, FROM_A, words)
    ours = np.empty(n, np.uint64)
    y2 = _second_part(party, operation, v, ea, ec, beta, g1, k, ours)
    party.send(a, operation, LAST, ours)
    arithmetic.add(ours, await party.receive(a, operation, LAST, n), ring.mask, out.parts[0])
    out.parts[1][:] = y2


async def _as_b_of_product(party: Party, operation: int, z: Words, k: int, out: Shared) -> None:
    n, words, ring, a = z.size, z.size // 64, party.ring, party.at(operation, A)
    beta = party.draw(2, operation, BETA, words)
    from_helper = await party.receive(party.at(operation, H), operation, FROM_HELPER, n + _count_words(n, k))
    v, g1 = from_helper[:n], from_helper[n:]
    arithmetic.add(z, v, ring.mask, v)
    message = np.empty(words + n, np.uint64)
    ec, ours = message[:words], message[words:]
    truncation.second_bits(v, beta, ring.width, ec)
    ea = await party.receive(a, operation, FROM_A, words)
    y2 = _second_part(party, operation, v, ea, ec, beta, g1, k, ours)
    party.send(a, operation, FROM_B, message)
    arithmetic.add(ours, await party.receive(a, operation, LAST, n), ring.mask, out.parts[0])
    out.parts[1][:] = y2


def _second_part(
    party: Party, operation: int, v: Words, ea: Words, ec: Words, beta: Words, g1: Words, k: int, ours: Words
) -> Words:
    """B's t_B - y2 into `ours`; gives y2."""
    y2 = party.draw(2, operation, MASK, v.size)
    counts = g1.view(_count_type(k))
    truncation.second_part(v, ea, ec, beta, counts, y2, k, party.ring.width, party.ring.mask, ours)
    return y2


def _as_helper(party: Party, operation: int, n: int, k: int, out: Shared, z: Words | None) -> None:
    """H sends what it knows beforehand, with its addend of a product, and is done."""
    own = 0 if z is None else n
    message = np.empty(own + _count_words(n, k), np.uint64)
    if z is not None:
        message[:own] = z
    alpha, beta = party.draw(0, operation, ALPHA, n // 64), party.draw(2, operation, BETA, n // 64)
    g0 = party.draw(0, operation, COUNTS, _count_words(n, k)).view(_count_type(k))
    truncation.helper_counts(alpha, beta, g0, _count_mask(party, k), message[own:].view(_count_type(k)))
    party.send(party.at(operation, B), operation, FROM_HELPER, message)
    out.parts[0][:] = party.draw(2, operation, MASK, n)
    out.parts[1][:] = party.draw(0, operation, MASK, n)


def _count_type(k: int) -> type[Any]:
    return np.uint32 if k <= 32 else np.uint64


def _count_words(n: int, k: int) -> int:
    return n // 2 if k <= 32 else n


def _count_mask(party: Party, k: int) -> np.uint64:
    """Counts are kept mod 2**32 or 2**64 in the ring that is used; smaller rings, which are enumerated, have fewer values."""
    if party.ring.width < 64:
        return np.uint64((1 << k) - 1)
    return np.uint64(0xFFFFFFFF if k <= 32 else 0xFFFFFFFFFFFFFFFF)
