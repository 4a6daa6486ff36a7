"""Matrix products and convolutions mod 2**64 of replicated sharings: each party's addend, still without its zero share.

Bilinear maps need two local products, not three: x_i (y_i + y_(i+1)) + x_(i+1) y_i, which is (x_i + x_(i+1)) y_i + x_i y_(i+1),
so the sum is taken of the smaller operand, or of one that is used again and whose sum is kept.

How they are computed, by shape and processor (`benchmarks/README.md` has the times):
 - a vector on either side: loops over words, one pass over the matrix for both products;
 - large, on a processor with int8 tiles (AMX): eight int8 digits, `grid.smpc.kernels.digits`. Without tiles that is three times
   slower than int64;
 - else torch's int64 kernels, which wrap as the ring does. `conv2d` is faster there than columns and a product.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from grid.smpc.kernels import digits
from grid.smpc.kernels.compiled import compiled
from grid.smpc.link import Words

T = TypeVar("T")

DIGITS_FROM = 10**8
"""Operations (2 m k n, for each of the two products) from which digits pay where there are tiles."""

_KEPT_FROM = 4096
"""Elements of an operand from which it is remembered."""


def matmul(x0: Words, x1: Words, y0: Words, y1: Words) -> Words:
    """This party's addend of (m, k) @ (k, n), shape (m, n), or of batches of them, (b, m, k) and (b, k, n). Any strides; they are
    only read."""
    if x0.ndim == 3:
        out = np.empty((x0.shape[0], x0.shape[1], y0.shape[2]), np.uint64)
        for number in range(len(out)):
            out[number] = matmul(x0[number], x1[number], y0[number], y1[number])
        return out
    (m, k), n = x0.shape, y0.shape[1]
    if m == 1:
        return _vector_matrix(x0[0], x1[0], y0, y1).reshape(1, n)
    if n == 1:
        return _vector_matrix(y0[:, 0], y1[:, 0], x0.T, x1.T).reshape(m, 1)
    if 2 * m * k * n >= DIGITS_FROM and has_tiles():
        right = _kept(y0, y1, "digits", lambda: [digits.right(a, b) for a, b in digits.pieces(y0 + y1, y0)])
        left = [digits.left(a.T, b.T) for a, b in digits.pieces(x0.T, x1.T)]
        return digits.product(left, right, m, n)
    both = _kept(y0, y1, "sum", lambda: y0 + y1) if y0.size > x0.size else y0 + y1
    return _words(torch.mm(_tensor(x0), _tensor(both)).add_(torch.mm(_tensor(x1), _tensor(y0))))


def conv2d(
    x0: Words, x1: Words, w0: Words, w1: Words, stride: tuple[int, int], padding: tuple[int, int], groups: int = 1
) -> Words:
    """This party's addend of the cross-correlation of (n, c, h, w) with (o, c / groups, kh, kw), shape (n, o, h', w')."""
    if groups > 1:
        images, filters = (np.split(x, groups, 1) for x in (x0, x1)), (np.split(w, groups, 0) for w in (w0, w1))
        parts = zip(*images, *filters, strict=True)
        return np.concatenate([conv2d(a, b, c, d, stride, padding) for a, b, c, d in parts], 1)
    outputs, fields = w0.shape[0], w0[0].size
    rows, columns = (_places(x0, w0, axis, stride, padding) for axis in (0, 1))
    if 2 * x0.shape[0] * rows * columns * fields * outputs >= DIGITS_FROM and has_tiles():
        first, second = (_columns(x, w0.shape[2:], stride, padding) for x in (x0, x1))
        flat = matmul(first, second, w0.reshape(outputs, -1).T, w1.reshape(outputs, -1).T)
        return flat.reshape(x0.shape[0], rows, columns, outputs).transpose(0, 3, 1, 2)
    both, w = _tensor(w0 + w1), _tensor(w0)
    z = torch.nn.functional.conv2d(_tensor(x0), both, stride=stride, padding=padding)
    return _words(z.add_(torch.nn.functional.conv2d(_tensor(x1), w, stride=stride, padding=padding)))


def has_tiles() -> bool:
    """Whether int8 products run on tiles here."""
    return _TILES


_TILES: bool = bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


# ---------------------------------------------------------------- vectors


