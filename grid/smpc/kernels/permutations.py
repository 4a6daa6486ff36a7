"""Secret permutations from a keystream, and their use on shares."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from grid.smpc.kernels.compiled import compiled
from grid.smpc.link import Words

Order = npt.NDArray[np.int64]
"""(rows, n): which item comes to each place."""

SPARE_WORDS = 64
"""In place of the words that would make an order more likely than another: one in 2**64 / n, so these last for good."""


@compiled
def orders(words: Words, out: Order) -> None:
    """A uniform permutation for each row, by Fisher and Yates; numbers below a bound are Lemire's, without bias.

    `words` are one for each place, and SPARE_WORDS.
    """
    rows, n = out.shape
    low_half, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    spare = rows * n
    for r in range(rows):
        for i in range(n):
            out[r, i] = i
        for i in range(n - 1, 0, -1):
            bound = np.uint64(i + 1)
            word = words[r * n + i]
            unfair = (np.uint64(0) - bound) % bound  # 2**64 mod bound
            while word * bound < unfair and spare < words.size:
                word = words[spare]
                spare += 1
            j = ((word >> half) * bound + ((word & low_half) * bound >> half)) >> half  # word * bound / 2**64
            swap = out[r, i]
            out[r, i] = out[r, j]
            out[r, j] = swap


@compiled
def reordered_less(x: Words, y: Words, order: Order, hidden: Words, mask: np.uint64, out: Words) -> None:
    """x + y in each row's order, less `hidden`; all (rows, n, size of an item). Pass an empty `y` for x alone."""
    with_y = y.size > 0
    for r in range(out.shape[0]):
        for i in range(out.shape[1]):
            source = order[r, i]
            for c in range(out.shape[2]):
                value = x[r, source, c] + y[r, source, c] if with_y else x[r, source, c]
                out[r, i, c] = (value - hidden[r, i, c]) & mask
