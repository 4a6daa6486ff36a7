"""Groups of neighbouring bit planes that are added at once: products of one addend's bits, and sums of such products.

m + n is added by groups of r planes. Of m there are all products of bits of a group, one row for each non-empty subset of its
planes: row `subset - 1` of the group, whose bit k says that plane k is in it. The carry out of a group, and whether it hands
on a carry, are sums of such rows with coefficients that hang on n alone.
"""

from __future__ import annotations

import numpy as np

from grid.smpc.kernels.bits import Indices
from grid.smpc.kernels.compiled import compiled
from grid.smpc.link import Words

_BLOCK = 256
"""Words that are handled side by side, so that what is between a group's rows and its result stays in the cache."""


@compiled
def products(planes: Words, grouped: int, group: int, hidden: Words, out: Words) -> None:
    """All products of the bits in each group of the first `grouped` planes, then the other planes as they are; XOR `hidden`."""
    words, row = planes.shape[1], 0
    for first in range(0, grouped, group):
        size = min(group, grouped - first)
        for k in range(size):
            at, plane = row + (1 << k) - 1, planes[first + k]
            for w in range(words):
                out[at, w] = plane[w]
            for rest in range(1, 1 << k):
                for w in range(words):
                    out[at + rest, w] = out[row + rest - 1, w] & plane[w]
        last = row + (1 << size) - 1
        for r in range(row, last):
            for w in range(words):
                out[r, w] ^= hidden[r, w]
        row = last
    for number in range(grouped, planes.shape[0]):
        for w in range(words):
            out[row, w] = planes[number, w] ^ hidden[row, w]
        row += 1


@compiled
def carries(
    rows: Words, known: Words, one: np.uint64, group: int, g_rows: Indices, p_rows: Indices, hidden: Words, out: Words
) -> None:
    """G and P of the planes of each group up to plane j, XOR `hidden`: row g_rows[j] and p_rows[j] of `out`, or none for -1.

    `rows` is one component of the products of m, `known` are the planes of n, `one` is this component of the constant 1. From
    plane to plane, for a product h of m's bits in the planes that follow:

        h G' = n h m_j xor (m_j xor n) h G,  h P' = (m_j xor n) h P,  which are linear in the rows, as G = 0 and P = 1 are
    """
    words, planes = known.shape[1], g_rows.size
    width = min(words, _BLOCK)
    g, p = np.empty((2, 1 << (group - 1), width), np.uint64), np.empty((2, 1 << (group - 1), width), np.uint64)
    ones = np.full(width, one)
    for start in range(0, words, _BLOCK):
        stop, row = min(words, start + _BLOCK), 0
        for first in range(0, planes, group):
            size = min(group, planes - first)
            for k in range(size):
                n = known[first + k, start:stop]
                old_g, old_p, new_g, new_p = g[(k + 1) % 2], p[(k + 1) % 2], g[k % 2], p[k % 2]
                for h in range(1 << (size - 1 - k)):  # products without plane k are in even places, those with it in odd ones
                    even, odd = 2 * h, 2 * h + 1
                    with_plane = rows[row + (odd << k) - 1, start:stop]
                    if k > 0:
                        _new_g(n, with_plane, old_g[even], old_g[odd], new_g[h])
                        _new_p(n, old_p[even], old_p[odd], new_p[h])
                    else:
                        _first_g(n, with_plane, new_g[h])
                        _new_p(n, rows[row + even - 1, start:stop] if h > 0 else ones, with_plane, new_p[h])
                if g_rows[first + k] >= 0:
                    _xor(new_g[0], hidden[g_rows[first + k], start:stop], out[g_rows[first + k], start:stop])
                if p_rows[first + k] >= 0:
                    _xor(new_p[0], hidden[p_rows[first + k], start:stop], out[p_rows[first + k], start:stop])
            row += (1 << size) - 1


# Loops of their own, each with one array that is written: these are turned into vector instructions.


@compiled
def _new_g(n: Words, with_plane: Words, even: Words, odd: Words, out: Words) -> None:
    for w in range(n.size):
        out[w] = odd[w] ^ (n[w] & (with_plane[w] ^ even[w]))


@compiled
def _first_g(n: Words, with_plane: Words, out: Words) -> None:
    for w in range(n.size):
        out[w] = n[w] & with_plane[w]


@compiled
def _new_p(n: Words, even: Words, odd: Words, out: Words) -> None:
    for w in range(n.size):
        out[w] = odd[w] ^ (n[w] & even[w])


@compiled
def _xor(x: Words, y: Words, out: Words) -> None:
    for w in range(y.size):
        out[w] = x[w] ^ y[w]