def _vector_matrix(v0: Words, v1: Words, m0: Words, m1: Words) -> Words:
    """The addend of v @ m, for (k,) and (k, n). The sum is one of vectors: (v0 + v1) m0 + v0 m1."""
    both = v0 + v1
    out = np.zeros(m0.shape[1], np.uint64)
    if m0.flags.c_contiguous and m1.flags.c_contiguous:
        _rows_times(both, np.ascontiguousarray(v0), m0, m1, out)
    else:
        _columns_times(both, np.ascontiguousarray(v0), np.ascontiguousarray(m0.T), np.ascontiguousarray(m1.T), out)
    return out


@compiled
def _rows_times(a: Words, b: Words, m0: Words, m1: Words, out: Words) -> None:
    """out += a m0 + b m1, four rows of the matrices at a time."""
    rows, columns = m0.shape
    fours = rows - rows % 4
    for r in range(0, fours, 4):
        a0, a1, a2, a3 = a[r], a[r + 1], a[r + 2], a[r + 3]
        b0, b1, b2, b3 = b[r], b[r + 1], b[r + 2], b[r + 3]
        p0, p1, p2, p3 = m0[r], m0[r + 1], m0[r + 2], m0[r + 3]
        q0, q1, q2, q3 = m1[r], m1[r + 1], m1[r + 2], m1[r + 3]
        for c in range(columns):
            out[c] += a0 * p0[c] + a1 * p1[c] + a2 * p2[c] + a3 * p3[c] + b0 * q0[c] + b1 * q1[c] + b2 * q2[c] + b3 * q3[c]
    for r in range(fours, rows):
        for c in range(columns):
            out[c] += a[r] * m0[r, c] + b[r] * m1[r, c]


@compiled
def _columns_times(a: Words, b: Words, m0: Words, m1: Words, out: Words) -> None:
    """out += a m0 + b m1, of matrices that are given transposed."""
    for c in range(m0.shape[0]):
        total = np.uint64(0)
        p, q = m0[c], m1[c]
        for r in range(m0.shape[1]):
            total += a[r] * p[r] + b[r] * q[r]
        out[c] += total


# ---------------------------------------------------------------- convolutions as products


def _places(x: Words, w: Words, axis: int, stride: tuple[int, int], padding: tuple[int, int]) -> int:
    return int(x.shape[2 + axis] + 2 * padding[axis] - w.shape[2 + axis]) // stride[axis] + 1


def _columns(x: Words, field: tuple[int, ...], stride: tuple[int, int], padding: tuple[int, int]) -> Words:
    """Every field that the filters see as one row: (n * h' * w', c * kh * kw)."""
    (top, left), (down, right) = padding, stride
    padded = np.pad(x, ((0, 0), (0, 0), (top, top), (left, left))) if top or left else x
    fields = np.lib.stride_tricks.sliding_window_view(padded, field, axis=(2, 3))[:, :, ::down, ::right]
    n, c, rows, columns = fields.shape[:4]
    return np.ascontiguousarray(fields.transpose(0, 2, 3, 1, 4, 5)).reshape(n * rows * columns, c * field[0] * field[1])


# ---------------------------------------------------------------- operands that are used again


_seen: dict[tuple[int, int, str], tuple[object, object, object]] = {}


def _kept(y0: Words, y1: Words, what: str, make: Callable[[], T]) -> T:
    """What `make` gives for these two arrays, kept from their second use on until one of them is gone. Components of a sharing
    never change once they are there."""
    if y0.size < _KEPT_FROM:
        return make()
    key = (id(y0), id(y1), what)
    entry = _seen.get(key)
    if entry is None:
        gone: Callable[[object], object] = lambda _: _seen.pop(key, None)  # noqa: E731
        _seen[key] = (weakref.ref(y0, gone), weakref.ref(y1, gone), None)
        return make()
    if entry[2] is None:
        entry = _seen[key] = (*entry[:2], make())
    return entry[2]  # type: ignore[return-value]


def _tensor(words: Words) -> Tensor:
    flags = words.flags
    dense = words if flags.c_contiguous and flags.writeable else words.copy()  # torch wants arrays that could be written
    return torch.from_numpy(dense.view(np.int64))


def _words(tensor: Tensor) -> Words:
    return tensor.contiguous().numpy().view(np.uint64)
