"""What a node tells by refusing ranges: a gateway that searches for its largest coordinate gets a few bits."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from grid.errors import ReleaseDenied
from grid.federated.secagg.quantiser import REFUSALS, WIDE_CLIPS, Quantiser, choose
from grid.ids import JobId
from grid.node.job_ranges import Ranges
from tests.federated.cohort import Names

JOB = JobId("j" * 26)
UPDATE = np.array([0.7, -0.25, 0.125, 0.1])
WIDE = choose(4, 3, 10)


def narrow(clip: float) -> Quantiser:
    return dataclasses.replace(WIDE, clip=clip)


class Node:
    """One that counts how often it judged by its update. A new one with the same memory is one that was started again."""

    def __init__(self, memory: Names) -> None:
        self.ranges = Ranges(memory, JOB)
        self.asked = 0

    def says(self, index: int, quantiser: Quantiser, update: np.ndarray = UPDATE) -> bool:
        def check() -> None:
            self.asked += 1
            quantiser.check_fit(update, 10, quantiser.encode(update, 10))

        try:
            self.ranges.judge(index, quantiser, check)
        except ReleaseDenied as denied:
            assert denied.details["rule"] == "secagg.range"
            return False
        return True


def test_one_range_is_judged_in_a_round_and_then_those_that_fit_in_any_case() -> None:
    memory = Names()
    node = Node(memory)
    assert node.says(1, narrow(1.0))
    assert node.says(1, dataclasses.replace(narrow(1.0), levels=2 * WIDE.levels)) and node.says(1, narrow(1.0))
    assert not node.says(1, narrow(0.71)) and not node.says(1, narrow(2.0))  # narrower, or coarser
    assert node.asked == 1
    again = Node(memory)
    assert not again.says(1, narrow(1.0)) and again.says(1, WIDE) and again.asked == 1
    assert node.says(2, narrow(0.71)) and node.asked == 2


def test_the_largest_coordinate_is_not_found_by_halving() -> None:
    memory = Names()
    low, high, told = 0.0, 4.0, 0
    for index in range(60):
        middle = (low + high) / 2
        node = Node(memory)
        fits = node.says(index, narrow(middle))
        told += node.asked
        low, high = (low, middle) if fits else (middle, high)
    assert high - low < 1e-12 and not math.isclose(high, 0.7, rel_tol=0.01), "it came out, or the search did not search"
    assert told <= 3 * REFUSALS


def test_wide_ranges_are_judged_once_each_and_do_not_run_out() -> None:
    node = Node(Names())
    for index in range(REFUSALS + 2):
        assert not node.says(index, narrow(0.1))
    assert node.asked == REFUSALS
    assert node.says(0, WIDE) and node.says(9, WIDE)
    node.asked = 0
    for clip in WIDE_CLIPS[:2] * 2:
        assert not node.says(10, dataclasses.replace(WIDE, clip=clip), UPDATE * 1e8)
    assert node.asked == 2
    assert node.says(10, dataclasses.replace(WIDE, clip=WIDE_CLIPS[2]), UPDATE * 1e8)
    assert not dataclasses.replace(WIDE, levels=1 << 20).is_wide
