"""What is computed over groups of bit planes: the tree of a comparison, and Sklansky's prefix network."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

GROUP = 4
"""Planes that are added at once, see `groups`."""


@cache
def tree_rows(nodes: int) -> int:
    """Planes of G and P that all levels of a tree over so many groups make."""
    rows = 0
    while nodes > 1:
        rows += 2 * (nodes // 2) - 1
        nodes -= nodes // 2
    return rows


class Level(NamedTuple):
    """One level of the network."""

    high: npt.NDArray[np.int64]
    """The planes that change."""

    low: npt.NDArray[np.int64]
    """The plane that each of these takes in."""

    first_p: int
    """From which of these on P is used later."""

    @property
    def rows(self) -> int:
        """Bits that one party sends for an element."""
        return 2 * self.high.size - self.first_p


@cache
def network(planes: int, group: int) -> list[Level]:
    """The levels over so many planes in groups."""
    levels, of = [], np.arange(planes) // group
    for level in range((-(-planes // group) - 1).bit_length()):
        high = np.flatnonzero(of >> level & 1)
        levels.append(Level(high, (of[high] >> level << level) * group - 1, int(np.count_nonzero(of[high] < 2 << level))))
    return levels
