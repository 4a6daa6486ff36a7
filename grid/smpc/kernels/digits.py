"""Products mod 2**64 by int8 digits, for hardware that multiplies int8 matrices into int32 and has no fast int64 products.

The bytes of (a + C) xor C, C = 0x8080808080808080, are digits d_l of -128 .. 127 with a = sum of d_l 2**(8 l) mod 2**64. So
a b = sum over s < 8 of 2**(8 s) times the sum of all d_i e_j with i + j = s: eight int8 products, in which the digits 0 .. s of
the left operand stand side by side and those of the right one in reverse order below each other. An entry is a sum of at most
8 k products of up to 2**14, exact while that stays below 2**31: k <= 16383. Longer operands are taken in pieces.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from grid.smpc.kernels.compiled import compiled
from grid.smpc.link import Words

DIGITS = 8
LONGEST = ((1 << 31) - 1) // (DIGITS << 14)
"""Terms of an exact sum."""

Digits = npt.NDArray[np.int8]

_BALANCE = np.uint64(0x8080808080808080)


# ---------------------------------------------------------------- on the CPU, for two products at once


def pieces(first: Words, second: Words) -> Iterator[tuple[Words, Words]]:
    """Rows of both that are multiplied at once."""
    each = LONGEST // 2
    for start in range(0, max(first.shape[0], 1), each):
        yield first[start : start + each], second[start : start + each]


def left(first: Words, second: Words) -> Digits:
    """The digits of (m, k) and (m, k), side by side: (m, 8, 2 k)."""
    m, k = first.shape
    out = np.empty((m, DIGITS, 2 * k), np.int8)
    _split_rows(first, 0, out)
    _split_rows(second, k, out)
    return out


def right(first: Words, second: Words) -> Digits:
    """The digits of (k, n) and (k, n), one below the other, in reverse order: (8, 2 k, n)."""
    k, n = first.shape
    out = np.empty((DIGITS, 2 * k, n), np.int8)
    _split_planes(first, 0, out)
    _split_planes(second, k, out)
    return out


def product(lefts: list[Digits], rights: list[Digits], m: int, n: int) -> Words:
    """The sum of the products of pieces, (m, n)."""
    out = np.zeros((m, n), np.uint64)
    for a, b in zip(lefts, rights, strict=True):
        k = a.shape[2]
        if k and out.size:
            rows, columns = torch.from_numpy(a.reshape(m, DIGITS * k)), torch.from_numpy(b.reshape(DIGITS * k, n))
            for s in range(DIGITS):
                level = torch._int_mm(rows[:, : (s + 1) * k], columns[(DIGITS - 1 - s) * k :])
                _add_level(level.numpy(), s, out)
    return out


@compiled
def _split_rows(a: Words, offset: int, out: Digits) -> None:
    m, k = a.shape
    for r in range(m):
        for digit in range(8):
            shift = np.uint64(8 * digit)
            for c in range(k):
                out[r, digit, offset + c] = np.int8(((a[r, c] + _BALANCE) ^ _BALANCE) >> shift)


@compiled
def _split_planes(b: Words, offset: int, out: Digits) -> None:
    k, n = b.shape
    for r in range(k):
        for digit in range(8):
            shift = np.uint64(8 * digit)
            for c in range(n):
                out[7 - digit, offset + r, c] = np.int8(((b[r, c] + _BALANCE) ^ _BALANCE) >> shift)


@compiled
def _add_level(level: npt.NDArray[np.int32], s: int, out: Words) -> None:
    shift = np.uint64(8 * s)
    for r in range(out.shape[0]):
        for c in range(out.shape[1]):
            out[r, c] += np.uint64(np.int64(level[r, c])) << shift


# ---------------------------------------------------------------- on any device


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """(m, k) @ (k, n) of int64 mod 2**64, in operations of torch alone: also for CUDA tensors, which have no int64 product."""
    (m, k), n = a.shape, b.shape[1]
    total = torch.zeros((m, n), dtype=torch.int64, device=a.device)
    if not total.numel():
        return total
    for start in range(0, k, LONGEST - LONGEST % 8):
        stop = start + LONGEST - LONGEST % 8
        total += _piece(a[:, start:stop], b[start:stop])[:m, :n]
    return total


def _piece(a: Tensor, b: Tensor) -> Tensor:
    """Filled up with zeros to sizes that CUDA's int8 products take: 8s, and more than 16 rows."""
    (m, k), n = a.shape, b.shape[1]
    more = -k % 8
    a = torch.nn.functional.pad(a, (0, more, 0, max(17 - m, 0)))
    b = torch.nn.functional.pad(b, (0, -n % 8, 0, more))
    m, k = a.shape
    n = b.shape[1]
    rows = _bytes(a).reshape(m, k, DIGITS).transpose(1, 2).reshape(m, DIGITS * k)
    columns = _bytes(b).reshape(k, n, DIGITS).permute(2, 0, 1).flip(0).reshape(DIGITS * k, n)
    total = torch.zeros((m, n), dtype=torch.int64, device=a.device)
    for s in range(DIGITS):
        part = torch._int_mm(rows[:, : (s + 1) * k].contiguous(), columns[(DIGITS - 1 - s) * k :])
        total += part.to(torch.int64) << (8 * s)
    return total


def _bytes(a: Tensor) -> Tensor:
    balance = int(_BALANCE) - (1 << 64)
    return ((a.contiguous() + balance) ^ balance).view(torch.int8)
