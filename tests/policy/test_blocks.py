"""Secret blocks: whole, distinct, and coarse enough for any number of shuffled epochs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grid.errors import InvalidRequest
from grid.policy import blocks
from grid.tensors.rows import refine_ids


@given(rows=st.integers(1, 500), min_rows=st.integers(1, 60))
def test_every_row_is_in_one_block_and_lengths_are_as_announced(rows: int, min_rows: int) -> None:
    cut = blocks.cut(rows, min_rows)
    sizes = np.bincount(cut)
    assert len(sizes) == blocks.count(rows, min_rows)
    assert [blocks.length(b, rows, min_rows) for b in range(len(sizes))] == sizes.tolist()
    assert sizes.sum() == rows
    chosen = blocks.BlockRows(cut).of(range(len(sizes)))
    assert sorted(chosen.tolist()) == list(range(rows)) and cut[chosen].tolist() == sorted(cut)


def test_two_cuts_differ() -> None:
    assert not np.array_equal(blocks.cut(1000, 10), blocks.cut(1000, 10))


@pytest.mark.parametrize("wanted", [[0, 0], [-1], [6], [1 << 40]], ids=["twice", "negative", "too large", "huge"])
def test_blocks_that_are_not_there(wanted: list[int]) -> None:
    with pytest.raises(InvalidRequest, match="from 0 to 5"):
        blocks.BlockRows(blocks.cut(60, 10)).of(wanted)


@given(seed=st.integers(0, 2**32 - 1), epochs=st.integers(1, 5), size=st.integers(1, 7))
def test_batches_of_blocks_never_tell_fewer_than_min_rows_apart(seed: int, epochs: int, size: int) -> None:
    count, min_rows = 205, 10
    rows = blocks.BlockRows(blocks.cut(count, min_rows))
    rng = np.random.default_rng(seed)
    drawn = np.zeros(count, np.int32)
    for _ in range(epochs):
        order = rng.permutation(blocks.count(count, min_rows)).tolist()
        for start in range(0, len(order), size):
            batch = np.zeros(count, np.int32)
            batch[rows.of(order[start : start + size])] = 1
            _, numbered = np.unique(refine_ids(drawn, batch), return_inverse=True)
            drawn = numbered.astype(np.int32) + 1
    assert np.bincount(drawn)[1:].min() >= min_rows


def test_a_list_of_rows_does_tell_them_apart() -> None:
    """The measure of the test above can fail."""
    drawn = np.zeros(205, np.int32)
    one = drawn.copy()
    one[:11] = 1
    two = drawn.copy()
    two[1:12] = 1
    _, numbered = np.unique(refine_ids(one, two), return_inverse=True)
    assert np.bincount(numbered).min() == 1
