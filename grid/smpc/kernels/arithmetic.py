"""Elementwise products of replicated sharings, with their zero shares."""

from __future__ import annotations

import numpy as np

from grid.smpc.kernels.compiled import compiled
from grid.smpc.link import Words


@compiled
def product(x0: Words, x1: Words, y0: Words, y1: Words, own: Words, following: Words, mask: np.uint64, out: Words) -> None:
    """This party's part of x y: x_i y_i + x_i y_(i+1) + x_(i+1) y_i, and its zero share F(k_i) - F(k_(i+1))."""
    for e in range(out.size):
        out[e] = (x0[e] * (y0[e] + y1[e]) + x1[e] * y0[e] + own[e] - following[e]) & mask


@compiled
def conjunction(x0: Words, x1: Words, y0: Words, y1: Words, own: Words, following: Words, out: Words) -> None:
    """This party's part of x AND y on packed bits, with its zero share."""
    for e in range(out.size):
        out[e] = (x0[e] & (y0[e] ^ y1[e])) ^ (x1[e] & y0[e]) ^ own[e] ^ following[e]


@compiled
def add(x: Words, y: Words, mask: np.uint64, out: Words) -> None:
    for e in range(out.size):
        out[e] = (x[e] + y[e]) & mask


@compiled
def subtract(x: Words, y: Words, mask: np.uint64, out: Words) -> None:
    for e in range(out.size):
        out[e] = (x[e] - y[e]) & mask


@compiled
def add_zero_share(z: Words, own: Words, following: Words, mask: np.uint64, out: Words) -> None:
    """z + F(k_i) - F(k_(i+1)), for a local product that was computed elsewhere."""
    for e in range(out.size):
        out[e] = (z[e] + own[e] - following[e]) & mask


@compiled
def add_multiple(x: Words, factor: np.uint64, out: Words) -> None:
    """out += factor x, in one pass."""
    for e in range(out.size):
        out[e] += factor * x[e]
