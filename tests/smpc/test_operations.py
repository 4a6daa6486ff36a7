"""Numbers of operations: no two pieces of work at the same time share one."""

from __future__ import annotations

import pytest

from grid.smpc.party import Operations


def test_ranges_are_disjoint_and_later_numbers_lie_beyond_them() -> None:
    operations = Operations(5)
    first = operations.take()
    parts = operations.split(3, 2)
    numbers = [part.take() for part in parts for _ in range(2)]
    assert len({first, operations.take(), *numbers}) == 8
    with pytest.raises(AssertionError, match="more operations"):
        parts[0].take()


def test_parts_have_room_for_parts_within_parts() -> None:
    operations = Operations()
    for _ in range(100_000):
        (part, following) = operations.split(2)
    for many in (2000, 500):
        for _ in range(many):
            (inner, _) = part.split(2)
        part = inner
    kernels = part.split(4000, 1)
    assert kernels[-1].take() < following.take() < operations.take()
    with pytest.raises(AssertionError, match="more operations"):
        part.split(2)


def test_a_range_that_is_used_up_says_so() -> None:
    with pytest.raises(AssertionError, match="more operations"):
        Operations(0, 10).split(3, 4)
