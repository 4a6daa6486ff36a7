"""What a node tells by refusing ranges: a gateway that searches for its largest coordinate gets a few bits."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

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
    """One that counts how often it judged by its update."""

    def __init__(self, memory: Names) -> None:
        self.ranges = Ranges(memory, JOB)
        self.asked = 0

    def says(self, model: bytes, quantiser: Quantiser) -> bool:
        def check() -> None:
            self.asked += 1
            quantiser.check_fit(UPDATE, 10, quantiser.encode(UPDATE, 10))

        try:
            self.ranges.judge(model, quantiser, check)
        except ReleaseDenied as denied:
            assert denied.details["rule"] == "secagg.range"
            return False
        return True


def test_one_range_is_judged_for_a_model_and_then_those_that_fit_in_any_case() -> None:
    node = Node(Names())
    assert node.says(b"m", narrow(1.0))
    assert node.says(b"m", dataclasses.replace(narrow(1.0), levels=2 * WIDE.levels)) and node.says(b"m", narrow(1.0))
    assert not node.says(b"m", narrow(0.71)) and not node.says(b"m", narrow(2.0))  # narrower, or coarser
    assert node.asked == 1
    assert node.says(b"n", narrow(0.71)) and node.asked == 2


def test_the_largest_coordinate_is_not_found_by_halving() -> None:
    memory = Names()
    low, high, told = 0.0, 4.0, 0
    for attempt in range(60):
        middle = (low + high) / 2
        node = Node(memory)  # started anew each time: what it remembers is on disk
        fits = node.says(f"model {attempt}".encode(), narrow(middle))
        told += node.asked
        low, high = (low, middle) if fits else (middle, high)
    assert high - low < 1e-12 and not math.isclose(high, 0.7, rel_tol=0.01), "it came out, or the search did not search"
    assert told <= 3 * REFUSALS


def test_wide_ranges_are_judged_once_each_and_do_not_run_out() -> None:
    node = Node(Names())
    for number in range(REFUSALS + 2):
        assert not node.says(f"model {number}".encode(), narrow(0.1))
    assert node.asked == REFUSALS
    assert node.says(b"model 0", WIDE) and node.says(b"model 9", WIDE)
    huge = UPDATE * 1e8
    judged: list[float] = []

    def check(quantiser: Quantiser) -> None:
        judged.append(quantiser.clip)
        quantiser.check_fit(huge, 10, quantiser.encode(huge, 10))

    for clip in WIDE_CLIPS[:2] * 2:
        wide = dataclasses.replace(WIDE, clip=clip)
        with pytest.raises(ReleaseDenied):
            node.ranges.judge(b"huge", wide, lambda wide=wide: check(wide))  # type: ignore[misc]
    assert judged == [*WIDE_CLIPS[:2]]
    fitting = dataclasses.replace(WIDE, clip=WIDE_CLIPS[2])
    node.ranges.judge(b"huge", fitting, lambda: check(fitting))
