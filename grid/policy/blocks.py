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


def rows_of(cut_rows: Ids, blocks: Sequence[int]) -> npt.NDArray[np.int64]:
    """The rows of these blocks, block after block. Raises `InvalidRequest` for a block that is not there, or asked for twice."""
    known = int(cut_rows.max(initial=0)) + 1
    if len(set(blocks)) != len(blocks) or not all(0 <= block < known for block in blocks):
        raise InvalidRequest(f"blocks are distinct numbers from 0 to {known - 1}")
    place = np.full(known, -1, np.int32)
    place[list(blocks)] = np.arange(len(blocks), dtype=np.int32)
    places = place[cut_rows]
    rows = np.flatnonzero(places >= 0)
    return rows[np.argsort(places[rows], kind="stable")]
