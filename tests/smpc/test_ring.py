"""Additive shares: they add up, and any proper subset of them is independent of the value."""

from __future__ import annotations

from collections import Counter
from itertools import product

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grid.smpc import ring


@settings(deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5), st.integers(1, 5))
def test_shares_add_up_to_the_value(values: list[int], parties: int) -> None:
    value = ring.from_tensor(torch.tensor(values, dtype=torch.int64))
    parts = ring.split(value, parties)
    assert len(parts) == parties
    assert numpy.array_equal(ring.total(parts, value.shape), value)
    assert ring.to_tensor(ring.total(parts, value.shape)).tolist() == values


def test_shapes_without_dimensions_and_without_elements_work() -> None:
    for shape in ((), (0,), (2, 0, 3), (1, 1)):
        value = ring.from_tensor(torch.ones(shape, dtype=torch.int64))
        parts = ring.split(value, 3)
        assert all(part.shape == shape for part in parts)
        assert numpy.array_equal(ring.total(parts, shape), value)
        assert ring.to_tensor(ring.total(parts, shape)).shape == torch.Size(shape)
    assert ring.to_tensor(ring.from_tensor(torch.arange(6)).reshape(2, 3).T).tolist() == [[0, 3], [1, 4], [2, 5]]


def test_two_of_three_parts_have_the_same_distribution_for_every_value() -> None:
    """All randomness of a small ring, enumerated: masks from {0..3} x 2**62, values likewise, so sums close under wrapping."""
    unit = 1 << 62
    seen: dict[int, list[Counter[tuple[int, int]]]] = {}
    for secret in range(4):
        counts = [Counter[tuple[int, int]]() for _ in range(3)]
        for masks in product(range(4), repeat=2):
            stream = iter(masks)
            parts = ring.split(
                numpy.array([secret * unit], dtype=numpy.uint64), 3, lambda n, s=stream: (next(s) * unit).to_bytes(n, "little")
            )
            held = [int(part[0]) for part in parts]
            for left_out in range(3):
                pair = tuple(share for position, share in enumerate(held) if position != left_out)
                counts[left_out][pair] += 1  # type: ignore[index]
        seen[secret] = counts
    assert seen[0] == seen[1] == seen[2] == seen[3]
    assert all(len(counts) == 16 for counts in seen[0])


def test_only_int64_becomes_ring_elements() -> None:
    with pytest.raises(TypeError):
        ring.from_tensor(torch.ones(1))
    with pytest.raises(ValueError):
        ring.split(numpy.zeros(1, dtype=numpy.uint64), 0)


def test_splitting_leaves_the_value_alone_and_masks_are_fresh() -> None:
    value = numpy.arange(4, dtype=numpy.uint64)
    first, second = ring.split(value, 2), ring.split(value, 2)
    assert value.tolist() == [0, 1, 2, 3]
    assert not numpy.array_equal(first[1], second[1])
