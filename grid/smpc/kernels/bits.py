"""Bits of many elements at once: planes, and the prefix tree over them.

`planes[j]` holds bit j of all elements, packed. The transposition works on 64 x 64 blocks (Hacker's Delight, 7-3), eight of
them side by side, which the compiler turns into vector instructions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from grid.smpc.kernels.compiled import compiled
from grid.smpc.link import Words

Indices = npt.NDArray[np.int64]
"""Numbers of planes."""

_BLOCKS = 8


@compiled
def slice_bits(x: Words, y: Words, out: Words) -> None:
    """The lowest `out.shape[0]` bit planes of x + y. Pass an empty `y` for those of x alone."""
    planes, words = out.shape
    with_y = y.size > 0
    block = np.empty((64, _BLOCKS), np.uint64)
    for first in range(0, words, _BLOCKS):
        count = min(_BLOCKS, words - first)
        for c in range(count):
            at = (first + c) * 64
            if with_y:
                for b in range(64):
                    block[b, c] = x[at + b] + y[at + b]
            else:
                for b in range(64):
                    block[b, c] = x[at + b]
        half = 32
        low = np.uint64(0x00000000FFFFFFFF)
        while half != 0:
            row = 0
            while row < 64:
                for c in range(_BLOCKS):
                    swap = ((block[row, c] >> np.uint64(half)) ^ block[row + half, c]) & low
                    block[row + half, c] ^= swap
                    block[row, c] ^= swap << np.uint64(half)
                row = (row + half + 1) & ~half
            half >>= 1
            low ^= low << np.uint64(half)
        for plane in range(planes):
            for c in range(count):
                out[plane, first + c] = block[plane, c]


@compiled
def tree_level(
    g0: Words,
    g1: Words,
    p0: Words,
    p1: Words,
    top_g: Words,
    top_p0: Words,
    top_p1: Words,
    with_top: bool,
    pairs: int,
    own: Words,
    following: Words,
    out: Words,
) -> None:
    """This party's part of one level of the prefix tree: rows of G' for `pairs` pairs of planes, then of P' for all but the
    lowest pair, whose P' nothing uses.

    Plane j of P is row j - 1 of `p0`, `p1`. With `with_top`, the upper plane of the last pair is the one that an
    earlier level has passed on unchanged.
    """
    words = out.shape[1]
    for r in range(pairs):
        low, high = 2 * r, 2 * r + 1
        if with_top and r == pairs - 1:
            gh, ph0, ph1 = top_g, top_p0, top_p1
        else:
            gh, ph0, ph1 = g0[high], p0[high - 1], p1[high - 1]
        gl0, gl1 = g0[low], g1[low]
        g_own, g_following, g_out = own[r], following[r], out[r]
        for w in range(words):
            g_out[w] = gh[w] ^ (ph0[w] & (gl0[w] ^ gl1[w])) ^ (ph1[w] & gl0[w]) ^ g_own[w] ^ g_following[w]
        if r > 0:
            pl0, pl1 = p0[low - 1], p1[low - 1]
            at = pairs + r - 1
            p_own, p_following, p_out = own[at], following[at], out[at]
            for w in range(words):
                p_out[w] = (ph0[w] & (pl0[w] ^ pl1[w])) ^ (ph1[w] & pl0[w]) ^ p_own[w] ^ p_following[w]


@compiled
def prefix_level(
    g0: Words,
    g1: Words,
    p0: Words,
    p1: Words,
    high: Indices,
    low: Indices,
    skipped: int,
    first_p: int,
    own: Words,
    following: Words,
    out: Words,
) -> None:
    """This party's part of one level of the prefix network: rows of G' for the planes `high`, each taking in its plane of
    `low`, then of P' for those from `first_p` on, which later levels use. Plane j of P is row j - `skipped` of `p0`, `p1`."""
    planes, words = high.size, out.shape[1]
    for r in range(planes):
        gh, ph0, ph1 = g0[high[r]], p0[high[r] - skipped], p1[high[r] - skipped]
        gl0, gl1 = g0[low[r]], g1[low[r]]
        g_own, g_following, g_out = own[r], following[r], out[r]
        for w in range(words):
            g_out[w] = gh[w] ^ (ph0[w] & (gl0[w] ^ gl1[w])) ^ (ph1[w] & gl0[w]) ^ g_own[w] ^ g_following[w]
        if r >= first_p:
            pl0, pl1 = p0[low[r] - skipped], p1[low[r] - skipped]
            at = planes + r - first_p
            p_own, p_following, p_out = own[at], following[at], out[at]
            for w in range(words):
                p_out[w] = (ph0[w] & (pl0[w] ^ pl1[w])) ^ (ph1[w] & pl0[w]) ^ p_own[w] ^ p_following[w]


@compiled
def bits_less(bits: Words, hidden: Words, mask: np.uint64, out: Words) -> None:
    """Each bit as a ring element, less `hidden`."""
    for w in range(bits.size):
        word = bits[w]
        for b in range(64):
            e = 64 * w + b
            out[e] = (((word >> np.uint64(b)) & np.uint64(1)) - hidden[e]) & mask


@compiled
def chosen_less(bits: Words, x: Words, y: Words, hidden: Words, mask: np.uint64, out: Words) -> None:
    """x + y where the bit is 1 and 0 elsewhere, less `hidden`. Pass an empty `y` for x alone."""
    with_y = y.size > 0
    for w in range(bits.size):
        word = bits[w]
        for b in range(64):
            e = 64 * w + b
            all_ones = np.uint64(0) - ((word >> np.uint64(b)) & np.uint64(1))
            value = x[e] + y[e] if with_y else x[e]
            out[e] = ((all_ones & value) - hidden[e]) & mask


@compiled
def chosen_product(
    v0: Words, v1: Words, u0: Words, u1: Words, x0: Words, x1: Words, own: Words, following: Words, mask: np.uint64, out: Words
) -> None:
    """This party's part of [v x] + u (x - 2 [v x]): the bit u xor v times x. `v0`, `v1` are the components of [v x]."""
    two = np.uint64(2)
    for e in range(out.size):
        a, b = x0[e] - two * v0[e], x1[e] - two * v1[e]
        out[e] = (v0[e] + u0[e] * (a + b) + u1[e] * a + own[e] - following[e]) & mask


@compiled
def joined_bit(u: Words, uv: Words, bits: Words, with_bits: bool, mask: np.uint64, out: Words) -> None:
    """One component of u + v - 2 u v; the packed bits v count where this component holds v."""
    two = np.uint64(2)
    for w in range(out.size // 64):
        word = bits[w] if with_bits else np.uint64(0)
        for b in range(64):
            e = 64 * w + b
            out[e] = (u[e] + ((word >> np.uint64(b)) & np.uint64(1)) - two * uv[e]) & mask
