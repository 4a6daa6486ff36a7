"""Values that a client keeps for checks: few bytes, the latest ones, and as they were when they were shared."""

from __future__ import annotations

import gc

import torch

from grid.client import examples
from grid.client.examples import KEPT_BYTES, KEPT_EACH, Examples


def test_small_values_are_copied_and_large_ones_looked_at() -> None:
    known = Examples()
    small, large, changed = torch.ones(4), torch.ones(KEPT_EACH // 4 + 1), torch.ones(KEPT_EACH // 4 + 1)
    for number, one in enumerate((small, large, changed)):
        known.keep(number, one)
    known.describe(3, lambda: small)
    small.zero_()
    changed.zero_()
    found = [known.get(number) for number in range(4)]
    assert found[0]().equal(torch.ones(4)) and found[1]() is large and found[2]() is None and found[3]() is small  # type: ignore[misc]
    del large
    gc.collect()
    assert found[1]() is None  # type: ignore[misc]
    known.drop(0)
    known.drop(0)
    assert known.get(0) is None and known.get(9) is None


def test_copies_are_bounded_and_the_oldest_go_first() -> None:
    known = Examples()
    count, each = 3 * KEPT_BYTES // KEPT_EACH, torch.zeros(KEPT_EACH // 4)
    for number in range(count):
        known.keep(number, each)
        if number % 3 == 0:
            known.drop(number)
        assert sum(one.nbytes for one in known._copies.values()) <= KEPT_BYTES
    assert known.get(1) is None and known.get(count - 1) is not None
    assert len(known._copies) > KEPT_BYTES // KEPT_EACH // 2
    assert examples.OVERHEAD * 2 < KEPT_EACH
