"""Secret blocks: a dataset is cut once, in a random order that never leaves the node, into blocks of min_rows rows.

Batches and splits are made of whole blocks. However often a dataset is shuffled, batched and split, and by whomever, no
two sets of rows then differ in less than a block, so that gradients of any number of epochs stay releasable (labels.md,
"Blocks"). The last block takes the rows that are left over.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from grid.errors import InvalidRequest

Ids = npt.NDArray[np.int32]


def count(rows: int, min_rows: int) -> int:
    """How many blocks there are: one at least."""
    return max(1, rows // min_rows)


def length(block: int, rows: int, min_rows: int) -> int:
    """How many rows a block has."""
    blocks = count(rows, min_rows)
    return rows - (blocks - 1) * min_rows if block == blocks - 1 else min(min_rows, rows)


def cut(rows: int, min_rows: int) -> Ids:
    """A fresh cut: for each row the number of its block. The order is from the cryptographic generator."""
    keys = np.frombuffer(secrets.token_bytes(8 * rows), dtype=np.uint64)  # two equal ones are as good as impossible
    sequence = np.argsort(keys, kind="stable")
    numbers = np.minimum(np.arange(rows) // min_rows, count(rows, min_rows) - 1)
    cut_rows = np.empty(rows, np.int32)
    cut_rows[sequence] = numbers
    return cut_rows


class BlockRows:
    """The rows of each block of a cut, for a dataset of which blocks are asked for again and again."""

    def __init__(self, cut_rows: Ids) -> None:
        self._rows = np.argsort(cut_rows, kind="stable").astype(np.int32)
        self._ends = [0, *np.cumsum(np.bincount(cut_rows)).tolist()]

    def of(self, blocks: Sequence[int]) -> Ids:
        """The rows, block after block. Raises `InvalidRequest` for a block that is not there, or asked for twice."""
        known = len(self._ends) - 1
        if len(set(blocks)) != len(blocks) or not all(0 <= block < known for block in blocks):
            raise InvalidRequest(f"blocks are distinct numbers from 0 to {known - 1}")
        return np.concatenate([self._rows[self._ends[block] : self._ends[block + 1]] for block in blocks])
