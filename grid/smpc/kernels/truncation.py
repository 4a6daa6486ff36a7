"""What the three roles compute in a truncation; the protocol, and the names, are those of `grid.smpc.replicated.truncation`.

`u` and `v` are given as they are before the "- 1" of u. Counts of wraps are needed mod 2**k only, so `g0` and `g1` are uint32
where k <= 32, and uint64 otherwise; `g_mask` is the modulus that they are kept in, less one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from grid.smpc.kernels.compiled import compiled
from grid.smpc.link import Words

Counts = npt.NDArray[Any]
"""uint32 or uint64."""


@compiled
def helper_counts(alpha: Words, beta: Words, g0: Counts, g_mask: np.uint64, g1: Counts) -> None:
    """H: g1 = alpha beta - g0."""
    for w in range(alpha.size):
        both = alpha[w] & beta[w]
        for b in range(64):
            e = 64 * w + b
            g1[e] = (((both >> np.uint64(b)) & np.uint64(1)) - np.uint64(g0[e])) & g_mask


@compiled
def first_bits(u: Words, alpha: Words, width: int, out: Words) -> None:
    """A: a xor alpha, where a = 1 if u - 1 - 2**(width - 2) mod 2**width is in the upper half."""
    top = np.uint64(width - 1)
    offset = np.uint64(1) + (np.uint64(1) << np.uint64(width - 2))
    for w in range(out.size):
        bits = np.uint64(0)
        for b in range(64):
            bits |= (((u[64 * w + b] - offset) >> top) & np.uint64(1)) << np.uint64(b)
        out[w] = bits ^ alpha[w]


@compiled
def second_bits(v: Words, beta: Words, width: int, out: Words) -> None:
    """B: c xor beta, where c = 1 if v is in the upper half."""
    top = np.uint64(width - 1)
    for w in range(out.size):
        bits = np.uint64(0)
        for b in range(64):
            bits |= ((v[64 * w + b] >> top) & np.uint64(1)) << np.uint64(b)
        out[w] = bits ^ beta[w]


@compiled
def second_part(
    v: Words, ea: Words, ec: Words, beta: Words, g1: Counts, y2: Words, k: int, width: int, mask: np.uint64, out: Words
) -> None:
    """B: t_B - y2, where t_B = (v >> k) - m_B 2**(width - k)."""
    one, shift, back = np.uint64(1), np.uint64(k), np.uint64(width - k)
    for w in range(ea.size):
        a_bits, c_bits, b_bits = ea[w], ec[w], beta[w]
        for b in range(64):
            e, q = 64 * w + b, np.uint64(b)
            a, c = (a_bits >> q) & one, (c_bits >> q) & one
            a_sign, c_sign = one - (a << one), one - (c << one)
            count = a * c_sign * ((b_bits >> q) & one) + a_sign * c_sign * np.uint64(g1[e])
            out[e] = (((v[e] & mask) >> shift) - (count << back) - y2[e]) & mask


@compiled
def first_part(
    u: Words, ea: Words, ec: Words, alpha: Words, g0: Counts, y0: Words, k: int, width: int, mask: np.uint64, out: Words
) -> None:
    """A: t_A - y0, where t_A = ((u - 1) >> k) - m_A 2**(width - k) + 1."""
    one, shift, back = np.uint64(1), np.uint64(k), np.uint64(width - k)
    quarter = one << np.uint64(width - 2)
    for w in range(ea.size):
        a_bits, c_bits, l_bits = ea[w], ec[w], alpha[w]
        for b in range(64):
            e, q = 64 * w + b, np.uint64(b)
            a, c = (a_bits >> q) & one, (c_bits >> q) & one
            a_sign, c_sign = one - (a << one), one - (c << one)
            below = (u[e] - one) & mask
            count = a * c + c * a_sign * ((l_bits >> q) & one) + a_sign * c_sign * np.uint64(g0[e]) + one
            count -= np.uint64(below < quarter)
            out[e] = ((below >> shift) - (count << back) + one - y0[e]) & mask
